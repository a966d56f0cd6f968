"""The figures of Kingma & Welling 2013, drawn from records with the axes of the paper, its curves beneath ours."""

import csv
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Picture

from vae.figures.style import figure
from vae.reproduce.document import Chosen, Results
from vae.reproduce.pictures import tiles
from vae.reproduce.records import arrays

SIZES = {"mnist": (3, 5, 10, 20, 200), "frey": (2, 5, 10, 20)}
WORDS = {"aevb": "AEVB", "wake_sleep": "wake-sleep", "mcem": "MCEM"}
COLOURS = {"aevb": "#D55E00", "wake_sleep": "#009E73", "mcem": "#0072B2"}
LINES = {"train": "-", "test": "--"}
# What the names of runs end with: at a step of 0.02; whose Adagrad ten minibatches began; on grey levels over 256.
AT_0_02, PRELOADED, BY_256 = "_step_0.02", "_preloaded", "_256"
Curve = tuple[list[float], list[float]]  # samples, nats


@functools.cache
def published() -> Mapping[tuple[str, str, str], Curve]:
    """The paper's curves by panel, algorithm and split, read off its vector drawings."""
    found: dict[tuple[str, str, str], Curve] = {}
    with (Path(__file__).parent / "curves.csv").open() as lines:
        for row in csv.DictReader(lines):
            samples, values = found.setdefault((row["panel"], row["algorithm"], row["split"]), ([], []))
            samples.append(float(row["samples"]))
            values.append(float(row["value"]))
    return found


def bound(results: Results, split: str) -> Curve:
    """A curve of figure 2."""
    return results["curve"]["samples"], results["curve"][split]


def log_p(results: Results, split: str) -> Curve:
    """A curve of figure 3: log p(x) as in appendix D."""
    return [at["samples"] for at in results["curve"]], [at[split]["hmc"]["mean"] for at in results["curve"]]


BEGUN = AT_0_02 + PRELOADED + BY_256, "with Adagrad begun by ten minibatches, on x/256"


def _panel(
    axes: Axes, records: Chosen, panel: str, runs: str,
    of: Callable[[Results, str], Curve] = bound, dotted: tuple[str, str] = BEGUN,
) -> None:  # fmt: skip
    """The paper's curves of a panel thick and pale, those of our runs over them, a line for each seed.

    `dotted`: what the names of other runs of the same panel end with, and how they differ.
    """
    suffix, how = dotted
    for (name, algorithm, split), (samples, values) in published().items():
        if name == panel:
            axes.plot(samples, values, LINES[split], color=COLOURS[algorithm], lw=3, alpha=0.25, label="the paper's")
    for algorithm, color in COLOURS.items():
        for record in records.get(f"{runs}_{algorithm}", ()):
            for split, line in LINES.items():
                axes.plot(*of(record.results, split), line, color=color, lw=1, label=f"{WORDS[algorithm]} ({split})")
        for record in records.get(f"{runs}_{algorithm}{suffix}", ()):
            axes.plot(*of(record.results, "test"), ":", color=color, lw=1.5, label=f"{WORDS[algorithm]} {how} (test)")


def _say(made: Picture, across: str, up: str) -> None:
    """What the axes and the lines of all panels are, once."""
    made.supxlabel(across, fontsize=10)
    made.supylabel(up, fontsize=10)
    found = {line.get_label(): line for axes in made.axes for line in axes.lines}
    made.legend(handles=list(found.values()), loc="outside upper center", ncols=4, fontsize=8, frameon=False)


def draw_figure_2(records: Chosen) -> Picture:
    """The bound per datum against training samples: MNIST above, Frey faces below."""
    made = figure(14, 6.4, "")
    grid = made.subplots(2, 5)
    frames = {"mnist": ((-150, -95), "MNIST"), "frey": ((0, 1600), "Frey Face")}
    for row, (data, (limits, title)) in zip(grid, frames.items(), strict=True):
        for axes, d in zip(row, SIZES[data], strict=False):
            _panel(axes, records, f"{data}_{d}", f"{data}_{d}")
            axes.set(xscale="log", xlim=(1e5, 2.5e8 if data == "mnist" else 1e8), ylim=limits)
            axes.set_title(f"{title}, $N_z$ = {d}", fontsize=10)
    grid[1, 4].set_axis_off()
    _say(made, "training samples seen", "bound, nats per datum")
    return made


def draw_beyond(records: Chosen) -> Picture:
    """What lies right of the paper's frame: the bound of AEVB on the Frey faces after 10^8 samples."""
    made = figure(10, 3.4, "")
    for axes, d in zip(made.subplots(1, 4), SIZES["frey"], strict=True):
        _panel(axes, records, f"frey_{d}", f"frey_{d}")
        axes.axvline(1e8, color="0.5", lw=0.8, label="where the paper's frame ends")
        axes.set(xscale="log", xlim=(1e6, 6e8), ylim=(500, 1600))
        axes.set_title(f"Frey Face, $N_z$ = {d}", fontsize=10)
    _say(made, "training samples seen", "bound, nats per datum")
    return made


def draw_figure_3(records: Chosen) -> Picture:
    """log p(x) by the estimator of appendix D against training samples, for 1,000 and 50,000 training data."""
    made = figure(10, 4.6, "")
    frames = {1000: ((-160, -100), (BY_256, "on x/256")), 50000: ((-160, -125), (AT_0_02, "at a step of 0.02"))}
    for axes, (n, (limits, dotted)) in zip(made.subplots(1, 2), frames.items(), strict=True):
        _panel(axes, records, f"mnist_{n}", f"n{n}", log_p, dotted)
        axes.set(xlim=(0, 6e7), ylim=limits)
        axes.set_title(f"N = {n:,}", fontsize=10)
    _say(made, "training samples evaluated", "log p(x), nats per datum")
    return made


def draw_figure_4(records: Chosen) -> Picture:
    """The decoder's means at the quantiles of the prior: Frey faces, MNIST."""
    return _sheets(records, {"frey_2_aevb": "(a) Frey Face", "mnist_2_aevb": "(b) MNIST"}, "manifold")


def draw_figure_5(records: Chosen) -> Picture:
    """Samples of models of MNIST with 2, 5, 10 and 20 latents."""
    return _sheets(records, {f"mnist_{d}_aevb": f"{d}-D latent space" for d in (2, 5, 10, 20)}, "samples")


def _sheets(records: Chosen, titles: Mapping[str, str], key: str) -> Picture:
    """Square sheets of pictures side by side, as far as there are records."""
    titles = {name: title for name, title in titles.items() if name in records}
    made = figure(5 * len(titles), 5.4, "")
    for axes, (name, title) in zip(np.atleast_1d(made.subplots(1, len(titles))), titles.items(), strict=True):
        images = arrays(records[name])[key]
        side = round(len(images) ** 0.5)
        tiles(axes, images.reshape(side, side, *images.shape[1:]), black_on_white=False)
        axes.set(xticks=[], yticks=[], title=title)
    return made
