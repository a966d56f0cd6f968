"""Importance weighting: one matrix of log weights, log w_k = log p(x, z_k) - log q(z_k|x), and three estimators of
the gradient of its bound,

    L_K = E[log (1/K) sum_k w_k] <= log p(x)     (Burda, Grosse & Salakhutdinov 2016, equation 8),

which grows with K from the ELBO at K = 1 to log p(x). With the normalised weights v_k = w_k / sum_j w_j, the decoder's
gradient is sum_k v_k d log p(x, z_k) in all three; they differ in the encoder's.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vae.distributions import detached, log_ratio, sum_from
from vae.models import VAE
from vae.objectives.base import Estimate, Memory, Objective, support_depends_on_parameters
from vae.randomness import Draws
from vae.schema import Count, validated


class LogWeights(NamedTuple):
    """The terms of the log weights of K samples of z per datum, nats."""

    log_p_x_given_z: Tensor  # (K, M)
    log_p_z: Tensor  # (K, M)
    log_q: Tensor  # (K, M)

    @property
    def log_w(self) -> Tensor:  # (K, M)
        """log p(x, z) - log q(z|x)."""
        return self.log_p_x_given_z + self.log_p_z - self.log_q

    @property
    def kl(self) -> Tensor:  # (M,)
        """The Monte Carlo estimate of KL(q(z|x) || p(z)), which can be negative."""
        return (self.log_q - self.log_p_z).mean(0)


def log_weights(model: VAE, x: Tensor, z: Tensor, log_q: Tensor) -> LogWeights:
    """The weights of samples z (K, M, J), given log q(z|x) element by element."""
    return LogWeights(model.log_likelihood(x, z), sum_from(model.prior.log_prob(z), 2), sum_from(log_q, 2))


def _estimate(weights: LogWeights, kl: Tensor | None = None) -> Estimate:
    num_samples = len(weights.log_q)
    bound = torch.logsumexp(weights.log_w, 0) - math.log(num_samples)  # (M,)
    terms = {"log_p_x_given_z": weights.log_p_x_given_z.mean(0), "kl": weights.kl if kl is None else kl}
    return Estimate(bound, terms, bound, bound if num_samples > 1 else None)  # with one sample it is the ELBO


def _path_bias(model: VAE, name: str) -> str | None:
    if not support_depends_on_parameters(model):
        return None
    return f"{name} is biased if the support of q depends on its parameters; use sgvb_a, sgvb_b or iwae"


@validated
@dataclass(frozen=True, kw_only=True)
class IWAE(Objective):
    """The importance-weighted bound by its total derivative, sum_k v_k d log w_k (Burda et al. 2016, equation 14).

    Unbiased for the gradient of L_K. The encoder's signal-to-noise ratio falls as K^(-1/2) (Rainforth et al. 2018).
    """

    num_samples: Count = 5

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The bound L_K of each datum; eps (K, M, J)."""
        return _estimate(log_weights(model, x, *model.posterior(x).transform_and_log_prob(noise["eps"]))), memory


@validated
@dataclass(frozen=True, kw_only=True)
class DReG(Objective):
    """The importance-weighted bound, doubly reparameterized in the encoder: sum_k v_k^2 (d log w_k / d z_k) d z_k.

    Unbiased for the gradient of L_K, with a signal-to-noise ratio that grows as K^(1/2) (Tucker et al. 2019,
    equation 8), unless q's support depends on its parameters.
    """

    num_samples: Count = 5

    def bias(self, model: VAE) -> str | None:
        """Biased if the support of q depends on its parameters, like any path derivative."""
        return _path_bias(model, "dreg")

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The bound L_K of each datum; eps (K, M, J)."""
        q = model.posterior(x)
        z, fixed = q.transform(noise["eps"]), detached(q)
        doubly = z.view_as(z)  # not z itself, through which the KL's gradient flows, weighted once
        weights = log_weights(model, x, doubly, fixed.log_prob(doubly))
        v = weights.log_w.detach().softmax(0)  # (K, M)
        if doubly.requires_grad:
            # The bound's derivative is weighted with v; what flows on from z into the encoder is weighted once more.
            doubly.register_hook(lambda gradient: v[..., None] * gradient)
        kl = log_ratio(fixed.log_prob(z), model.prior, z).mean(0)  # (M,)
        return _estimate(weights, kl), memory


@validated
@dataclass(frozen=True, kw_only=True)
class StickingTheLanding(Objective):
    """The path derivative of the bound, sum_k v_k (d log w_k / d z_k) d z_k (Roeder, Wu & Duvenaud 2017).

    Unbiased for K = 1 unless q's support depends on its parameters; it vanishes at q(z|x) = p(z|x). For K > 1 it is
    biased, and tends with K to the gradient of another objective: use dreg instead.
    """

    num_samples: Count = 1

    def bias(self, model: VAE) -> str | None:
        """Biased for K > 1, and if the support of q depends on its parameters, like any path derivative."""
        if self.num_samples > 1:
            return "stl is biased for num_samples > 1; use dreg, which is not"
        return _path_bias(model, "stl")

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The bound L_K of each datum; eps (K, M, J)."""
        q = model.posterior(x)
        z = q.transform(noise["eps"])
        return _estimate(log_weights(model, x, z, detached(q).log_prob(z))), memory
