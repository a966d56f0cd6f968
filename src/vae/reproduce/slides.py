"""Ivlev, Leontev & Kariakin: slides on Kingma & Welling 2013; the families of its section 2.4 as one gallery."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import scipy.stats as laws
import torch
from matplotlib.figure import Figure as Picture
from torch import Tensor

from vae.distributions import FAMILIES, Normal, kl_divergence
from vae.figures.style import figure, quiet
from vae.randomness import datum_noise
from vae.reproduce.document import Arrays, Chosen, Document, Experiment, Figure, Made, Number, Quantity, Results, below

FALSE_ALARMS = 1e-4  # the rate of each of the 23 tests
FACTOR = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
_SPREAD, _ZERO = torch.tensor([math.log(0.7)], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)


def _p(*values: float) -> list[Tensor]:
    return [torch.tensor([value], dtype=torch.float64) for value in values]


# Of each family: its parameters, and SciPy's law of its (first) element.
CASES: dict[str, tuple[list[Any], Any]] = {
    "exponential": (_p(1.5), laws.expon(scale=1 / 1.5)),
    "cauchy": ([_ZERO, _SPREAD], laws.cauchy(0, 0.7)),
    "logistic": ([_ZERO, _SPREAD], laws.logistic(0, 0.7)),
    "rayleigh": (_p(0.8), laws.rayleigh(scale=0.8)),
    "pareto": (_p(2, 3), laws.pareto(3, scale=2)),
    "weibull": (_p(2, 1.6), laws.weibull_min(1.6, scale=2)),
    "reciprocal": (_p(1, 4), laws.loguniform(1, 4)),
    "gompertz": (_p(0.7, 2), laws.gompertz(0.7, scale=2)),
    "gumbel": ([_ZERO, _SPREAD], laws.gumbel_r(0, 0.7)),
    "erlang": ([3, *_p(1.5)], laws.erlang(3, scale=1 / 1.5)),
    "normal": ([_ZERO, _SPREAD], laws.norm(0, 0.7)),
    "laplace": ([_ZERO, _SPREAD], laws.laplace(0, 0.7)),
    "multivariate_normal": ([torch.zeros(2).double(), FACTOR], laws.norm(0, 1)),
    "multivariate_t": ([torch.zeros(2).double(), FACTOR, torch.tensor(5.0).double()], laws.t(5)),
    "student_t": ([_ZERO, _SPREAD, *_p(5)], laws.t(5, 0, 0.7)),
    "uniform": ([_ZERO, _SPREAD], laws.uniform(-0.7, 1.4)),
    "triangular": (_p(-1, 0.5, 2), laws.triang(0.5, -1, 3)),
    "log_normal": ([_ZERO, _SPREAD], laws.lognorm(0.7)),
    "gamma": (_p(1.7, 1.5), laws.gamma(1.7, scale=1 / 1.5)),
    "dirichlet": ([torch.tensor([1.0, 2.0, 3.0]).double()], laws.beta(1, 5)),
    "beta": (_p(1.4, 2.5), laws.beta(1.4, 2.5)),
    "chi_squared": (_p(4.5), laws.chi2(4.5)),
    "fisher_f": (_p(5, 18), laws.f(5, 18)),
}


def measure(made: Made) -> tuple[Results, Arrays]:
    """Of each family: whether g(eps) has its law (Kolmogorov-Smirnov test), and its histogram with the density."""
    results, arrays = Results(), Arrays()
    for name, (parameters, law) in CASES.items():
        family: Any = FAMILIES[name](*parameters)
        n = 2000 if made.quick else 100_000
        noise = datum_noise(family.noise.kind, made.seed, f"slides/{name}", range(n), family.noise.shape).double()
        draws = family.transform(noise)  # (n, 1), or vectors (n, K)
        z = draws[:, 0].numpy()
        test = laws.kstest(z, law.cdf)
        results[name] = {"p": float(test.pvalue), "distance": float(test.statistic)}
        low, high = law.ppf([0.03, 0.97])
        edges = np.linspace(low, high, 41)
        x = (edges[1:] + edges[:-1]) / 2
        scalar = draws.shape[1] == 1
        density = family.log_prob(torch.from_numpy(x)[:, None])[:, 0].exp().numpy() if scalar else law.pdf(x)
        arrays[name] = np.stack([x, np.histogram(z, edges)[0] / n / (edges[1] - edges[0]), density]).astype("f4")
    return results, arrays


def identities(made: Made) -> tuple[Results, Arrays]:
    """The identities of the slides in float64: their errors on two discrete laws, and on a linear-Gaussian model."""
    generator = np.random.default_rng(made.seed)
    p, q = (weights / weights.sum() for weights in generator.random((2, 7)))
    kl, entropy, cross = (p * np.log(p / q)).sum(), -(p * np.log(p)).sum(), -(p * np.log(q)).sum()
    # z ~ N(0, 1), x|z ~ N(w z, s^2): log p(x) is known, and so are the posterior and the bound of any q = N(m, v).
    w, s2, x, m, v = 1.3, 0.4, 0.7, -0.2, 0.5
    evidence = -0.5 * (math.log(2 * math.pi * (w * w + s2)) + x * x / (w * w + s2))
    q_z, prior, posterior = (_normal(*p) for p in ((m, v), (0, 1), (w * x / (w * w + s2), s2 / (w * w + s2))))
    expected = -0.5 * (math.log(2 * math.pi * s2) + ((x - w * m) ** 2 + w * w * v) / s2)
    bound, gap = expected - kl_divergence(q_z, prior).item(), kl_divergence(q_z, posterior).item()
    errors = (abs(kl + entropy - cross), abs(gap + bound - evidence))
    return {"errors": dict(zip(IDENTITIES, map(float, errors), strict=True)), "gap": gap}, {}


def _normal(mean: float, variance: float) -> Normal:
    return Normal(*torch.tensor([[mean], [0.5 * math.log(variance)]], dtype=torch.float64))


IDENTITIES = ("D(p || q) + H(p) = H(p, q)", "log p(x) = D(q(z) || p(z|x)) + L")


def draw_gallery(records: Chosen) -> Picture:
    """The density of each family over the histogram of g(eps)."""
    (record,) = records["families"]
    made = figure(15, 10, "Reparameterized families: density (line) over the histogram of g(eps)")
    panels = list(made.subplots(4, 6).flat)
    for axes, (name, (x, counts, density)) in zip(panels, record.arrays.items(), strict=False):
        axes.bar(x, counts, x[1] - x[0], color="#BBBBBB")
        axes.plot(x, density, color="#0072B2")
        quiet(axes)
        axes.set_title(f"{name.replace('_', ' ')}: p = {record.results[name]['p']:.2f}", fontsize=9)
        axes.set_yticks([])
    for axes in panels[len(record.arrays) :]:
        axes.remove()
    return made


def _quantities() -> Iterator[Quantity]:
    for name in CASES:
        of = partial(lambda results, key: Number(results[key]["p"] - FALSE_ALARMS, 0.0), key=name)
        why = f"p value of 100,000 draws, less {FALSE_ALARMS:g}"
        yield Quantity("families", f"g(eps) of {name} has its law", ("families",), of, claim=True, why=why)
    for name in IDENTITIES:
        yield Quantity("identities", f"{name} to 1e-12", ("identities",), below(1e-12, "errors", name), claim=True)
    gap = ("identities",), lambda results: Number(results["gap"], 0.0)
    yield Quantity("identities", "log p(x) >= L: the gap", *gap, claim=True)


SLIDES = Document(
    "slides",
    "Ivlev, Leontev & Kariakin: slides on Auto-Encoding Variational Bayes",
    (
        Experiment("families", measure, seeds=(0,), minutes=0.2, trained=False),
        Experiment("identities", identities, seeds=(0,), minutes=0.1, trained=False),
    ),
    tuple(_quantities()),
    (Figure("families", "The families of the three ways to choose g (slide 8): density over the histogram of g(eps).",
            ("families",), draw_gallery, "Every histogram follows its density."),),
    (("equation (5) sums over i", "-", "over l, the samples"),
     ("Gamma as a sum of exponentials", "-", "for whole shapes; else torch's implicit gradient"),
     ("Dirichlet as a weighted sum of gammas", "-", "gammas divided by their sum"),
     ("results on Frey faces and MNIST, two-dimensional manifolds", "-", "those of Kingma & Welling 2013")),
    notes=("The slides have no numbers of their own; their list of distributions and their identities are checked.",),
)  # fmt: skip
