"""The two stochastic gradient variational Bayes estimators (Kingma & Welling 2013, section 2.3)."""

from dataclasses import dataclass

from torch import Tensor

from vae.distributions import kl_divergence, log_ratio, sum_from
from vae.models import VAE
from vae.objectives.base import Estimate, Memory, Objective
from vae.randomness import Draws
from vae.schema import Count, validated


@validated
@dataclass(frozen=True, kw_only=True)
class EstimatorB(Objective):
    """SGVB-B: -KL(q(z|x) || p(z)) in closed form + (1/L) sum_l log p(x|z_l), z_l = g(eps_l, x)   (equation 7).

    The KL is per datum, nats, never negative. UsageError if no closed form of it is known.
    """

    num_samples: Count = 1

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The bound of each datum; eps (L, M, J)."""
        q = model.posterior(x)
        log_p_x_given_z = model.expected_log_likelihood(q, x, noise["eps"])  # (M,)
        elements = kl_divergence(q, model.prior)  # (M, J), or (M,) if q is joint
        kl = sum_from(elements, 1)  # (M,)
        bound = log_p_x_given_z - kl
        terms = {"log_p_x_given_z": log_p_x_given_z, "kl": kl}
        return Estimate(bound, terms, bound, kl_elements=elements if elements.ndim == 2 else None), memory


@validated
@dataclass(frozen=True, kw_only=True)
class EstimatorA(Objective):
    """SGVB-A: (1/L) sum_l log p(x, z_l) - log q(z_l|x), z_l = g(eps_l, x)   (equation 6).

    Its `kl` is the Monte Carlo estimate (1/L) sum_l log q(z_l|x) - log p(z_l), which can be negative.
    """

    num_samples: Count = 1

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The bound of each datum; eps (L, M, J)."""
        z, log_q = model.posterior(x).transform_and_log_prob(noise["eps"])  # (L, M, J) both
        log_p_x_given_z = model.log_likelihood(x, z).mean(0)  # (M,)
        kl = log_ratio(log_q, model.prior, z).mean(0)  # (M,)
        bound = log_p_x_given_z - kl
        return Estimate(bound, {"log_p_x_given_z": log_p_x_given_z, "kl": kl}, bound), memory
