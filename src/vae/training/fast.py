"""Fast forms of a training step: transformations of one pure function, the gradient of what AEVB maximises.

The plain step of `vae.algorithms.AEVB` is the specification. Here its mathematics (`AEVB.values`, the only copy) is
made a function of tensors alone, whose derivative is then compiled (`Compiled`) or mapped over many runs (replicas).
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx

from vae.algorithms import AEVB, Info, State, check_finite
from vae.models import VAE
from vae.networks import DECODERS, ENCODERS
from vae.objectives import Memory
from vae.schema import describe


class Gradient(NamedTuple):
    """What the pure function of a step gives."""

    parameters: list[Tensor]  # gradients of what is minimised, in the model's order
    buffers: list[Tensor]  # as they are after the step (batch normalisation)
    memory: Memory
    sums: dict[str, Tensor]


class Values(nn.Module):
    """`AEVB.values` as the forward pass of a module, whose parameters `functional_call` can replace."""

    def __init__(self, algorithm: AEVB, model: VAE) -> None:
        super().__init__()
        self.algorithm, self.model = algorithm, model

    def forward(self, *given: Any) -> tuple[Tensor, Memory, dict[str, Tensor]]:
        """What is maximised, the memory, the sums."""
        return self.algorithm.values(self.model, *given)


def pure_gradient(algorithm: AEVB, model: VAE) -> Callable[..., Gradient]:
    """The gradient as a function (parameters, buffers, batch, noise, memory, step) -> Gradient, without side effects.

    `parameters` and `buffers` are lists in the model's order; `step` is a tensor, so that a program can count.
    """
    values = Values(algorithm, model)
    names, buffer_names = [n for n, _ in values.named_parameters()], [n for n, _ in values.named_buffers()]

    def minimised(
        parameters: list[Tensor], buffers: list[Tensor], batch: Tensor, noise: Tensor, memory: Memory, step: Tensor
    ) -> tuple[Tensor, tuple[list[Tensor], Memory, dict[str, Tensor]]]:
        own = dict(zip(buffer_names, (b.clone() for b in buffers), strict=True))  # a module may write into them
        tensors = {**dict(zip(names, parameters, strict=True)), **own}
        maximised, memory, sums = functional_call(values, tensors, (batch, noise, memory, step))
        return -maximised, ([tensors[n] for n in buffer_names], memory, sums)

    derivative = grad(minimised, has_aux=True)

    def gradient(*given: Any) -> Gradient:
        parameters, (buffers, memory, sums) = derivative(*given)
        return Gradient(parameters, buffers, memory, sums)

    return gradient


# ------------------------------------------------------------------------------------- compiled

STEPS_THAT_PAY = 20_000


def chosen_form(setting: str, model: VAE, steps: int, source: Any) -> str:
    """`compiled` or `plain`: a function of the config, the length of the run and the machine, never of a timing.

    Compiling takes seconds and saves about a millisecond a step. It is left to `always` where a network is the user's
    own, which may not bear being traced.
    """
    pays = setting == "always" or (setting == "auto" and steps >= STEPS_THAT_PAY and not has_own_network(model))
    return "compiled" if pays and source.batch_size is not None else "plain"


def has_own_network(model: VAE) -> bool:
    """Whether the encoder or the decoder is a module of the user's."""
    pairs = ((model.encoder, ENCODERS), (model.decoder, DECODERS))
    return any(describe(part, table).name == "module" for part, table in pairs)


@dataclass
class Compiled:
    """AEVB with the gradient of a minibatch of `batch_size` compiled: forward and backward fused by torch.compile.

    A minibatch of another size (the last of an epoch) takes the plain step. Where the gradient cannot be compiled (no
    compiler, a module that cannot be traced), one line says so and all steps are plain.
    """

    plain: AEVB
    batch_size: int
    failed: bool = False
    _programs: dict[Any, Callable[..., Gradient]] = field(default_factory=dict)  # by what the memory holds

    @property
    def form(self) -> str:
        """What the steps are: `compiled`, or `plain` where that failed."""
        return "plain" if self.failed else "compiled"

    def init(self, model: VAE) -> State:
        """As the plain form."""
        return self.plain.init(model)

    def noise(self, state: State, batch_size: int) -> Any:
        """As the plain form."""
        return self.plain.noise(state, batch_size)

    def step(self, state: State, batch: Tensor, noise: Tensor) -> tuple[State, Info]:
        """As the plain form, up to rounding."""
        if len(batch) != self.batch_size or self.failed:
            return self.plain.step(state, batch, noise)
        parameters, buffers = list(state.model.parameters()), list(state.model.buffers())
        given = [p.detach() for p in parameters], buffers, batch, noise, state.memory, torch.tensor(state.step)
        compiled = self._program(given, state)
        if compiled is None:
            return self.plain.step(state, batch, noise)
        with torch.no_grad():
            gradient = compiled(*given)
            torch._foreach_copy_(buffers, gradient.buffers) if buffers else None
        for parameter, derivative in zip(parameters, gradient.parameters, strict=True):
            parameter.grad = derivative
        info = Info.of(gradient.sums)
        check_finite(state, info)
        self.plain.update(state, gradient.memory)
        return state, info

    def _program(self, given: Sequence[Any], state: State) -> Callable[..., Gradient] | None:
        kind = tuple(state.memory)
        if not self.failed and kind not in self._programs:
            try:
                self._programs[kind] = program(pure_gradient(self.plain, state.model), given)
            except Exception as error:  # whatever a compiler, or a user's own module, may raise
                self.failed = True
                reason = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(f"the step runs as it is, for it cannot be compiled: {reason[0]}", stacklevel=2)
        return self._programs.get(kind)


def program(function: Callable[..., Any], given: Sequence[Any]) -> Callable[..., Any]:
    """A function of tensors (in lists and dictionaries) compiled for tensors of these shapes.

    It is traced first, so that the compiler sees products and sums only, of tensors that are all arguments; so it
    needs none of the checks by which compiled Python guards against changes of what it has read (they cost a tenth of
    a step).
    """
    graph = make_fx(function)(*given)
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "fallback_random": True}
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    with torch.no_grad():
        compiled(*given)  # compiles it now: the function is pure
    return compiled
