"""How good a regression is: the density of y, and whether its intervals hold."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vae.data import Split
from vae.errors import TrainingFailed
from vae.evaluation.base import mean_and_stderr
from vae.models import Predictive, Regression
from vae.text import mean_row

LEVELS = (0.5, 0.8, 0.9, 0.95)  # of the central intervals whose coverage is counted
NETWORKS = 300  # drawn from q(w)


def evaluate_regression(
    model: Regression, split: Split, *, name: str = "data", seed: int = 0, num_samples: int = NETWORKS
) -> dict[str, Tensor]:
    """Of each datum: the terms of its share of the bound, and how its y lies in p(y|x), a mixture over networks.

    `elbo`, `log_p_y_given_x`, `kl` and `log_density` (log p(y|x)) are nats, (N,); `crps` and `squared_error` are in the
    units of y and their square; `pit` is P(Y <= y), `width_90` the width of the central 90 % interval, each a mean over
    the targets but `pit`, (N, T). TrainingFailed if a value is not finite.
    """
    predictive, y, columns = _densities(model, split, name, seed, num_samples)
    return columns | scores(predictive, y, seed)


def scores(predictive: Predictive, y: Tensor, seed: int) -> dict[str, Tensor]:  # y (N, T)
    """How observed y lie in their predicted laws, of each datum: what `evaluate_regression` gives but for the bound."""
    lower, upper = predictive.quantile([0.05, 0.95])
    return {
        "log_density": predictive.log_prob(y),
        "crps": crps(predictive.draws(NETWORKS, seed), y).mean(1),
        "squared_error": (predictive.mean - y).square().mean(1),
        "width_90": (upper - lower).mean(1),
        "pit": predictive.cdf(y),
    }


def _densities(
    model: Regression, split: Split, name: str, seed: int, num_samples: int
) -> tuple[Predictive, Tensor, dict[str, Tensor]]:
    """The predictive law of a split, its targets (N, T) in double precision, and what is in nats."""
    y = model.as_targets(split.y).double().cpu()
    x = split.images(dtype=model.inputs.mean.dtype, device=model.inputs.mean.device)
    predictive = Predictive.of(model, x, num_samples, seed)
    log_likelihood = predictive.of_networks.log_prob(y).sum(2).mean(0)
    kl = (model.kl().detach().double().cpu() / model.num_data.cpu()).expand_as(log_likelihood)
    columns = {"elbo": log_likelihood - kl, "log_p_y_given_x": log_likelihood, "kl": kl}
    columns["log_density"] = predictive.log_prob(y)
    for term, values in columns.items():
        if not torch.isfinite(values).all():
            raise TrainingFailed(f"{term} of {name} is not finite")
    return predictive, y, columns


def crps(draws: Tensor, y: Tensor) -> Tensor:  # (S, ...), (...) -> (...)
    """The continuous ranked probability score E|Y - y| - E|Y - Y'| / 2, unbiased, from S draws of any law.

    sum_{r,s} |Y_r - Y_s| = 2 sum_s (2 s - S - 1) Y_(s) over the sorted draws (Gneiting & Raftery 2007, equation 21).
    """
    S = len(draws)
    rank = torch.arange(1, S + 1, dtype=draws.dtype).view(-1, *[1] * y.ndim)
    spread = ((2 * rank - S - 1) * draws.sort(0).values).sum(0) / (S * (S - 1))
    return (draws - y).abs().mean(0) - spread


def covered(pit: Tensor, level: float) -> Tensor:  # (N, T) -> (N,)
    """Whether y lies in the central interval of a level: by its PIT, so for any law; a mean over targets."""
    return ((pit - 0.5).abs() <= level / 2).double().mean(1)


def regression_line(model: Regression, split: Split, name: str) -> dict[str, Any]:
    """A line of metrics."""
    columns = _densities(model, split, name, seed=0, num_samples=100)[2]
    return {"split": name, **{key: column.mean().item() for key, column in columns.items()}}


def regression_record(
    model: Regression, split: Split, *, name: str, seed: int, num_samples: int | None, origin: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The record of a regression on a split, and the values of each datum."""
    samples = num_samples or NETWORKS
    columns = evaluate_regression(model, split, name=name, seed=seed, num_samples=samples)
    record: dict[str, Any] = {k: mean_and_stderr(column) for k, column in columns.items() if column.ndim == 1}
    record["coverage"] = {f"{level:.0%}": mean_and_stderr(covered(columns["pit"], level)) for level in LEVELS}
    record |= {"density": True, "num_samples": samples, "split": name, "seed": seed, **origin}
    return record, {**columns, "index": split.index}


def regression_table(record: Mapping[str, Any]) -> list[str]:
    """The lines of a record below its first, for people."""
    nats = {"elbo": "ELBO", "log_p_y_given_x": "log p(y|x,w)", "kl": "KL", "log_density": "log p(y|x)"}
    in_units = {"crps": "CRPS", "squared_error": "squared err.", "width_90": "90 % width"}
    return [
        *(mean_row(words, record[key]) for key, words in nats.items()),
        f"{'':12}of a mixture over {record['num_samples']} networks; in the units of y, and as a share of the data:",
        *(mean_row(words, record[key]) for key, words in in_units.items()),
        *(mean_row(f"in {level}", value) for level, value in record["coverage"].items()),
    ]
