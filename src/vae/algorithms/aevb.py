"""Auto-encoding variational Bayes: algorithm 1 of Kingma & Welling 2013."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from vae.distributions import Noise
from vae.errors import TrainingFailed
from vae.models import VAE
from vae.objectives import Estimate, Memory, Objective


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


@dataclass(frozen=True)
class AEVB:
    """One stochastic gradient step a minibatch on an objective, for encoder and decoder together."""

    objective: Objective
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer]
    reduction: Literal["mean", "sum"] = "mean"
    clip_grad_norm: float | None = None
    schedule: Callable[[int], float] | None = None  # the factor of the learning rate at a step
    autocast: torch.dtype | None = None  # the dtype of the networks' products, where it is not the parameters'

    def init(self, model: VAE) -> State:
        """The state before the first step."""
        optimizer = self.optimizer(model.parameters())
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        return State(model, optimizer)

    def noise(self, state: State, batch_size: int) -> Noise:
        """What the next step needs as noise: eps of shape (L, M, J)."""
        kind, shape = state.model.noise
        return Noise(kind, (self.objective.num_samples, batch_size, *shape))

    def step(self, state: State, batch: Tensor, noise: Tensor) -> tuple[State, Info]:
        """Ascend the objective on a minibatch (M, *data_shape).

        TrainingFailed where it is not finite, before any parameter changes.
        """
        estimate, memory = self._estimate(state, batch, noise)
        total = estimate.surrogate.sum()
        state.optimizer.zero_grad(set_to_none=True)
        (-(total if self.reduction == "sum" else total / len(batch))).backward()
        if not torch.isfinite(total):  # surrogates carry their bound's NaN and infinity
            raise TrainingFailed(
                f"{_non_finite_term(estimate.terms)} is not finite at step {state.step + 1}; "
                f"{largest_gradient(state.model)}; try a smaller learning rate, or train.clip_grad_norm"
            )
        if self.clip_grad_norm is not None:
            nn.utils.clip_grad_norm_(state.model.parameters(), self.clip_grad_norm)
        if self.schedule is not None:
            for group in state.optimizer.param_groups:
                group["lr"] = group["initial_lr"] * self.schedule(state.step)
        state.optimizer.step()
        state.memory, state.step = memory, state.step + 1
        values = {"elbo": estimate.elbo, **estimate.terms}
        if estimate.objective is not None:
            values["objective"] = estimate.objective
        sums = {name: value.detach().sum(dtype=torch.float64) for name, value in values.items()}
        return state, Info(sums.get("objective", sums["elbo"]), sums)

    def _estimate(self, state: State, batch: Tensor, noise: Tensor) -> tuple[Estimate, Memory]:
        with torch.autocast(batch.device.type, self.autocast, enabled=self.autocast is not None):
            return self.objective(state.model, batch, noise, state.memory, state.step)


def _non_finite_term(terms: dict[str, Tensor]) -> str:
    return next((name for name, value in terms.items() if not torch.isfinite(value).all()), "the objective")


def largest_gradient(model: nn.Module) -> str:
    """The parameter with the largest finite gradient, and how many gradients are not finite, in words."""
    sizes = {name: p.grad.abs().max().item() for name, p in model.named_parameters() if p.grad is not None}
    finite = {name: size for name, size in sizes.items() if size < float("inf")}
    bad = len(sizes) - len(finite)
    if not finite:
        return f"the gradients of all {bad} parameters are not finite"
    name = max(finite, key=finite.__getitem__)
    return f"the largest finite gradient is {finite[name]:.3g}, in {name}" + (f" ({bad} are not finite)" if bad else "")
