"""Modifiers take an objective and give one; the bound is reported as it was, and what is maximised is no bound."""

from dataclasses import dataclass

from torch import Tensor

from vae.models import VAE
from vae.objectives.base import Estimate, Memory, Objective


@dataclass(frozen=True)
class Beta:
    """Maximise bound - (beta - 1) KL: the KL weighs beta instead of 1 (Higgins et al. 2017).

    Over the first `warm_up` steps the weight rises linearly from 0 to beta (Sonderby et al. 2016).
    """

    objective: Objective
    beta: float
    warm_up: int = 0  # steps

    @property
    def num_samples(self) -> int:
        """L of the objective within."""
        return self.objective.num_samples

    def weight(self, step: int) -> float:
        """The weight of the KL at a step."""
        return self.beta * min(1.0, step / self.warm_up) if self.warm_up else self.beta

    def __call__(self, model: VAE, x: Tensor, noise: Tensor, memory: Memory, step: int) -> tuple[Estimate, Memory]:
        """The estimate of the objective within, another surrogate."""
        estimate, memory = self.objective(model, x, noise, memory, step)
        penalty = (self.weight(step) - 1) * estimate.terms["kl"]
        value = estimate.bound if estimate.objective is None else estimate.objective
        return estimate._replace(surrogate=estimate.surrogate - penalty, objective=value - penalty), memory
