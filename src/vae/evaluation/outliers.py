"""How strange a datum is: its score, and how many held-out data score as low."""

import numpy as np
import torch
from torch import Tensor

from vae.data import Split
from vae.evaluation.base import minibatches
from vae.evaluation.bound import evaluate_bound
from vae.evaluation.importance import ImportanceSampling
from vae.evaluation.log_likelihood import measure
from vae.models import VAE, evaluating

ROUNDING = 1e-9  # relative: by this a score may depend on the data that are evaluated beside it


def scores(model: VAE, split: Split, *, name: str, num_samples: int | None = None, seed: int = 0) -> dict[str, Tensor]:
    """Of each datum, (N,), nats: `score`, larger is more ordinary, and the terms of its bound.

    The score is log p(x) by importance sampling with `num_samples`, without them the bound, by a mean of ten draws.
    """
    bound = evaluate_bound(model, split, name=name, seed=seed, num_samples=10)
    found = {"score": bound.elbo, "elbo": bound.elbo, "log_p_x_given_z": bound.log_p_x_given_z, "kl": bound.kl}
    if num_samples is not None:
        columns = measure(model, split, ImportanceSampling(num_samples=num_samples), name=name, seed=seed, verbose=True)
        found["score"] = found["log_p_x"] = columns["log_p_x"]
    return found


def least_likely(model: VAE, split: Split) -> Tensor:  # (N,)
    """The element of each datum with the smallest log p(x_d|z) at the posterior mean."""
    found = []
    with evaluating(model):
        for given, x, _ in minibatches(model, split, 1000):
            each = given.likelihood(given.posterior(x).mean[None]).log_prob(x)[0]
            found.append(each.flatten(1).argmin(1).cpu())
    return torch.cat(found)


def p_values(scores: Tensor, held_out: Tensor) -> Tensor:  # (N,), (n,) -> (N,)
    """(1 + #{held-out scores at most as large}) / (n + 1): conformal p-values (Vovk et al. 2005).

    Of data like the held-out ones, a share of at most p has a p-value of at most p. The smallest is 1 / (n + 1).
    """
    held = np.sort(held_out.numpy())
    held = held - ROUNDING * (1 + np.abs(held))  # an equal score is as large
    counts = np.searchsorted(held, scores.numpy(), side="right")
    return torch.from_numpy((1 + counts) / (len(held) + 1))
