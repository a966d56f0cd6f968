"""Fast forms of a training step: transformations of one pure function, the gradient of what AEVB maximises.

The plain step of `vae.algorithms.AEVB` is the specification. Here its mathematics (`AEVB.values`, the only copy) is
made a function of tensors alone, whose derivative is then compiled (`Compiled`) or mapped over many runs (replicas).
"""

import logging
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx

from vae.algorithms import AEVB, Info, State, check_finite
from vae.distributions import Noise
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


class _Values(nn.Module):
    """`AEVB.values` as the forward pass of a module, whose parameters `functional_call` can replace."""

    def __init__(self, algorithm: AEVB, model: VAE) -> None:
        super().__init__()
        self.algorithm, self.model = algorithm, model

    def forward(self, *given: Any) -> tuple[Tensor, Memory, dict[str, Tensor]]:
        return self.algorithm.values(self.model, *given)


def pure_gradient(algorithm: AEVB, model: VAE) -> Callable[..., Gradient]:
    """The gradient as a function (parameters, buffers, batch, noise, memory, step) -> Gradient, without side effects.

    `parameters` and `buffers` are lists in the model's order; `step` is a tensor, so that a program can count.
    """
    values = _Values(algorithm, model)
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
    own = any(
        describe(part, table).name == "module" for part, table in ((model.encoder, ENCODERS), (model.decoder, DECODERS))
    )
    pays = setting == "always" or (setting == "auto" and steps >= STEPS_THAT_PAY and not own)
    return "compiled" if pays and source.batch_size is not None else "plain"


class Program:
    """A pure gradient that is compiled for minibatches of one size, `compiles`, and runs as it is for others.

    Where it cannot be compiled (no compiler, a module that cannot be traced), one line says so, and it runs as it is.
    """

    def __init__(self, gradient: Callable[..., Gradient], compiles: int | None) -> None:
        self.gradient, self.compiles = gradient, compiles
        self._compiled: dict[Any, Callable[..., Gradient]] = {}  # by what the memory holds

    @property
    def form(self) -> str:
        """`compiled`, or `plain` where that was not asked for or has failed."""
        return "plain" if self.compiles is None else "compiled"

    def __call__(self, batch_size: int, *given: Any) -> Gradient:
        """The gradient at these parameters, buffers, batch, noise, memory and step."""
        compiled = self.ready(batch_size, *given)
        with torch.no_grad():
            return self.gradient(*given) if compiled is None else compiled(*given)

    def ready(self, batch_size: int, *given: Any) -> Callable[..., Gradient] | None:
        """The compiled function where there is to be one, else None."""
        if batch_size != self.compiles:
            return None
        kind = tuple(given[-2])
        if kind not in self._compiled:
            try:
                self._compiled[kind] = program(self.gradient, given)
            except Exception as error:  # whatever a compiler, or a user's own module, may raise
                self.compiles = None
                reason = str(error).strip().splitlines() or [type(error).__name__]
                warnings.warn(f"the step runs as it is, for it cannot be compiled: {reason[0]}", stacklevel=2)
        return self._compiled.get(kind)


class Compiled:
    """AEVB with the gradient of a minibatch of `batch_size` compiled; one of another size takes the plain step."""

    def __init__(self, plain: AEVB, state: State, batch_size: int) -> None:
        self.plain = plain
        self.program = Program(pure_gradient(plain, state.model), batch_size)

    @property
    def form(self) -> str:
        """What the steps are."""
        return self.program.form

    def noise(self, state: State, batch_size: int) -> Noise:
        """As the plain form."""
        return self.plain.noise(state, batch_size)

    def step(self, state: State, batch: Tensor, noise: Tensor) -> tuple[State, Info]:
        """As the plain form, up to rounding."""
        parameters, buffers = list(state.model.parameters()), list(state.model.buffers())
        given = [p.detach() for p in parameters], buffers, batch, noise, state.memory, torch.tensor(state.step)
        compiled = self.program.ready(len(batch), *given)
        if compiled is None:
            return self.plain.step(state, batch, noise)
        with torch.no_grad():
            gradient = compiled(*given)
            for buffer, after in zip(buffers, gradient.buffers, strict=True):
                buffer.copy_(after)
        for parameter, derivative in zip(parameters, gradient.parameters, strict=True):
            parameter.grad = derivative
        info = Info.of(gradient.sums)
        check_finite(state, info)
        self.plain.update(state, gradient.memory)
        return state, info


def program(function: Callable[..., Any], given: Sequence[Any]) -> Callable[..., Any]:
    """A function of tensors (in lists and dictionaries) compiled for tensors of these shapes.

    It is traced first, so that the compiler sees products and sums only, of tensors that are all arguments; so it
    needs none of the checks by which compiled Python guards against changes of what it has read (they cost a tenth of
    a step).
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it tells of a missing CUDA on any CPU
    graph = make_fx(function)(*given)
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "fallback_random": True}
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    with torch.no_grad():
        compiled(*given)  # compiles it now: the function is pure
    return compiled
