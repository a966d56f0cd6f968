"""The optimizers of torch.optim that need nothing but a gradient, by name."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn, optim
from torch.optim import Optimizer
from torch.optim.adam import adam

from vae.errors import ConfigError
from vae.schema import NonNegative, Positive, fitted

# Switches of how an optimizer computes, not of what: the library sets `fused` itself, and checkpoints leave them out.
HOW = {"foreach", "fused", "capturable", "differentiable", "maximize"}


class OptimizerRow:
    """A class of torch.optim as a row of the table: its parameters whose defaults are numbers are its options."""

    def __init__(self, cls: type[Optimizer]) -> None:
        self.cls, self.__doc__ = cls, f"torch.optim.{cls.__name__}."
        first, *others = inspect.signature(cls).parameters.values()
        types = {p.name: _type(p.name, p.default) for p in others if p.name not in HOW}
        self.option_types = {name: type_ for name, type_ in types.items() if type_ is not None}
        options = (p for p in others if p.name in self.option_types)
        self.__signature__ = inspect.Signature(
            [first, *(p.replace(kind=p.KEYWORD_ONLY, default=fitted(types[p.name], p.default)) for p in options)]
        )

    def __call__(self, params: Iterable[nn.Parameter], **options: Any) -> Optimizer:
        """The optimizer over the parameters, fused if it has such a form. ConfigError if torch refuses the options."""
        params = list(params)
        only_for_cpu = self.cls is optim.Adagrad and any(p.is_cuda for p in params)
        if "fused" in inspect.signature(self.cls).parameters and not only_for_cpu:
            options["fused"] = True
        try:
            return self.cls(params, **options)
        except ValueError as error:
            raise ConfigError(f"train.optimizer: torch.optim.{self.cls.__name__} refuses: {error}") from None


def _type(name: str, default: Any) -> Any:
    """The type of an option, by its default; None if that is no number, switch or tuple of numbers."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, int | float):
        return Positive if name == "lr" else NonNegative if default >= 0 else float
    numbers = isinstance(default, tuple) and all(isinstance(value, int | float) for value in default)
    return tuple[(float,) * len(default)] if numbers else None  # type: ignore[misc]


_PASSED_ON = ("amsgrad", "lr", "weight_decay", "eps", "maximize", "capturable", "decoupled_weight_decay")
_KNOWN = {*_PASSED_ON, "params", "betas", "fused", "foreach", "differentiable", "initial_lr"}


def optimizer_step(optimizer: Optimizer) -> None:
    """`optimizer.step()`, bit for bit; for fused Adam and AdamW without the work that torch does around each call.

    Hooks, profiling and the like took 5 to 10 % of a training step on a CPU. An optimizer with an option that is not
    known here (a newer torch may have one) makes its own step.
    """
    group, *others = optimizer.param_groups
    parameters = [p for p in group["params"] if p.grad is not None]
    states = [optimizer.state[p] for p in parameters]
    known = isinstance(optimizer, optim.Adam) and group["fused"] and group.keys() <= _KNOWN
    if others or not known or not all(states):
        optimizer.step()
        return
    options: dict[str, Any] = {name: group[name] for name in _PASSED_ON}
    options["beta1"], options["beta2"] = group["betas"]
    moments, squares, counts = ([state[name] for state in states] for name in ("exp_avg", "exp_avg_sq", "step"))
    largest = [state["max_exp_avg_sq"] for state in states] if group["amsgrad"] else []
    gradients: list[Any] = [p.grad for p in parameters]
    with torch.no_grad():
        adam(parameters, gradients, moments, squares, largest, counts, fused=True, **options)


_CLASSES = (
    optim.Adam, optim.AdamW, optim.Adagrad, optim.SGD, optim.RMSprop, optim.Adadelta, optim.Adamax, optim.NAdam,
    optim.RAdam, optim.ASGD, optim.Rprop, optim.Adafactor,
)  # fmt: skip
OPTIMIZERS = {cls.__name__.lower(): OptimizerRow(cls) for cls in _CLASSES}
