"""What is measured of Li 2021: its two figures, its choices, and whether intervals hold."""

import math
from dataclasses import replace

import numpy as np
import scipy.optimize
import torch
from scipy.stats import norm as normal
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import BayesianRidge
from torch import Tensor

from vae.data import Batch
from vae.distributions import Normal
from vae.evaluation.base import mean_and_stderr
from vae.evaluation.regression import LEVELS, covered, scores
from vae.models import Predictive
from vae.objectives import RegressionBound
from vae.randomness import Streams
from vae.reproduce.document import Arrays, Made, Results
from vae.reproduce.li.methods import (
    CPU,
    METHODS,
    POINTS,
    Published,
    Sample,
    as_in_the_code,
    default_regressor,
    learn,
    network,
    normal_law,
)

PLACES = (-24.0, 0.0, 20.0, 54.0)  # where lines and bands are read off
VARIATIONAL = ("VariationalRegressor", "all layers variational")
SCORES = {"log_density": "log density, nats", "crps": "CRPS", "width_90": "width of 90 %"}


def measured(law: Predictive, y: Tensor, seed: int) -> Results:  # y (N, 1)
    """The scores of a law on fresh data, each with its standard error over them; and its PIT histogram."""
    columns = scores(law, y.double(), seed)
    covers = {f"{level:.0%}": mean_and_stderr(covered(columns["pit"], level)) for level in LEVELS}
    pit = np.histogram(columns["pit"], 20, (0, 1))[0].tolist()
    return {**{key: mean_and_stderr(columns[key]) for key in SCORES}, "coverage": covers, "pit": pit}


def coverage(made: Made) -> tuple[Results, Arrays]:
    """Every way to predict on one simulated data set, scored on fresh data of the same law; a seed is a data set."""
    data, results = Sample.drawn(made.seed), Results()
    inside, outside = torch.linspace(-25, 55, 81)[:, None], torch.tensor([[-65.0], [95.0]])
    for name, method in METHODS.items():
        law = method(data, made.seed, made.quick)
        results[name] = measured(law(data.x_test), data.y_test, made.seed)
        if name in VARIATIONAL:
            spread = [law(x).variances()["epistemic"].mean() for x in (inside, outside)]
            results[name]["outside"] = (spread[1] / spread[0]).sqrt().item()
    return results, {}


def between(made: Made) -> tuple[Results, Arrays]:
    """The same law with no data on [-5, 25]: epistemic standard deviation there, outside, and where data are."""
    whole, results = Sample.drawn(made.seed, 300), Results()
    kept = (whole.x[:, 0] < -5) | (whole.x[:, 0] > 25)
    data = replace(whole, x=whole.x[kept], y=whole.y[kept])
    places = {"data": [-20.0, -12.0, 32.0, 48.0], "gap": [10.0], "outside": [-65.0, 95.0]}
    for name in VARIATIONAL:
        law = METHODS[name](data, made.seed, made.quick)
        spread = {k: law(torch.tensor(x)[:, None]).variances()["epistemic"].mean().sqrt() for k, x in places.items()}
        results[name] = {k: (spread[k] / spread["data"]).item() for k in ("gap", "outside")}
    return results, {}


def diabetes(made: Made) -> tuple[Results, Arrays]:
    """scikit-learn's diabetes data, 442 of 10 inputs: 147 to test, 50 to calibrate, y standardised; a seed is a
    split."""
    X, y = load_diabetes(return_X_y=True)
    train, held, test = np.split(np.random.default_rng(made.seed).permutation(len(X)), [245, 295])
    y = (y - y[train].mean()) / y[train].std()
    fitted = default_regressor(made.seed, made.quick).fit(X[train], y[train])
    process = GaussianProcessRegressor(ConstantKernel() * RBF() + WhiteKernel(), normalize_y=True)
    laws = {
        "VariationalRegressor": fitted.law(X[test]),
        "Gaussian process": normal_law(*process.fit(X[train], y[train]).predict(X[test], return_std=True)),
        "Bayesian ridge": normal_law(*BayesianRidge().fit(X[train], y[train]).predict(X[test], return_std=True)),
    }
    results = {name: measured(law, torch.from_numpy(y[test, None]), made.seed) for name, law in laws.items()}
    lower, upper = fitted.conformal(X[held], y[held]).predict_interval(X[test]).T
    inside = torch.from_numpy((lower <= y[test]) & (y[test] <= upper)).double()
    return results | {
        "conformal": {
            "coverage": {"90%": mean_and_stderr(inside)},
            "width_90": mean_and_stderr(torch.from_numpy(upper - lower)),
        }
    }, {}


# ------------------------------------------------------------------------------------- the report's figures


def _dots(data: Sample) -> Arrays:
    return {"x": data.x.numpy()[:, 0], "y": data.y.numpy()[:, 0]}


def aleatoric(made: Made) -> tuple[Results, Arrays]:
    """Figure 1: line and 90 % interval by the report's objective and by the likelihood; a seed is that of the
    networks."""
    data, results, arrays = Sample.drawn(123), Results(), Arrays()
    grid, x_test = torch.linspace(-25, 55, 161)[:, None], data.x_test[:, 0]
    regions = {"tight": x_test < 0, "loose": x_test > 35}
    for name in ("the report's objective", "heteroscedastic, points"):
        law = METHODS[name](data, made.seed, made.quick)
        fresh = law(data.x_test).cdf(data.y_test.double())
        band = law(grid).quantile([0.05, 0.5, 0.95])[..., 0]
        at_places = law(torch.tensor(PLACES)[:, None]).quantile([0.05, 0.5, 0.95])[..., 0]  # (3, P)
        on_data = law(data.x)
        s, r = on_data.of_networks.std[0], data.y - on_data.mean
        results[name] = {
            **{f"{x:g}": dict(zip(("lower", "line", "upper"), at_places[:, i].tolist(), strict=True))
               for i, x in enumerate(PLACES)},
            "inside": covered(on_data.cdf(data.y.double()), 0.9).mean().item(),
            "width": (band[2] - band[0]).mean().item(),
            # At the optimum of its objective the derivative by the scale of s is 0: E r^2 / s^2 = E s^2.
            "balance": ((r / s).square().mean() / s.square().mean()).log().item(),
            **{key: covered(fresh[where], 0.9).mean().item() for key, where in regions.items()},
        }  # fmt: skip
        if made.pictures:
            arrays[name] = band.numpy().astype("f4")
    return results, arrays | (_dots(data) if made.pictures else {})


def optimum(made: Made) -> tuple[Results, Arrays]:
    """The best constants m and s of the report's objective at five places, by minimising its mean in closed form."""
    data, results = Sample.drawn(123), Results()
    for x in (-20.0, 0.0, 20.0, 40.0, 54.0):
        mean, std = (float(a[0]) for a in data.truth(torch.tensor([[x]])))

        def loss(p: np.ndarray, mean: float = mean, std: float = std) -> float:  # p: m and log s
            q = Normal(*torch.from_numpy(p)[:, None])
            r = std**2 + (mean - p[0]) ** 2
            kl = 0.5 * (q.variance + q.mean.square() - 2 * q.log_std - 1)
            return (0.5 * r / q.variance + q.log_std + kl).item()

        m, log_s = scipy.optimize.minimize(
            loss, [mean, 0.0], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13}
        ).x
        r = std**2 + (mean - m) ** 2
        results[f"{x:g}"] = {"error": max(abs(math.exp(4 * log_s) / r - 1), abs(m * (1 + math.exp(2 * log_s)) - mean))}
        half = 1.645 * math.exp(log_s)
        results[f"{x:g}"] |= {"covers": float(np.diff(normal.cdf([m - half, m + half], mean, std))[0]), "std": std}
    return results, {}


def epistemic(made: Made) -> tuple[Results, Arrays]:
    """Figure 2: mean and 90 % band of 1,000 sampled networks, noise 0.1 as published, and learned."""
    data, results, arrays = Sample.drawn(123), Results(), Arrays()
    grid, steps = torch.linspace(-25, 55, 161)[:, None], 20 if made.quick else 1000
    for noise in ("fixed", "constant"):
        model = as_in_the_code(network(made.seed, noise=noise, layers="all", sampling="weights"), made.seed)
        bound = learn(model, data.x, data.y, RegressionBound(), steps, 0.01, made.seed)
        means = Predictive.of(model, torch.cat([grid, torch.tensor(PLACES)[:, None], data.x]), 1000, made.seed)
        lines = torch.stack(
            [means.mean[:, 0], *means.of_networks.mean[..., 0].quantile(torch.tensor([0.05, 0.95]).double(), 0)]
        )
        on_grid, at_places, on_data = lines.split([161, len(PLACES), len(data.x)], 1)
        y = data.y[:, 0].double()
        results[noise] = {
            **{f"{x:g}": dict(zip(("line", "lower", "upper"), at_places[:, i].tolist(), strict=True))
               for i, x in enumerate(PLACES)},
            "width": (on_grid[2] - on_grid[1]).mean().item(),
            "inside": ((on_data[1] <= y) & (y <= on_data[2])).double().mean().item(),
            "rmse": (on_data[0] - y).square().mean().sqrt().item(),
            "loss": -bound * len(y),
            "noise": model.likelihood(grid[:1], {}).std.item(),
        }  # fmt: skip
        if made.pictures:
            arrays[noise] = on_grid.numpy().astype("f4")
    return results, arrays | (_dots(data) if made.pictures else {})


def gradients(made: Made) -> tuple[Results, Arrays]:
    """The variance of the gradient by drawn weights and by drawn activations, of the trained network of figure 2."""
    data, count = Sample.drawn(123), 10 if made.quick else 400
    model = as_in_the_code(network(made.seed, noise="fixed", layers="all"), made.seed)
    learn(model, data.x, data.y, RegressionBound(), 20 if made.quick else 300, 0.01, made.seed)
    total, parameters = {}, list(model.parameters())
    for sampling in ("weights", "activations"):
        model.sampling, streams = sampling, Streams(made.seed, CPU)
        found = []
        for _ in range(count):
            noise = streams.draw(RegressionBound().noises(model, len(data.x)), torch.float32)
            estimate = RegressionBound()(model, Batch(data.x, data.y), noise, {}, 0)[0].surrogate.mean()
            found.append(torch.cat([g.flatten() for g in torch.autograd.grad(estimate, parameters)]))
        total[sampling] = torch.stack(found).double().var(0).sum().item()
    return {"log_ratio": math.log(total["weights"] / total["activations"]), **total}, {}


def choices(made: Made) -> tuple[Results, Arrays]:
    """The report's choices: hidden width by its bound, and dropout by fresh data."""
    data, results = Sample.drawn(123), Results({"width": {}, "dropout": {}})
    steps = 20 if made.quick else 1000
    for width in (5, 10, 25, 50, 100):
        model = network(made.seed, hidden=(width, width), **POINTS)
        results["width"][str(width)] = learn(model, data.x, data.y, Published(), steps, 0.005, made.seed)
    for name, dropout in (("with", 0.25), ("without", 0.0)):
        model = network(made.seed, weights="point", dropout=dropout)
        learn(model, data.x, data.y, RegressionBound(), steps, 0.005, made.seed)
        law = Predictive.of(model, data.x_test, 1, 0)
        results["dropout"][name] = law.log_prob(data.y_test.double()).mean().item()
    return results, {}


def both(made: Made) -> tuple[Results, Arrays]:
    """None, one or both kinds of uncertainty, beyond the data too."""
    data, grid, arrays = Sample.drawn(123), torch.linspace(-45, 75, 161)[:, None], Arrays()
    for name, (noise, weights) in PANELS.items():
        model = network(made.seed, noise=noise, weights=weights, standardise=True, dropout=0.1)
        learn(model, data.x, data.y, RegressionBound(), 20 if made.quick else 500, 0.005, made.seed)
        law = Predictive.of(model, grid, 300, made.seed)
        parts = law.variances()
        arrays[name] = torch.stack([law.mean, *(p.sqrt() for p in parts.values())])[..., 0].numpy().astype("f4")
    second = (law.of_networks.variance + law.of_networks.mean.square()).mean(0) - law.mean.square()
    error = (parts["aleatoric"] + parts["epistemic"]) / second - 1
    return {"error": error.abs().max().item()}, arrays | _dots(data)


PANELS = {
    "none": ("constant", "point"),
    "aleatoric": ("heteroscedastic", "point"),
    "epistemic": ("constant", "variational"),
    "both": ("heteroscedastic", "variational"),
}
