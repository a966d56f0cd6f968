"""The optimizers of torch.optim that need nothing but a gradient, by name."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.adam import adam

from vae.errors import ConfigError
from vae.schema import NonNegative, Positive

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
        """The optimizer over the parameters, fused if it has such a form. ConfigError if torch refuses the options."""
        parameters = list(parameters)
        fused = "fused" in inspect.signature(self.cls).parameters
        if self.cls is torch.optim.Adagrad and any(p.is_cuda for p in parameters):
            fused = False  # its fused form is for the CPU
        try:
            return self.cls(parameters, **options, **({"fused": True} if fused else {}))  # type: ignore[arg-type]
        except ValueError as error:
            raise ConfigError(f"train.optimizer: torch.optim.{self.cls.__name__} refuses: {error}") from None


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
    known = isinstance(optimizer, torch.optim.Adam) and group["fused"] and group.keys() <= _KNOWN
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
