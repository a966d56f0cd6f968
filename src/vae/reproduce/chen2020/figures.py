"""The figures of Chen 2020, chapter 4, drawn from records with the axes and the order of the thesis' code."""

import numpy as np
from matplotlib.figure import Figure as Picture

from vae.figures.style import figure
from vae.reproduce.chen2020.measures import GRID
from vae.reproduce.document import Chosen
from vae.reproduce.pictures import columns, plane, sheet
from vae.reproduce.records import arrays, over_seeds

DIMENSIONS = (2, 5, 10, 15, 20, 25)
NETWORKS = {"fc": "fully connected", "conv": "convolutional"}
BETAS = (1, 0.25, 4, 16)
LOSS = "loss/reconstruction error"


def losses(records: Chosen, bottom: float) -> Picture:
    """Figures 4.1 and 4.5: test loss and test reconstruction error against d."""
    made = figure(6.4, 4.8, "")
    axes = made.subplots()
    for label, key, colour in (("Test reconstruction error", "reconstruction", "red"), ("Test loss", "loss", "blue")):
        values = [over_seeds(found, "test", key) for found in records.values()]
        mean, error = [value.mean for value in values], [value.stderr or 0.0 for value in values]
        axes.errorbar(DIMENSIONS, mean, yerr=error, color=colour, marker="o", capsize=3, label=label)
    axes.set(xlim=(0, None), xlabel="latent space dimension", ylim=(bottom, None), ylabel=LOSS)
    axes.set_title("Test Loss/Reconstruction Error")
    axes.legend(loc="upper right")
    axes.grid()
    return made


def reconstructions(records: Chosen, titles: tuple[str, str]) -> Picture:
    """Figures 4.2, 4.6 and 4.10: test images, and their reconstructions from one sampled z by two models."""
    first, second = map(arrays, records.values())
    pictures = [first["originals"], first["reconstructions"], second["reconstructions"]]
    return columns(pictures, ["original", *titles], black_on_white=pictures[0].shape[-1] == 1)


def codes(records: Chosen, titles: tuple[str, str]) -> Picture:
    """Figures 4.3, 4.7 and 4.11: the test set in two latent spaces, one sampled z per image."""
    found = map(arrays, records.values())
    return plane({title: (of["points"], of["labels"]) for title, of in zip(titles, found, strict=True)})


def manifold(records: Chosen) -> Picture:
    """Figures 4.4 and 4.8: the decoder's means on an even grid from -4 to 4, z_2 upwards."""
    (images,) = (arrays(of)["manifold"] for of in records.values())
    n, size = len(GRID), images.shape[1]
    made, axes = sheet(images.reshape(n, n, *images.shape[1:]), black_on_white=True)
    places = np.arange(n) * size + size // 2
    axes.set_xticks(places, [f"{z:.1f}" for z in GRID], fontsize=6, rotation=90)
    axes.set_yticks(places, [f"{z:.1f}" for z in GRID[::-1]], fontsize=6)
    axes.set(xlabel="z_1", ylabel="z_2")
    return made


def training(records: Chosen) -> Picture:
    """Figure 4.9: training loss and reconstruction error against epochs, a line per seed."""
    made = figure(12, 4.8, "")
    panels = zip(made.subplots(1, 2), "ab", NETWORKS.values(), records.values(), strict=True)
    for axes, letter, words, of_seeds in panels:
        for record in of_seeds:
            for label, key, colour in (
                ("Training reconstruction error", "reconstruction", "red"),
                ("Training loss", "loss", "blue"),
            ):
                curve = record.results["train"][key]
                again = {} if record is not of_seeds[0] else {"label": label}
                axes.plot(range(1, len(curve) + 1), curve, color=colour, linewidth=1, marker=".", **again)
        axes.set_xticks(range(0, len(curve) + 2, 2))
        axes.set(xlim=(0, None), xlabel="epoch", ylabel=LOSS, title=f"({letter}) {words}")
        axes.legend(loc="upper right")
        axes.grid()
    return made


def traversals(records: Chosen) -> Picture:
    """The outlook: a row for each of the eight latents of largest KL, from -3 to 3, by beta."""
    by_beta = sorted(zip(BETAS, map(arrays, records.values()), strict=True), key=lambda pair: pair[0])
    made = figure(4 * len(by_beta), 3.6, "")
    for axes, (beta, of) in zip(made.subplots(1, len(by_beta)), by_beta, strict=True):
        images = of["traversals"].reshape(8, 10, 28, 28)
        axes.imshow(images.transpose(0, 2, 1, 3).reshape(8 * 28, 10 * 28), cmap="gray_r")
        axes.set(title=f"beta = {beta:g}", yticks=[])
        axes.set_xticks([14, 266], ["-3", "3"])
    return made
