"""Importance weighting: one matrix of log weights, log w_k = log p(x, z_k) - log q(z_k|x), and three routes for the
gradient of the bound that it gives,

    L_K = E[log (1/K) sum_k w_k] <= log p(x)     (Burda, Grosse & Salakhutdinov 2016, equation 8),

which grows with K from the ELBO at K = 1 to log p(x). With the normalised weights v_k = w_k / sum_j w_j, the decoder's
gradient is sum_k v_k d log p(x, z_k) on every route; the routes differ in the encoder's.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae.distributions import detached, sum_from
from vae.models import VAE
from vae.objectives.base import Estimate, Memory
from vae.schema import Count, validated


class LogWeights(NamedTuple):
    """K samples of z a datum and what their weights are made of, nats."""

    z: Tensor  # (K, M, J)
    log_p_x_given_z: Tensor  # (K, M)
    log_p_z: Tensor  # (K, M)
    log_q: Tensor  # (K, M)

    @property
    def log_w(self) -> Tensor:  # (K, M)
        """log p(x, z) - log q(z|x)."""
        return self.log_p_x_given_z + self.log_p_z - self.log_q


def log_weights(model: VAE, x: Tensor, noise: Tensor, *, path: bool = False) -> LogWeights:
    """The weights of z_k = g(eps_k, x); with `path`, q's parameters are constants in log q, and act through z alone."""
    q = model.posterior(x)
    if path:
        z = q.transform(noise)
        log_q = detached(q).log_prob(z)
    else:
        z, log_q = q.transform_and_log_prob(noise)
    return LogWeights(z, model.log_likelihood(x, z), sum_from(model.prior.log_prob(z), 2), sum_from(log_q, 2))


def _estimate(weights: LogWeights, surrogate: Tensor | None = None) -> Estimate:
    bound = torch.logsumexp(weights.log_w, 0) - math.log(len(weights.z))  # (M,)
    terms = {
        "log_p_x_given_z": weights.log_p_x_given_z.mean(0),
        "kl": (weights.log_q - weights.log_p_z).mean(0),  # of Monte Carlo; can be negative
    }
    objective = bound if len(weights.z) > 1 else None  # with one sample it is the ELBO
    return Estimate(bound, terms, bound if surrogate is None else surrogate, objective)


@validated
@dataclass(frozen=True, kw_only=True)
class IWAE:
    """The importance-weighted bound by its total derivative, sum_k v_k d log w_k (Burda et al. 2016, equation 14).

    Unbiased for the gradient of L_K. The encoder's signal-to-noise ratio falls as K^(-1/2) (Rainforth et al. 2018).
    """

    num_samples: Count = 5

    def bias(self, model: VAE) -> None:
        """None."""

    def __call__(self, model: VAE, x: Tensor, noise: Tensor, memory: Memory, step: int) -> tuple[Estimate, Memory]:
        """The bound L_K of each datum; noise (K, M, J)."""
        return _estimate(log_weights(model, x, noise)), memory


@validated
@dataclass(frozen=True, kw_only=True)
class DReG:
    """The importance-weighted bound, the encoder by double reparameterization: sum_k v_k^2 (d log w_k / d z_k) d z_k.

    Unbiased for the gradient of L_K, with a signal-to-noise ratio that grows as K^(1/2) (Tucker et al. 2019,
    equation 8).
    """

    num_samples: Count = 5

    def bias(self, model: VAE) -> None:
        """None."""

    def __call__(self, model: VAE, x: Tensor, noise: Tensor, memory: Memory, step: int) -> tuple[Estimate, Memory]:
        """The bound L_K of each datum; noise (K, M, J)."""
        weights = log_weights(model, x, noise, path=True)
        v = weights.log_w.detach().softmax(0)  # (K, M)
        if weights.z.requires_grad:
            # The surrogate weighs with v; what goes on from z to the encoder is weighed once more.
            weights.z.register_hook(lambda gradient: v[..., None] * gradient)
        return _estimate(weights, (v * weights.log_w).sum(0)), memory


@validated
@dataclass(frozen=True, kw_only=True)
class StickingTheLanding:
    """The path derivative of the bound, sum_k v_k (d log w_k / d z_k) d z_k (Roeder, Wu & Duvenaud 2017).

    Unbiased for K = 1, where it vanishes at q(z|x) = p(z|x). For K > 1 it is biased, and tends with K to the gradient
    of another objective: use dreg there.
    """

    num_samples: Count = 1

    def bias(self, model: VAE) -> str | None:
        """Biased for K > 1."""
        if self.num_samples == 1:
            return None
        return "sticking the landing is biased for num_samples > 1; use dreg, which is not"

    def __call__(self, model: VAE, x: Tensor, noise: Tensor, memory: Memory, step: int) -> tuple[Estimate, Memory]:
        """The bound of each datum; noise (K, M, J)."""
        return _estimate(log_weights(model, x, noise, path=True)), memory
