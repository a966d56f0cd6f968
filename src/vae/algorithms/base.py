"""What every algorithm is: an initial state, and a step that updates it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from vae.data import Batch
from vae.errors import TrainingFailed
from vae.models import Model
from vae.objectives import Memory
from vae.randomness import Draws, Noise

Sums = dict[str, Tensor]  # by name, over a minibatch, nats, from before the update: what a log line is made of


@dataclass
class State:
    """All that the next step depends on, besides its minibatch and noise; a step updates it in place."""

    model: Model
    optimizer: Optimizer
    memory: Memory = field(default_factory=dict)  # what the objective remembers
    step: int = 0  # updates made


class Algorithm(Protocol):
    """How a model is trained."""

    @property
    def score(self) -> str:
        """The value in Sums that chooses the best checkpoint."""

    def init(self, model: Model) -> State:
        """The state before the first step."""

    def noises(self, state: State, batch_size: int) -> dict[str, Noise]:
        """What is drawn for the next step, by name."""

    def step(self, state: State, batch: Batch, noise: Draws) -> Sums:
        """Update the state by a minibatch. TrainingFailed if what is maximised is not finite."""


def check_finite(sums: Mapping[str, Tensor], model: nn.Module, when: str) -> None:
    """TrainingFailed if a sum is not finite: which term, when ("at step 7"), and the largest gradient."""
    bad = [name for name in sums if not math.isfinite(sums[name])]
    if not bad:
        return
    term = next((name for name in bad if name not in ("elbo", "objective")), "the objective")
    raise TrainingFailed(
        f"{term} is not finite {when}; {largest_gradient(model)}; try a smaller learning rate, or train.clip_grad_norm"
    )


def largest_gradient(model: nn.Module) -> str:
    """The parameter with the largest finite gradient, and how many gradients are not finite, in words."""
    sizes = {name: p.grad.abs().max().item() for name, p in model.named_parameters() if p.grad is not None}
    finite = {name: size for name, size in sizes.items() if size < float("inf")}
    bad = len(sizes) - len(finite)
    if not finite:
        return f"the gradients of all {bad} parameters are not finite"
    name = max(finite, key=finite.__getitem__)
    return f"the largest finite gradient is {finite[name]:.3g}, in {name}" + (f" ({bad} are not finite)" if bad else "")
