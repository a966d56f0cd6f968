"""Schedules of the learning rate.

A schedule is a pure function of the epoch (a fraction within one) and the epochs of the run in all, so a resumed run
has nothing to restore. It gives the factor of the learning rate; its keyword-only parameters are its options.
"""

import math
from collections.abc import Callable

from vae.schema import Count, NonNegative, Positive


def constant(epoch: float, total: float) -> float:
    """The learning rate stays as it is."""
    return 1.0


def step(epoch: float, total: float, *, every: Count = 10, gamma: Positive = 0.5) -> float:
    """The learning rate is multiplied by gamma every `every` epochs."""
    return gamma ** (epoch // every)


def exponential(epoch: float, total: float, *, gamma: Positive = 0.95) -> float:
    """The learning rate is multiplied by gamma each epoch."""
    return gamma ** math.floor(epoch)


def cosine(epoch: float, total: float, *, final: NonNegative = 0.0) -> float:
    """The learning rate falls along half a cosine to `final` times its value at the end of the run."""
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(1.0, epoch / total)))


def warm_up(epoch: float, total: float, *, epochs: Positive = 1.0) -> float:
    """The learning rate rises linearly over the first epochs, then stays."""
    return min(1.0, max(epoch, 1e-3 * epochs) / epochs)  # never 0


def delayed(epoch: float, total: float, *, epochs: Positive = 0.02) -> float:
    """The learning rate is 0 over the first epochs, in which Adagrad and the like begin to sum squared gradients."""
    return float(epoch >= epochs)


SCHEDULES: dict[str, Callable[..., float]] = {
    "constant": constant,
    "step": step,
    "exponential": exponential,
    "cosine": cosine,
    "warm_up": warm_up,
    "delayed": delayed,
}
