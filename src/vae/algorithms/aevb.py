"""Auto-encoding variational Bayes: algorithm 1 of Kingma & Welling 2013."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae.algorithms.optimizers import optimizer_step
from vae.distributions import Noise
from vae.errors import TrainingFailed
from vae.models import VAE
from vae.objectives import Memory, Objective


@dataclass
class State:
    """All that the next step depends on, besides its minibatch and noise. `step` updates the modules in place."""

    model: VAE
    optimizer: Optimizer
    memory: Memory = field(default_factory=dict)
    step: int = 0  # updates made


class Info(NamedTuple):
    """What a step has to report: sums over the minibatch, nats, of values from before its update."""

    objective: Tensor  # what was maximised
    sums: dict[str, Tensor]  # the ELBO and its terms; the objective too where it is not the ELBO

    @classmethod
    def of(cls, sums: dict[str, Tensor]) -> "Info":
        """The report of these sums."""
        return cls(sums.get("objective", sums["elbo"]), sums)


@dataclass(frozen=True)
class AEVB:
    """One stochastic gradient step a minibatch on an objective, for encoder and decoder together."""

    objective: Objective
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    reduction: Literal["mean", "sum"] = "mean"
    clip_grad_norm: float | None = None
    schedule: Callable[[int], float] | None = None  # the factor of the learning rate at a step
    autocast: torch.dtype | None = None  # the dtype of the networks' products, where it is not the parameters'
    expand: Callable[[Tensor], Tensor] | None = None  # from stored pixels to images, where they are stored otherwise

    def init(self, model: VAE) -> State:
        """The state before the first step."""
        return State(model, self.init_optimizer(model.parameters()))

    def init_optimizer(self, parameters: Iterable[nn.Parameter]) -> Optimizer:
        """The optimizer before the first step, over these parameters."""
        optimizer = self.optimizer(parameters)
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return optimizer

    def noise(self, state: State, batch_size: int) -> Noise:
        """What the next step needs as noise: eps of shape (L, M, J)."""
        kind, shape = state.model.noise
        return Noise(kind, (self.objective.num_samples, batch_size, *shape))

    def values(
        self, model: VAE, batch: Tensor, noise: Tensor, memory: Memory, step: int | Tensor
    ) -> tuple[Tensor, Memory, dict[str, Tensor]]:
        """What a step maximises on a minibatch (M, *data_shape), reduced over it; the memory; the sums that Info has.

        The whole mathematics of a step before its derivative: every form of it, plain or fast, calls this function.
        """
        images = batch if self.expand is None else self.expand(batch)
        with torch.autocast(batch.device.type, self.autocast, enabled=self.autocast is not None):
            estimate, memory = self.objective(model, images, noise, memory, step)
        total = estimate.surrogate.sum()
        values = {"elbo": estimate.elbo, **estimate.terms}
        if estimate.objective is not None:
            values["objective"] = estimate.objective
        sums = {name: value.detach().sum(dtype=torch.float64) for name, value in values.items()}
        return total if self.reduction == "sum" else total / len(batch), memory, sums

    def step(self, state: State, batch: Tensor, noise: Tensor) -> tuple[State, Info]:
        """Ascend the objective on a minibatch (M, *data_shape), of stored pixels where `expand` is given.

        TrainingFailed where it is not finite, before any parameter changes.
        """
        maximised, memory, sums = self.values(state.model, batch, noise, state.memory, state.step)
        state.optimizer.zero_grad(set_to_none=True)
        (-maximised).backward()
        info = Info.of(sums)
        check_finite(state, info)
        self.update(state, memory)
        return state, info

    def update(self, state: State, memory: Memory) -> None:
        """Move the parameters along their gradients, which are those of what is minimised."""
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), self.clip_grad_norm)
        self.schedule_rate(state.optimizer, state.step)
        optimizer_step(state.optimizer)
        state.memory, state.step = memory, state.step + 1

    def schedule_rate(self, optimizer: Optimizer, step: int) -> None:
        """Set the learning rate of a step."""
        if self.schedule is not None:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.schedule(step)


def check_finite(state: State, info: Info) -> None:
    """TrainingFailed where what was maximised is not finite: which term, and the largest gradient."""
    if not math.isfinite(info.objective):  # an objective carries the NaN and infinity of its terms
        raise TrainingFailed(
            f"{_non_finite_term(info.sums)} is not finite at step {state.step + 1}; "
            f"{largest_gradient(state.model)}; try a smaller learning rate, or train.clip_grad_norm"
        )


def _non_finite_term(sums: dict[str, Tensor]) -> str:
    terms = (name for name in sums if name not in ("elbo", "objective"))
    return next((name for name in terms if not torch.isfinite(sums[name])), "the objective")


def largest_gradient(model: nn.Module) -> str:
    """The parameter with the largest finite gradient, and how many gradients are not finite, in words."""
    sizes = {name: p.grad.abs().max().item() for name, p in model.named_parameters() if p.grad is not None}
    finite = {name: size for name, size in sizes.items() if size < float("inf")}
    bad = len(sizes) - len(finite)
    if not sizes:  # of runs that are trained together, whose gradients are one
        return "its gradients are not at hand"
    if not finite:
        return f"the gradients of all {bad} parameters are not finite"
    name = max(finite, key=finite.__getitem__)
    return f"the largest finite gradient is {finite[name]:.3g}, in {name}" + (f" ({bad} are not finite)" if bad else "")
