"""The optimizers of torch.optim that step on a gradient alone, by name, and schedules of the learning rate."""

import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.adam import adam

from vae.errors import ConfigError
from vae.schema import Count, NonNegative, Positive

# Switches of how an optimizer computes, not of what: the library sets `fused` itself, and checkpoints leave them out.
HOW = {"foreach", "fused", "capturable", "differentiable", "maximize"}


class OptimizerRow:
    """A class of torch.optim as a row of the table: its keyword parameters with defaults are its options."""

    def __init__(self, cls: type[Optimizer]) -> None:
        self.cls = cls
        self.__doc__ = f"torch.optim.{cls.__name__}."
        defaults = {
            p.name: p.default
            for p in list(inspect.signature(cls).parameters.values())[1:]
            if p.name not in HOW and _is_number(p.default)
        }
        self.option_types = {name: _type(name, default) for name, default in defaults.items()}
        self.__signature__ = inspect.Signature(
            [
                inspect.Parameter("parameters", inspect.Parameter.POSITIONAL_ONLY),
                *(
                    inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=_value(default))
                    for name, default in defaults.items()
                ),
            ]
        )

    def __call__(self, parameters: Iterable[nn.Parameter], /, **options: Any) -> Optimizer:
        """The optimizer over the parameters, in its fused form where it has one. ConfigError where torch refuses."""
        parameters = list(parameters)
        fused = "fused" in inspect.signature(self.cls).parameters
        if self.cls is torch.optim.Adagrad and any(p.is_cuda for p in parameters):
            fused = False  # its fused form is for the CPU
        try:
            return self.cls(parameters, **options, **({"fused": True} if fused else {}))  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(f"train.optimizer: torch.optim.{self.cls.__name__} says: {error}") from None


def optimizer_step(optimizer: Optimizer) -> None:
    """`optimizer.step()`, bit for bit; of fused Adam and AdamW without what torch does around it at each call.

    Hooks, profiling and the like took 5 to 10 % of a training step on a CPU.
    """
    group, *others = optimizer.param_groups
    parameters = [p for p in group["params"] if p.grad is not None]
    states = [optimizer.state[p] for p in parameters]
    if others or not isinstance(optimizer, torch.optim.Adam) or not group["fused"] or not all(states):
        optimizer.step()
        return
    same = "amsgrad", "lr", "weight_decay", "eps", "maximize", "capturable", "decoupled_weight_decay"
    options: dict[str, Any] = {name: group[name] for name in same}
    options["beta1"], options["beta2"] = group["betas"]
    moments, squares, counts = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
    gradients: list[Any] = [p.grad for p in parameters]
    with torch.no_grad():
        adam(parameters, gradients, moments, squares, largest, counts, fused=True, **options)


def _is_number(default: Any) -> bool:
    """A number, a switch, or a tuple of numbers."""
    return all(map(_is_number, default)) if isinstance(default, tuple) else isinstance(default, bool | int | float)


def _value(default: Any) -> Any:
    if isinstance(default, tuple):
        return tuple(map(_value, default))
    return float(default) if type(default) is int else default


def _type(name: str, default: Any) -> Any:
    if isinstance(default, bool):
        return bool
    if isinstance(default, tuple):
        return tuple[(float,) * len(default)]  # type: ignore[misc]
    return Positive if name == "lr" else NonNegative if default >= 0 else float


OPTIMIZERS: dict[str, OptimizerRow] = {
    "adam": OptimizerRow(torch.optim.Adam),
    "adamw": OptimizerRow(torch.optim.AdamW),
    "adagrad": OptimizerRow(torch.optim.Adagrad),
    "sgd": OptimizerRow(torch.optim.SGD),
    "rmsprop": OptimizerRow(torch.optim.RMSprop),
    "adadelta": OptimizerRow(torch.optim.Adadelta),
    "adamax": OptimizerRow(torch.optim.Adamax),
    "nadam": OptimizerRow(torch.optim.NAdam),
    "radam": OptimizerRow(torch.optim.RAdam),
    "asgd": OptimizerRow(torch.optim.ASGD),
    "rprop": OptimizerRow(torch.optim.Rprop),
    "adafactor": OptimizerRow(torch.optim.Adafactor),
}


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The learning rate stays as it is."""

    def __call__(self, epoch: float, epochs: float) -> float:
        """1."""
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Step:
    """The learning rate is multiplied by gamma every so many epochs."""

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


# A schedule is a pure function of the epoch (a fraction within one) and the epochs of the run, so a resumed run has
# nothing to restore.
SCHEDULES: dict[str, Callable[..., Callable[[float, float], float]]] = {
    "constant": Constant,
    "step": Step,
    "exponential": Exponential,
    "cosine": Cosine,
    "warm_up": WarmUp,
}
