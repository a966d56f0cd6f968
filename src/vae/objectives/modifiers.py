"""Modifiers take an objective and give one; the bound is reported as it was, and what is maximised is no bound."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae.errors import UsageError
from vae.models import VAE
from vae.objectives.base import Estimate, Memory, Objective


@dataclass(frozen=True)
class WeightedKL:
    """Maximise bound + KL - beta sum_j max(free_bits, KL_j), KL_j the minibatch's mean of latent j.

    beta weighs the KL (Higgins et al. 2017); over the first `warm_up` steps it rises linearly from 0 (Sonderby et al.
    2016). A latent's KL below `free_bits` nats costs the same as that many, so that it is not pushed to 0 (Kingma et
    al. 2016, appendix C.8). UsageError where free bits are asked of an objective whose KL is no sum over latents.
    """

    objective: Objective
    beta: float = 1.0
    warm_up: int = 0  # steps
    free_bits: float = 0.0  # nats a latent

    @property
    def num_samples(self) -> int:
        """L of the objective within."""
        return self.objective.num_samples

    def bias(self, model: VAE) -> str | None:
        """That of the objective within."""
        return self.objective.bias(model)

    def weight(self, step: int | Tensor) -> float | Tensor:
        """The weight of the KL at a step; a tensor of the step gives one, so that a captured step can count."""
        if not self.warm_up:
            return self.beta
        return self.beta * torch.as_tensor(step / self.warm_up, dtype=torch.float64).clamp(max=1)

    def __call__(
        self, model: VAE, x: Tensor, noise: Tensor, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The estimate of the objective within, another surrogate."""
        estimate, memory = self.objective(model, x, noise, memory, step)
        weight, kl = self.weight(step), estimate.terms["kl"]
        penalty = (weight - 1) * kl  # (M,)
        if self.free_bits:
            if estimate.kl_elements is None:
                raise UsageError(
                    "modifiers.free_bits needs the KL of each latent: use the objective sgvb_b, and a diagonal q"
                )
            of_latents = estimate.kl_elements.mean(0)  # (J,)
            penalty = penalty + weight * (self.free_bits - of_latents).clamp(min=0).sum()
        surrogate = estimate.surrogate - penalty  # (M,), by derivative and by value
        return estimate._replace(surrogate=surrogate, objective=surrogate), memory
