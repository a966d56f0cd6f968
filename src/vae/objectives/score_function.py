"""The score-function estimator of the ELBO's gradient, with baselines; it does not need g(eps, x).

    d E_q[f] = E_q[(f - b) d log q],   f = log p(x, z) - log q(z|x),

for any b that does not depend on z (Williams 1992; Mnih & Gregor 2014). f's own dependence on q's parameters adds
-E_q[d log q] = 0. Kingma & Welling (2013, section 2.2) call its variance too high to be practical; it is here for
comparison.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from vae.distributions import log_ratio, sum_from
from vae.errors import ConfigError
from vae.models import VAE
from vae.objectives.base import Estimate, Memory, Objective, support_depends_on_parameters
from vae.randomness import Draws
from vae.schema import Count, Interval, validated


def score_surrogate(f: Tensor, log_q: Tensor, baseline: Tensor | float) -> Tensor:  # (L, M) each -> (M,)
    """The mean of f over samples; its derivative is (1/L) sum_l (f_l - b_l) d log q(z_l) + d f_l."""
    score = ((f - baseline).detach() * log_q).mean(0)
    return f.mean(0) + score - score.detach()


def leave_one_out(f: Tensor) -> Tensor:  # (L, M) -> (L, M)
    """The baseline of each sample from the others: b_l = mean of f_j over j != l. L > 1."""
    return (f.sum(0) - f) / (len(f) - 1)


def running_mean(memory: Memory) -> Tensor | float:
    """The exponentially weighted mean of past values; 0 before there are any."""
    return memory["sum"] / memory["weight"] if memory else 0.0


def remember(memory: Memory, f: Tensor, decay: float) -> Memory:
    """The memory with the values f added; a baseline for f must be read before that, or the gradient is biased."""
    value = f.detach().mean(dtype=torch.float64)
    past = memory if memory else {"sum": torch.zeros_like(value), "weight": torch.zeros_like(value)}
    return {
        "sum": decay * past["sum"] + (1 - decay) * value,
        "weight": decay * past["weight"] + (1 - decay),
    }


@validated
@dataclass(frozen=True, kw_only=True)
class ScoreFunction(Objective):
    """The ELBO by the score function: (1/L) sum_l (f_l - b_l) d log q(z_l|x), f = log p(x, z) - log q(z|x).

    `baseline` b is 0 (none), the running mean of f over past steps (running), or the mean of the other samples
    (leave_one_out, L > 1). Unbiased unless q's support depends on its parameters.
    """

    num_samples: Count = 1
    baseline: Literal["none", "running", "leave_one_out"] = "running"
    decay: Annotated[float, Interval(0, 0.9999), "of the running mean, per step"] = 0.9

    def __post_init__(self) -> None:
        if self.baseline == "leave_one_out" and self.num_samples < 2:
            raise ConfigError("objective: the leave_one_out baseline needs num_samples of at least 2")

    def bias(self, model: VAE) -> str | None:
        """Biased if the support of q depends on its parameters."""
        if not support_depends_on_parameters(model):
            return None
        return "score_function is biased if the support of q depends on its parameters; use sgvb_a or sgvb_b"

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The bound of each datum by estimator A; eps (L, M, J)."""
        q = model.posterior(x)
        z = q.transform(noise["eps"]).detach()
        log_q = sum_from(q.log_prob(z), 2)  # (L, M)
        log_p_x_given_z = model.log_likelihood(x, z)  # (L, M)
        ratio = log_ratio(log_q.detach(), model.prior, z)  # (L, M)
        f = log_p_x_given_z - ratio
        others = self.baseline == "leave_one_out"
        baseline: Tensor | float = leave_one_out(f) if others else 0.0
        if self.baseline == "running":
            baseline, memory = running_mean(memory), remember(memory, f, self.decay)
        kl = score_surrogate(ratio, log_q, leave_one_out(ratio) if others else 0.0)
        terms = {"log_p_x_given_z": log_p_x_given_z.mean(0), "kl": kl}
        surrogate = score_surrogate(f, log_q, baseline)
        return Estimate(surrogate.detach(), terms, surrogate), memory
