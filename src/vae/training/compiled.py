"""The gradient of a step as a compiled program.

The mathematics of a step (`AEVB.values`, the only copy) is made a function of tensors alone, and its derivative is
traced and compiled for minibatches of one size; minibatches of another size take the eager gradient.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx

from vae.algorithms import AEVB, State, Sums, Values, eager
from vae.data import Batch
from vae.models import Model
from vae.objectives import Memory
from vae.randomness import Draws, seeded


class Pure(NamedTuple):
    """What the pure function of a step gives."""

    gradients: list[Tensor]  # of what is minimised, in the order of the model's parameters
    buffers: list[Tensor]  # as they are after the step (batch normalisation)
    memory: Memory
    sums: Sums


def pure_gradient(algorithm: AEVB, model: Model) -> Callable[..., Pure]:
    """The gradient as a function (parameters, buffers, batch, noise, memory, step) -> Pure, without side effects.

    `parameters` and `buffers` are lists in the model's order; `step` is a tensor, so that a program can count.
    """
    values = Values(algorithm, model)
    names, buffer_names = [n for n, _ in values.named_parameters()], [n for n, _ in values.named_buffers()]

    def minimised(
        parameters: list[Tensor], buffers: list[Tensor], batch: Batch, noise: Draws, memory: Memory, step: Tensor
    ) -> tuple[Tensor, tuple[list[Tensor], Memory, Sums]]:
        written = dict(zip(buffer_names, (b.clone() for b in buffers), strict=True))  # a module may write into them
        tensors = {**dict(zip(names, parameters, strict=True)), **written}
        maximised, memory, sums = functional_call(values, tensors, (batch, noise, memory, step))
        return -maximised, ([tensors[n] for n in buffer_names], memory, sums)

    derivative = grad(minimised, has_aux=True)

    def gradient(*given: Any) -> Pure:
        gradients, (buffers, memory, sums) = derivative(*given)
        return Pure(gradients, buffers, memory, sums)

    return gradient


class CompiledGradient:
    """The gradient of an algorithm on a model, compiled for minibatches of one size."""

    def __init__(self, algorithm: AEVB, model: Model, batch_size: int) -> None:
        self.pure, self.batch_size = pure_gradient(algorithm, model), batch_size
        self.parameters, self.buffers = list(model.parameters()), list(model.buffers())
        self.programs: dict[tuple[Any, ...], Callable[..., Pure]] = {}  # by what a minibatch and the memory hold

    def __call__(self, algorithm: AEVB, state: State, batch: Batch, noise: Draws) -> tuple[Memory, Sums]:
        """The eager gradient up to rounding."""
        if len(batch.x) != self.batch_size:
            return eager(algorithm, state, batch, noise)
        for parameter in self.parameters:
            parameter.grad = None  # its memory, still in the cache, becomes the new gradient's
        step = torch.full((), state.step, device=batch.x.device)
        given = [p.detach() for p in self.parameters], self.buffers, batch, noise, state.memory, step
        with torch.no_grad():
            kind = batch.y is None, *state.memory
            if kind not in self.programs:
                self.programs[kind] = compiled(self.pure, given)
            found = self.programs[kind](*given)
            if self.buffers:
                torch._foreach_copy_(self.buffers, found.buffers)  # in one call
        for parameter, derivative in zip(self.parameters, found.gradients, strict=True):
            parameter.grad = derivative
        if batch.x.is_cuda:  # a CUDA graph writes its results into the same memory each time; these outlive the step
            return {k: v.clone() for k, v in found.memory.items()}, {k: v.clone() for k, v in found.sums.items()}
        return found.memory, found.sums


def _is_not_about_missing_cuda(record: logging.LogRecord) -> bool:
    """Leaves out what the compiler logs on every CPU; a filter is added once, and lets all else through."""
    return "No CUDA runtime is found" not in record.getMessage()


def compiled(function: Callable[..., Any], given: Sequence[Any]) -> Callable[..., Any]:
    """A function of tensors (in lists and dictionaries) compiled for tensors of these shapes; on CUDA as a CUDA graph.

    It is traced first, so that the compiler sees only products and sums of tensors that are all arguments. It then
    needs none of the checks by which compiled Python guards against changes of what it has read (they cost a tenth of
    a step).
    """
    on_cuda = any(isinstance(tensor, Tensor) and tensor.is_cuda for tensor in given)
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "fallback_random": True}
    options |= {"triton.cudagraphs": True} if on_cuda else {}  # what mode="reduce-overhead" sets
    logging.getLogger("torch.utils.cpp_extension").addFilter(_is_not_about_missing_cuda)
    with seeded(0, "tracing"):  # a user's own module may draw while it is traced
        graph = make_fx(function)(*given)
        cast_before_transposing(graph)
        program = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
        with torch.no_grad():
            program(*given)  # compiles it now; the function is pure
    if not on_cuda:
        return program

    def replayed(*given: Any) -> Any:
        torch.compiler.cudagraph_mark_step_begin()  # the results of the last step are no longer needed
        return program(*given)

    return replayed


def cast_before_transposing(program: fx.GraphModule) -> None:
    """Write every cast(t(a)) as t(cast(a)), in place: the same values, in the same order of memory if a is dense.

    Autocast casts transposed weights, and so their gradients; the compiler makes of each two transpositions in memory,
    while t(a) alone costs nothing (a sixth of a step in bfloat16).
    """
    cast, transpose = torch.ops.aten._to_copy.default, torch.ops.aten.t.default
    for node in program.graph.find_nodes(op="call_function", target=cast):
        transposed, *_ = node.args
        if "memory_format" not in node.kwargs and getattr(transposed, "target", None) is transpose:
            node.replace_input_with(transposed, *transposed.args)
            with program.graph.inserting_after(node):
                again = program.graph.call_function(transpose, (node,))
            node.replace_all_uses_with(again, delete_user_cb=lambda user, again=again: user is not again)
    program.recompile()


# ------------------------------------------------------------------------------------- the comparison with eager


def disagreement(
    gradient: CompiledGradient, algorithm: AEVB, state: State, batch: Batch, noises: Sequence[Draws], roundoff: float
) -> str | None:
    """How a gradient differs from the eager one on a minibatch, in a few words; None if it agrees.

    It is called once for each noise, with the memory of the call before. A value may differ by the square root of the
    roundoff, relative to the largest of its tensor; a gradient whose true value is 0 (a bias before batch
    normalisation) by 1,000 times the roundoff, relative to the largest of all. The state is left as it was.
    """
    buffers, memory = [b.clone() for b in state.model.buffers()], state.memory

    def results(form: Callable[..., tuple[Memory, Sums]], noise: Draws) -> list[dict[str, Tensor]]:
        with seeded(0, "comparison"):  # a user's own module may draw
            found, sums = form(algorithm, state, batch, noise)
        gradients = {name: p.grad.clone() for name, p in state.model.named_parameters() if p.grad is not None}
        after = {name: buffer.clone() for name, buffer in state.model.named_buffers()}
        _restore(state.model, buffers)
        state.memory = {name: value.clone() for name, value in found.items()}
        return [gradients, after, state.memory, sums]

    try:
        for noise in noises:
            before = state.memory
            expected = results(eager, noise)
            state.memory = before
            for theirs, ours in zip(expected, results(gradient, noise), strict=True):
                name = _first_difference(theirs, ours, roundoff)
                if name is not None:
                    return f"the two differ in {name}"
    finally:
        state.memory = memory
        _restore(state.model, buffers)
        state.optimizer.zero_grad(set_to_none=True)
    return None


def _restore(model: nn.Module, buffers: Sequence[Tensor]) -> None:
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)


def _first_difference(theirs: dict[str, Tensor], ours: dict[str, Tensor], roundoff: float) -> str | None:
    largest = max((value.abs().max().item() for value in theirs.values()), default=0.0)
    for name, value in theirs.items():
        allowed = roundoff**0.5 * value.abs().max().item() + 1000 * roundoff * largest
        if name not in ours or not (ours[name] - value).abs().max().item() <= allowed:  # NaN does not agree
            return name
    return None
