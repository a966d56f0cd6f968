"""Wang 2018: notes on variational auto-encoders; the gradient of E[x^2], the KL of two Gaussians, generated images."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from matplotlib.figure import Figure as Picture

from vae.distributions import Normal, kl_divergence
from vae.figures.style import figure, quiet
from vae.randomness import datum_noise
from vae.reproduce.document import (
    Arrays,
    Chosen,
    Document,
    Experiment,
    Figure,
    Made,
    Number,
    Quantity,
    Results,
    Table,
    at,
)
from vae.reproduce.estimators.figure import series
from vae.reproduce.estimators.gradients import Row, compare_known
from vae.reproduce.pictures import as_bytes, sharpness, sheet
from vae.reproduce.records import arrays
from vae.text import plus_minus

THETAS = (0.0, 0.5, 1.0, 2.0)
TWENTY = {"model.latent_dim": 20, "train.evaluate_every": 20}


def measure(made: Made) -> tuple[Results, Arrays]:
    """Mean and variance of each estimator of d E[x^2] / d theta, from 1 and 10 samples; and the KL by Monte Carlo."""
    count = 1000 if made.quick else 200_000
    rows = [row for theta in THETAS for samples in (1, 10) for row in compare_known(theta, samples, count, made.seed)]
    q, p = Normal(*torch.tensor([[0.4], [-0.3]]).double()), Normal(*torch.zeros(2, 1).double())
    z = q.transform(datum_noise("normal", made.seed, "wang/kl", range(count), (1,)).double())
    ratios = (q.log_prob(z) - p.log_prob(z))[:, 0]
    kl = {"mean": ratios.mean().item() - kl_divergence(q, p).item(), "stderr": ratios.std().item() / count**0.5}
    return {"rows": rows, "kl_error": kl}, {}


def generated(made: Made) -> tuple[Results, Arrays]:
    """The decoder's means at 100 draws from the prior, and their total variation over that of test images."""
    images, data = made.run.model.sample(100, seed=made.seed), made.data.evaluation_split("test").first(1000).images()
    ratio = sharpness(images).mean() / sharpness(data).mean()
    return {"sharpness": ratio.item()}, {"images": as_bytes(images)} if made.pictures else {}


# ------------------------------------------------------------------------------------- figures and tables


def draw_variances(records: Chosen) -> Picture:
    """The variance of each estimator against theta, from one sample and from ten."""
    title = r"The gradient of E[$x^2$] in $\theta$, x ~ N($\theta$, 1): measured (2 standard errors) and exact (lines)"
    made = figure(11, 4.5, "")
    made.suptitle(title, fontsize=10)
    for axes, samples in zip(made.subplots(1, 2), (1, 10), strict=True):
        rows = [row for row in records["example"][0].results["rows"] if row["num_samples"] == samples]
        series(axes, rows, "theta", "variance", "exact_variance")
        quiet(axes, xlabel=r"$\theta$", ylabel=f"variance, L = {samples}")
        axes.legend(fontsize=8, frameon=False)
    return made


def draw_images(records: Chosen) -> Picture:
    """A sheet of generated images."""
    images = arrays(records["generated"])["images"]
    made, axes = sheet(images.reshape(10, 10, *images.shape[1:]), black_on_white=False)
    axes.set(xticks=[], yticks=[])
    return made


def _table(records: Chosen) -> list[list[str]]:
    rows = [row for record in records.get("example", ())[:1] for row in record.results["rows"]]
    return [
        [
            *(row["estimator"], f"{row['theta']:g}", str(row["num_samples"])),
            *(plus_minus(row["mean"], row["mean_stderr"], ".3f", ".3f"), f"{row['exact_mean']:g}"),
            *(plus_minus(row["variance"], row["variance_stderr"], ".4g", ".2g"), f"{row['exact_variance']:.4g}"),
        ]
        for row in rows
    ]


# ------------------------------------------------------------------------------------- numbers


def _row(results: Results, estimator: str, theta: float, samples: int) -> Row:
    keys = {"estimator": estimator, "theta": theta, "num_samples": samples}
    (row,) = (row for row in results["rows"] if keys.items() <= row.items())
    return row


def _excess(estimator: str, theta: float, samples: int) -> Callable[[Results], Number]:
    """The variance by the score function less that by reparameterization."""

    def of(results: Results) -> Number:
        score, ours = (_row(results, name, theta, samples) for name in (estimator, "reparameterized"))
        error = np.hypot(score["variance_stderr"], ours["variance_stderr"])
        return Number(score["variance"] - ours["variance"], float(error))

    return of


def _nearness(results: Results) -> Number:
    """Five less the largest distance of a measured mean or variance from the exact one, in standard errors.

    Without the running baseline, whose values depend on one another.
    """
    rows = [row for row in results["rows"] if row["estimator"] != "running b"]
    far = [abs(row[key] - row[f"exact_{key}"]) / row[f"{key}_stderr"] for row in rows for key in ("mean", "variance")]
    return Number(5.0 - max(far), 0.0)


def _quantities() -> Iterator[Quantity]:
    near = "means and variances lie within 5 standard errors of the exact ones"
    why = "5 less the largest distance in standard errors"
    yield Quantity("2.2.1", near, ("example",), _nearness, claim=True, why=why)
    for theta in THETAS:
        for estimator, samples in (("no baseline", 1), ("b = E f", 1), ("leave one out", 10)):
            text = f"theta = {theta:g}, L = {samples}: reparameterized varies less than score function, {estimator}"
            of, why = _excess(estimator, theta, samples), "the difference of the variances"
            yield Quantity("2.2.1", text, ("example",), of, claim=True, why=why)
    text = "E_q[log q - log p] less (sigma^2 + mu^2 - log sigma^2 - 1) / 2"
    yield Quantity("KL", text, ("example",), at("kl_error"))
    blurred = ("generated",), lambda results: Number(1.0 - results["sharpness"])
    yield Quantity("4", "generated images are blurred: less total variation than the data", *blurred, claim=True)


WANG2018 = Document(
    "wang2018",
    "Wang 2018: notes on variational auto-encoders",
    (
        Experiment("example", measure, seeds=(0,), minutes=0.2, trained=False),
        Experiment("generated", generated, "mnist_d2", TWENTY, minutes=4.0),
    ),
    tuple(_quantities()),
    (
        Figure("2.2.1", "The variance of each estimator of the gradient, beside the exact one.", ("example",),
               draw_variances, "The reparameterized gradient lies lowest, and does not grow with theta."),
        Figure("4", "Generated images: decoder means at draws from the prior, MNIST, d = 20.", ("generated",),
               draw_images, "As described: digits, some of them blurred or between two classes."),
    ),
    (("figure 4 names no data and no network", "-", "MNIST, the networks of Chen 2020, 20 latents"),
     ("N(mu, sigma)", "-", "sigma is the standard deviation")),
    (Table("Estimators of d E[x^2] / d theta, x ~ N(theta, 1): measured and exact",
           ("estimator", "theta", "L", "mean", "exact mean", "variance", "exact variance"), _table),),
    ("The notes have no numbers of their own; those of theory stand beside ours.",),
)  # fmt: skip
