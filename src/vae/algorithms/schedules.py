"""Schedules of the learning rate.

A schedule is a pure function of the epoch (a fraction within one) and the epochs of the run, so a resumed run has
nothing to restore.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from vae.schema import Count, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The learning rate stays as it is."""

    def __call__(self, epoch: float, epochs: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class StepDecay:
    """The learning rate is multiplied by gamma every `every` epochs."""

    every: Count = 10
    gamma: Positive = 0.5

    def __call__(self, epoch: float, epochs: float) -> float:
        """gamma^floor(epoch / every)."""
        return self.gamma ** (epoch // self.every)


@dataclass(frozen=True, kw_only=True)
class Exponential:
    """The learning rate is multiplied by gamma each epoch."""

    gamma: Positive = 0.95

    def __call__(self, epoch: float, epochs: float) -> float:
        """gamma^floor(epoch)."""
        return self.gamma ** math.floor(epoch)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """The learning rate falls along half a cosine to `final` times its value at the end of the run."""

    final: NonNegative = 0.0

    def __call__(self, epoch: float, epochs: float) -> float:
        """final + (1 - final) (1 + cos(pi epoch / epochs)) / 2."""
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / epochs)))


@dataclass(frozen=True, kw_only=True)
class WarmUp:
    """The learning rate rises linearly over the first epochs, then stays."""

    epochs: Positive = 1.0

    def __call__(self, epoch: float, epochs: float) -> float:
        """min(1, epoch / self.epochs), and never 0."""
        return min(1.0, max(epoch, 1e-3 * self.epochs) / self.epochs)


SCHEDULES: dict[str, Callable[..., Callable[[float, float], float]]] = {
    "constant": Constant,
    "step": StepDecay,
    "exponential": Exponential,
    "cosine": Cosine,
    "warm_up": WarmUp,
}
