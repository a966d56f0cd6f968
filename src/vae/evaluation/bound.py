"""The evidence lower bound over a data set, one value a datum, with what it says of the latents."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae.data import Split
from vae.distributions import kl_divergence
from vae.errors import TrainingFailed
from vae.models import VAE, evaluating
from vae.randomness import datum_noise

ACTIVE = 0.01  # a latent is active if the variance of its posterior mean over the data exceeds this (Burda et al. 2015)


@dataclass(frozen=True)
class Evaluation:
    """Per datum: `elbo`, `log_p_x_given_z`, `kl` (N,), nats; over the data: `kl_per_dimension` (J,), `active_units`."""

    elbo: Tensor
    log_p_x_given_z: Tensor
    kl: Tensor
    kl_per_dimension: Tensor
    active_units: int

    def log_line(self) -> dict[str, Any]:
        """Means, as a line of a log holds them."""
        means = {name: getattr(self, name).mean().item() for name in ("elbo", "log_p_x_given_z", "kl")}
        return {
            **means,
            "active_units": self.active_units,
            "kl_per_dimension": self.kl_per_dimension.tolist(),
        }


def evaluate_bound(
    model: VAE,
    split: Split,
    *,
    name: str,
    seed: int = 0,
    num_samples: int = 1,
    batch_size: int = 1000,
) -> Evaluation:
    """Estimator B of every datum once, in evaluation mode (paper, equation 7).

    The noise of a datum depends on (seed, name of the split, its index) alone, so order, limit and batch size change
    nothing but rounding. float64 on the way out. TrainingFailed where a value is not finite.
    """
    log_p_x_given_z, kl, means = [], [], []
    kind, shape = model.noise
    with evaluating(model):
        for x, index in _batches(model, split, batch_size):
            noise = datum_noise(kind, seed, name, index, (num_samples, *shape)).to(x)  # (M, L, J)
            q = model.posterior(x)
            log_p_x_given_z.append(model.expected_log_likelihood(q, x, noise.transpose(0, 1)).double().cpu())
            kl.append(kl_divergence(q, model.prior).double().cpu())
            means.append(q.mean.double().cpu())
    reconstruction, kls = torch.cat(log_p_x_given_z), torch.cat(kl)  # (N,), (N, J)
    for term, values in {"log_p_x_given_z": reconstruction, "kl": kls.sum(1)}.items():
        if not torch.isfinite(values).all():
            i = int(torch.argmin(torch.isfinite(values).int()))
            raise TrainingFailed(f"{term} of datum {int(split.index[i])} of {name} is not finite")
    active = int((torch.cat(means).var(0, correction=0) > ACTIVE).sum())
    return Evaluation(reconstruction - kls.sum(1), reconstruction, kls.sum(1), kls.mean(0), active)


def _batches(model: VAE, split: Split, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (M, *data_shape) on the model's device and in its dtype, and their places, in order."""
    like = model.prior.mean
    for start in range(0, len(split), size):
        rows = slice(start, start + size)
        yield split.images(rows, like.dtype, like.device), split.index[rows]


def posterior_codes(
    model: VAE,
    split: Split,
    *,
    name: str,
    seed: int = 0,
    sampled: bool = False,
    batch_size: int = 1000,
) -> Tensor:  # (N, J)
    """The posterior means of a split, or one sample of each posterior where `sampled`."""
    codes = []
    kind, shape = model.noise
    with evaluating(model):
        for x, index in _batches(model, split, batch_size):
            q = model.posterior(x)
            noise = datum_noise(kind, seed, name, index, shape)
            codes.append((q.transform(noise.to(x)) if sampled else q.mean).cpu())
    return torch.cat(codes)


def summary(values: Tensor) -> dict[str, Any]:
    """{mean, stderr, n} of per-datum values; the standard error is over data, and None for a single one."""
    n = len(values)
    stderr = values.std().item() / math.sqrt(n) if n > 1 else None
    return {"mean": values.mean().item(), "stderr": stderr, "n": n}
