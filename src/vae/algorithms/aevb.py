"""Auto-encoding variational Bayes: algorithm 1 of Kingma & Welling 2013."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae.algorithms.base import State, Sums, check_finite
from vae.algorithms.optimizers import optimizer_step
from vae.data import Batch
from vae.models import Model
from vae.objectives import Memory, Objective
from vae.randomness import Draws, Noise

# The gradient of a step: it leaves p.grad and the buffers behind, and gives the new memory and the sums. All forms of
# a step (eager, compiled, data-parallel) differ in this alone.
Gradient = Callable[["AEVB", State, Batch, Draws], tuple[Memory, Sums]]


def eager(algorithm: "AEVB", state: State, batch: Batch, noise: Draws) -> tuple[Memory, Sums]:
    """The gradient by backpropagation, as PyTorch runs it: the specification of the other forms."""
    maximised, memory, sums = algorithm.values(state.model, batch, noise, state.memory, state.step)
    state.optimizer.zero_grad(set_to_none=True)
    (-maximised).backward()
    return memory, sums


@dataclass(frozen=True)
class AEVB:
    """One stochastic gradient step per minibatch on an objective, for encoder and decoder together."""

    objective: Objective
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = torch.optim.Adam
    reduction: Literal["mean", "sum"] = "mean"
    clip_grad_norm: float | None = None
    schedule: Callable[[int], float] | None = None  # the factor of the learning rate at a step
    autocast: torch.dtype | None = None  # the type of the networks' products, if it is not that of the parameters
    expand: Callable[[Tensor], Tensor] | None = None  # from stored pixels to images, if they are stored otherwise
    gradient: Gradient = eager
    score: str = "elbo"
    updates: int = 1  # made in a step

    def init(self, model: Model) -> State:
        """The state before the first step."""
        optimizer = self.optimizer(model.parameters())
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return State(model, optimizer)

    def noises(self, state: State, batch_size: int) -> dict[str, Noise]:
        """What is drawn for the next step: what the objective needs."""
        return self.objective.noises(state.model, batch_size)

    def values(
        self, model: Model, batch: Batch, noise: Draws, memory: Memory, step: int | Tensor
    ) -> tuple[Tensor, Memory, Sums]:
        """What a step maximises on a minibatch of M data, reduced over it; the memory; the sums.

        This is the whole mathematics of a step before its derivative, and every form of the gradient calls it.
        """
        images = batch.x if self.expand is None else self.expand(batch.x)
        with torch.autocast(images.device.type, self.autocast, enabled=self.autocast is not None):
            labelled, given = model.on(Batch(images, batch.y))
            estimate, memory = self.objective(labelled, given, noise, memory, step)
        total = estimate.surrogate.sum()
        values = {"elbo": estimate.elbo, **estimate.terms}
        if estimate.objective is not None:  # it is not the ELBO
            values["objective"] = estimate.objective
        sums = {name: value.detach().sum(dtype=torch.float64) for name, value in values.items()}
        return total if self.reduction == "sum" else total / len(images), memory, sums

    def step(self, state: State, batch: Batch, noise: Draws) -> Sums:
        """Ascend the objective on a minibatch, of stored pixels if `expand` is given.

        TrainingFailed if it is not finite, before any parameter changes. On CUDA looking at a number waits for the
        device, so there the trainer looks, at the end of an epoch and before a checkpoint.
        """
        memory, sums = self.gradient(self, state, batch, noise)
        if not batch.x.is_cuda:
            check_finite(sums, state.model, f"at step {state.step + 1}")
        self.update(state, memory)
        return sums

    def update(self, state: State, memory: Memory) -> None:
        """Move the parameters along their gradients, which are those of what is minimised."""
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), self.clip_grad_norm)
        if self.schedule is not None:
            for group in state.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.schedule(state.step)
        optimizer_step(state.optimizer)
        state.memory, state.step = memory, state.step + 1


class Values(nn.Module):
    """`AEVB.values` as the forward pass of a module: functional_call and DistributedDataParallel need one."""

    def __init__(self, algorithm: AEVB, model: Model) -> None:
        super().__init__()
        self.algorithm, self.model = algorithm, model

    def forward(self, *given: Any) -> tuple[Tensor, Memory, Sums]:
        """What `AEVB.values` gives for (batch, noise, memory, step)."""
        return self.algorithm.values(self.model, *given)
