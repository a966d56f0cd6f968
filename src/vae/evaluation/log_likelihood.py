"""log p(x) of each datum by a chosen estimator, with its errors and diagnostics."""

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from vae.data import Split
from vae.errors import TrainingFailed, UsageError
from vae.evaluation.annealed import Annealed
from vae.evaluation.base import DatumNoise, minibatches
from vae.evaluation.density import FittedDensity
from vae.evaluation.importance import ImportanceSampling
from vae.evaluation.quadrature import Quadrature
from vae.models import VAE, evaluating


class Estimator(Protocol):
    """A way to estimate log p(x) of a minibatch; its noise depends on the index of each datum."""

    method: str
    double_precision: bool  # whether it is called with a copy of the model in float64

    def check(self, model: VAE) -> None:
        """UsageError if the estimator does not suit this model."""

    def data_at_once(self, model: VAE) -> int:
        """The size of a minibatch if none is given."""

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """Columns (M,): log_p_x, error (the Monte Carlo standard error of a datum), and diagnostics."""

    def verdict(self, columns: dict[str, Tensor], latent_dim: int) -> tuple[bool, str]:
        """Whether the estimate can be trusted, and what to do if not."""


LOG_LIKELIHOODS = {"is": ImportanceSampling, "hmc": FittedDensity, "ais": Annealed, "quadrature": Quadrature}


@dataclass(frozen=True)
class Columns:
    """The results of an evaluator: named columns (N,), float64, and how long it took."""

    values: dict[str, Tensor]
    seconds: float

    def __getitem__(self, name: str) -> Tensor:
        return self.values[name]

    def monte_carlo_error(self, name: str = "error") -> float:
        """The standard error of the mean of log_p_x from the estimator's own noise: sqrt(sum_i e_i^2) / N."""
        errors = self.values[name]
        return errors.square().sum().sqrt().item() / len(errors)


def measure(
    model: VAE,
    data: Split | Tensor,  # (N, *data_shape)
    estimator: Any,
    *,
    name: str = "data",
    seed: int = 0,
    batch_size: int | None = None,
    verbose: bool = False,
) -> Columns:
    """An estimator's columns for every datum, each once, in evaluation mode, without autocast.

        vae.measure(model, x, vae.ImportanceSampling(num_samples=5000))["log_p_x"]

    Order, limit and batch size (by default what suits the estimator) change an estimate only by rounding.
    TrainingFailed if a value is not finite.
    """
    if isinstance(estimator, type) or not hasattr(estimator, "data_at_once"):
        raise UsageError(f"estimator must be one such as vae.ImportanceSampling(num_samples=5000), not {estimator!r}")
    estimator.check(model)
    if not isinstance(data, Split):
        x = model.as_data(data)
        data = Split(x, None, torch.arange(len(x)))
    parts: list[dict[str, Tensor]] = []
    size = batch_size or estimator.data_at_once(model)
    began = time.monotonic()
    bar = tqdm(
        total=len(data),
        disable=None if verbose else True,
        dynamic_ncols=True,
        bar_format="{percentage:3.0f}%|{bar:20}| {desc} [{elapsed}, {remaining} left]",
        desc=f"log p(x) by {estimator.method}",
    )
    with bar, evaluating(model), torch.autocast(model.prior.mean.device.type, enabled=False):
        chosen = copy.deepcopy(model).double() if estimator.double_precision else model
        for given, x, index in minibatches(chosen, data, size):
            done, noise = bar.n, DatumNoise(seed, name, index, x)
            columns = estimator(given, x, noise, lambda share, x=x: bar.update(share * len(x)))
            bad = ~torch.isfinite(columns["log_p_x"] + columns.get("upper", 0.0))
            if bad.any():
                raise TrainingFailed(f"log p(x) of datum {int(index[int(bad.int().argmax())])} of {name} is not finite")
            parts.append({key: value.double().cpu() for key, value in columns.items()})
            bar.update(done + len(x) - bar.n)
    return Columns({key: torch.cat([part[key] for part in parts]) for key in parts[0]}, time.monotonic() - began)
