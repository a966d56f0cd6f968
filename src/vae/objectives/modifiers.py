"""Modifiers turn one objective into another: the bound is reported unchanged, but is not what is maximised."""

from dataclasses import dataclass

import torch
from torch import Tensor

from vae.errors import UsageError
from vae.models import VAE
from vae.objectives.base import Estimate, Memory, Objective
from vae.randomness import Draws, Noise


@dataclass(frozen=True)
class Modifier(Objective):
    """An objective made of another, which it is but for what it defines itself."""

    objective: Objective

    @property
    def num_samples(self) -> int:
        """L of the wrapped objective."""
        return self.objective.num_samples

    def noises(self, model: VAE, batch_size: int) -> dict[str, Noise]:
        """Those of the wrapped objective."""
        return self.objective.noises(model, batch_size)

    def bias(self, model: VAE) -> str | None:
        """That of the wrapped objective."""
        return self.objective.bias(model)


@dataclass(frozen=True)
class SharedNoise(Modifier):
    """Draw one noise for all data of a minibatch, as some published code does.

    The estimate of each datum is distributed as before, and the gradient has the same mean, but the variance that it
    owes to the noise does not fall with M, the size of the minibatch.
    """

    def noises(self, model: VAE, batch_size: int) -> dict[str, Noise]:
        """Those of the wrapped objective for a single datum."""
        return {name: noise._replace(data_axis=None) for name, noise in self.objective.noises(model, 1).items()}

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The estimate of the wrapped objective; eps (L, 1, J)."""
        of_data = self.objective.noises(model, len(x))
        each = {name: draw.expand(of_data[name].shape) for name, draw in noise.items()}  # (L, M, J)
        return self.objective(model, x, each, memory, step)


@dataclass(frozen=True)
class WeightedKL(Modifier):
    """Maximise bound + KL - beta sum_j max(free_bits, KL_j), KL_j the minibatch's mean of latent j.

    beta is the weight of the KL (Higgins et al. 2017), rising linearly from 0 over the first `warm_up` steps (Sonderby
    et al. 2016). A KL_j below `free_bits` nats costs no less than `free_bits`, so that it is not pushed to 0 (Kingma et
    al. 2016, appendix C.8). UsageError if free bits are used with an objective whose KL is not a sum over latents.
    """

    beta: float = 1.0
    warm_up: int = 0  # steps
    free_bits: float = 0.0  # nats per latent

    def weight(self, step: int | Tensor) -> float | Tensor:
        """The weight of the KL at a step, which is a tensor in a compiled step."""
        if not self.warm_up:
            return self.beta
        return self.beta * (torch.as_tensor(step, dtype=torch.float64) / self.warm_up).clamp(max=1)

    def __call__(
        self, model: VAE, x: Tensor, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Estimate, Memory]:
        """The estimate of the wrapped objective, with another surrogate."""
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
        surrogate = estimate.surrogate - penalty  # (M,), both as a value and to be differentiated
        return estimate._replace(surrogate=surrogate, objective=surrogate), memory
