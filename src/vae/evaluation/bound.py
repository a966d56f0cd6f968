"""The evidence lower bound over a data set, one value per datum, and which latents are used."""

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae.data import Data, Split
from vae.distributions import has_exact_kl, sum_from
from vae.errors import PosteriorCollapse, TrainingFailed
from vae.evaluation.base import DatumNoise, minibatches
from vae.evaluation.regression import regression_line
from vae.models import VAE, Model, Regression, evaluating

ACTIVE = 0.01  # a latent is active if the variance of its posterior mean over the data exceeds this (Burda et al. 2015)


@dataclass(frozen=True)
class Evaluation:
    """Per datum: `elbo`, `log_p_x_given_z`, `kl` (N,), nats; over the data: `kl_per_dimension` (J,), if the KL is a
    sum over latents, and `active_units`. `estimator` is sgvb_b, or sgvb_a if the KL is a Monte Carlo estimate."""

    elbo: Tensor
    log_p_x_given_z: Tensor
    kl: Tensor
    kl_per_dimension: Tensor | None
    active_units: int
    estimator: str


def evaluate_bound(
    model: VAE,
    split: Split,
    *,
    name: str,
    seed: int = 0,
    num_samples: int = 1,
    batch_size: int = 1000,
) -> Evaluation:
    """Estimator B of every datum once, in evaluation mode (paper, equation 7); A if no exact KL is known.

    The noise of a datum depends only on (seed, name of the split, its index), so order, limit and batch size change
    nothing but rounding. The results are float64. TrainingFailed if a value is not finite.
    """
    parts = []
    with evaluating(model):
        for given, x, index in minibatches(model, split, batch_size):
            noise = DatumNoise(seed, name, index, x)("", model.noise, num_samples)  # (L, M, J)
            q = given.posterior(x)
            exact = has_exact_kl(q, model.prior)
            log_p_x_given_z, kl = given.bound_terms(q, x, noise)
            parts.append([column.double().cpu() for column in (log_p_x_given_z.mean(0), kl, q.mean)])
    reconstruction, kls, means = map(torch.cat, zip(*parts, strict=True))  # (N,), (N, J) or (N,), (N, J)
    total = sum_from(kls, 1)
    for term, values in {"log_p_x_given_z": reconstruction, "kl": total}.items():
        if not torch.isfinite(values).all():
            i = int(torch.argmin(torch.isfinite(values).int()))
            raise TrainingFailed(f"{term} of datum {int(split.index[i])} of {name} is not finite")
    active = int((means.var(0, correction=0) > ACTIVE).sum())
    of_latents = kls.mean(0) if kls.ndim == 2 else None
    return Evaluation(
        reconstruction - total, reconstruction, total, of_latents, active, "sgvb_b" if exact else "sgvb_a"
    )


def posterior_codes(
    model: VAE,
    split: Split,
    *,
    name: str,
    sampled: bool = False,
    batch_size: int = 1000,
) -> Tensor:  # (N, J)
    """The posterior means of a split, or one sample of each posterior if `sampled`."""
    codes = []
    with evaluating(model):
        for given, x, index in minibatches(model, split, batch_size):
            q = given.posterior(x)
            z = q.transform(DatumNoise(0, name, index, x)("", model.noise, 1))[0] if sampled else q.mean
            codes.append(z.cpu())
    return torch.cat(codes)


def evaluation_line(model: Model, data: Data, name: str) -> dict[str, Any]:
    """A line of metrics on the ELBO of a split; of a VAE, with the KL per dimension and active units.

    Its noise is that of evaluate.py's default seed, whatever the seed of the training.
    """
    split = data.evaluation_split(name)
    if isinstance(model, Regression):
        return regression_line(model, split, name)
    bound = evaluate_bound(model, split, name=name)
    means = {key: getattr(bound, key).mean().item() for key in ("elbo", "log_p_x_given_z", "kl")}
    of_latents = {} if bound.kl_per_dimension is None else {"kl_per_dimension": bound.kl_per_dimension.tolist()}
    return {"split": name, **means, "active_units": bound.active_units, **of_latents}


def warn_of_collapse(active_units: int) -> None:
    """Warn if no latent is active, and suggest what to try."""
    if active_units == 0:
        warnings.warn(
            "the posterior has collapsed: no latent varies with the data (active units 0), so the model ignores z; "
            "train longer, or try modifiers.warm_up=10 (epochs), a smaller modifiers.beta or learning rate, batch "
            "normalisation, or a narrower decoder",
            PosteriorCollapse,
            stacklevel=3,
        )
