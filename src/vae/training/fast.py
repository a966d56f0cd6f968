"""Fast forms of a training step: transformations of one pure function, the gradient of what AEVB maximises.

The plain step of `vae.algorithms.AEVB` is the specification. Here its mathematics (`AEVB.values`, the only copy) is
made a function of tensors alone, whose derivative is compiled (`Program`), mapped over many runs (replicas), or kept on
the device (captured).
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call, grad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer

from vae.algorithms import AEVB, Info, State, check_finite
from vae.algorithms.optimizers import optimizer_step
from vae.likelihoods import Bernoulli
from vae.models import VAE, evaluating
from vae.networks import DECODERS, ENCODERS
from vae.objectives import Memory
from vae.posteriors import DiagonalGaussian
from vae.randomness import Streams, seeded
from vae.schema import describe
from vae.training.products import multiplies_bfloat16
from vae.training.settings import ModifierSettings, Precision, Settings
from vae.training.trainer import Stepper, Steps


class Gradient(NamedTuple):
    """What the pure function of a step gives."""

    parameters: list[Tensor]  # gradients of what is minimised, in the model's order
    buffers: list[Tensor]  # as they are after the step (batch normalisation)
    memory: Memory
    sums: dict[str, Tensor]


class Values(nn.Module):
    """`AEVB.values` as the forward pass of a module: functional_call and DistributedDataParallel take such."""

    def __init__(self, algorithm: AEVB, model: VAE) -> None:
        super().__init__()
        self.algorithm, self.model = algorithm, model

    def forward(self, *given: Any) -> tuple[Tensor, Memory, dict[str, Tensor]]:
        """What `AEVB.values` gives for (batch, noise, memory, step)."""
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

# What `auto` goes by, calibrated over the configs on one thread and on two (README, "How fast is it?"): compiling took
# 3.3 to 8 seconds, and then saved, at each step and each number that a layer gives, this long at the least.
SAVED_A_NUMBER = 1e-9  # seconds
SAVED_AT_LEAST = 8.0  # seconds that have to be saved over the run


def chosen_form(setting: str, model: VAE, steps: int, source: Any, num_samples: int) -> str:
    """`compiled` or `plain`: a function of the config, the length of the run and the machine, never of a timing."""
    if source.batch_size is None or setting == "never":
        return "plain"
    wins = setting == "always" or compiling_wins(model, steps, source, num_samples)
    return "compiled" if wins else "plain"


def chosen_precision(
    settings: Settings, model: VAE, steps: int, source: Any, num_samples: int, *, alone: bool
) -> Precision:
    """The precision of a run, `auto` made definite: a function of the same things as the form.

    bfloat16 where the processor multiplies it, for what it was shown to leave as good (README, "How fast is it?"): long
    runs of the ELBO of dense networks, each by itself in one process, with pixels between 0 and 1 and a diagonal
    Gaussian posterior. Else float32.
    """
    if settings.train.precision != "auto":
        return settings.train.precision
    elbo = settings.objective.name in ("sgvb_a", "sgvb_b") and settings.modifiers == ModifierSettings()
    shown = elbo and isinstance(model.likelihood_head, Bernoulli) and isinstance(model.posterior_head, DiagonalGaussian)
    wins = alone and shown and source.batch_size is not None and compiling_wins(model, steps, source, num_samples)
    return "bfloat16" if wins and multiplies_bfloat16() else "float32"


def compiling_wins(model: VAE, steps: int, source: Any, num_samples: int) -> bool:
    """Whether a run is long enough to win by being compiled.

    Never on CUDA, where the steps are captured; nor for convolutions, which it does not speed up; nor for a network of
    the user's own, which may not bear being traced.
    """
    layers = [*model.encoder.modules(), *model.decoder.modules()]
    unfit = model.prior.mean.is_cuda or any(isinstance(m, nn.modules.conv._ConvNd) for m in layers)
    if unfit or not is_our_own(model):
        return False
    encoder = numbers(model.encoder, model.data_shape, model)
    decoder = numbers(model.decoder, (model.latent_dim,), model)
    saved = steps * source.batch_size * (encoder + num_samples * decoder) * SAVED_A_NUMBER
    return saved >= SAVED_AT_LEAST


def numbers(network: nn.Module, shape: tuple[int, ...], model: VAE) -> int:
    """How many numbers all layers of a network give for one datum."""
    total = 0

    def add(layer: nn.Module, given: Any, output: Tensor) -> None:
        nonlocal total
        total += output.numel()

    hooks = [layer.register_forward_hook(add) for layer in network.modules() if not list(layer.children())]
    with evaluating(network):
        network(torch.zeros(1, *shape).to(model.prior.mean))
    for hook in hooks:
        hook.remove()
    return total


def is_our_own(model: VAE) -> bool:
    """Whether both networks are the library's."""
    return "module" not in (describe(model.encoder, ENCODERS).name, describe(model.decoder, DECODERS).name)


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
        with torch.no_grad():
            return self._function(batch_size, given)(*given)

    def _function(self, batch_size: int, given: Sequence[Any]) -> Callable[..., Gradient]:
        if batch_size != self.compiles:
            return self.gradient
        *_, memory, _ = given
        kind = tuple(memory)
        if kind not in self._compiled:
            try:
                self._compiled[kind] = program(self.gradient, given)
            except Exception as error:  # whatever a compiler, or a user's own module, may raise
                self.compiles = None
                warnings.warn(f"the step is not compiled, as that fails: {one_line(error)}", stacklevel=2)
        return self._compiled.get(kind, self.gradient)


class Functional:
    """AEVB by a pure gradient: `step` as the plain form's, up to rounding, on all the tensors that it updates.

    `states` are those of one run; of several, whose parameters are stacked, in `replicas.Replicated`.
    """

    def __init__(
        self,
        plain: AEVB,
        states: Sequence[State],
        parameters: list[nn.Parameter],
        buffers: list[Tensor],
        optimizer: Optimizer,
        gradient: Callable[..., Gradient],
        compiles: int | None,
    ) -> None:
        self.plain, self.states, self.parameters, self.buffers = plain, list(states), parameters, buffers
        self.optimizer, self.program = optimizer, Program(gradient, compiles)
        self.memory: Memory = dict(states[0].memory)
        self.checks: list[Callable[[], None]] = []  # what has to be fine before a checkpoint

    @property
    def form(self) -> str:
        """What the steps are."""
        return self.program.form

    def step(self, batch: Tensor, noise: Tensor) -> Info:
        """Ascend the objective on a minibatch of stored pixels; TrainingFailed where it is not finite."""
        parameters, number = [p.detach() for p in self.parameters], self.states[0].step
        step = torch.tensor(number, device=batch.device)
        for parameter in self.parameters:
            parameter.grad = None  # its memory, still in the cache, is the new gradient's
        gradient = self.program(self.size_of(batch), parameters, self.buffers, batch, noise, self.memory, step)
        with torch.no_grad():
            for buffer, after in zip(self.buffers, gradient.buffers, strict=True):
                buffer.copy_(after)
        for parameter, derivative in zip(self.parameters, gradient.parameters, strict=True):
            parameter.grad = derivative
        self.check(gradient.sums)
        if self.plain.clip_grad_norm is not None:
            self.clip(self.plain.clip_grad_norm)
        self.plain.schedule_rate(self.optimizer, number)
        optimizer_step(self.optimizer)
        self.memory = gradient.memory
        self.count(1)
        return Info.of(gradient.sums)

    def try_on(self, batch: Tensor) -> str | None:
        """Take the gradient of a minibatch, or compile it, and forget it; why that cannot be done, in a line."""
        shape = self.plain.noise(self.states[0], self.size_of(batch)).shape
        runs = batch.shape[:1] if len(self.states) > 1 else ()
        noise = torch.full((*runs, *shape), 0.5).to(self.parameters[0])
        step = torch.tensor(0, device=batch.device)
        given = [p.detach() for p in self.parameters], self.buffers, batch, noise, self.memory, step
        try:
            with seeded(0, "trial"):  # a user's own module may draw
                self.program(self.size_of(batch), *given)
        except Exception as error:  # whatever a user's own module may raise
            return one_line(error)
        return None

    def size_of(self, batch: Tensor) -> int:
        """M."""
        return len(batch)

    def check(self, sums: dict[str, Tensor]) -> None:
        """TrainingFailed where what was maximised is not finite."""
        check_finite(self.states[0], Info.of(sums))

    def clip(self, largest: float) -> None:
        """Scale the gradient down to a norm."""
        nn.utils.clip_grad_norm_(self.parameters, largest)

    def count(self, steps: int) -> None:
        """Let the states know of steps that were made."""
        self.states[0].memory, self.states[0].step = self.memory, self.states[0].step + steps

    def before_save(self, k: int) -> None:
        """Bring the state of run k up to date; TrainingFailed where a step has failed."""
        for check in self.checks:
            check()


def functional(plain: AEVB, state: State, compiles: int | None) -> Functional:
    """The form of one run."""
    model = state.model
    gradient = pure_gradient(plain, model)
    return Functional(
        plain, [state], list(model.parameters()), list(model.buffers()), state.optimizer, gradient, compiles
    )


def in_turn(form: Functional, sources: Sequence[Any], streams: Sequence[Streams], dtype: torch.dtype) -> Stepper:
    """The way through an epoch by a functional form: minibatches, their noise, a step, a report.

    Runs that are trained together have each its own order, noise and pixels.
    """
    together = len(form.states) > 1

    def steps(epoch: int, start: int, left: int | None = None) -> Iterator[Steps]:
        for batches in zip(*(s.epoch(epoch, start, own) for s, own in zip(sources, streams, strict=True)), strict=True):
            size = len(batches[0])
            kind, shape = form.plain.noise(form.states[0], size)
            noise = [own.draw(kind, shape, dtype) for own in streams]
            info = form.step(torch.stack(batches), torch.stack(noise)) if together else form.step(batches[0], noise[0])
            yield Steps(1, size, info.sums)

    return steps


def one_line(error: Exception) -> str:
    """The first line of an error, and the second where the first only announces it."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0]}" if more and first.endswith(":") else first


def program(function: Callable[..., Any], given: Sequence[Any]) -> Callable[..., Any]:
    """A function of tensors (in lists and dictionaries) compiled for tensors of these shapes.

    It is traced first, so that the compiler sees products and sums only, of tensors that are all arguments; so it
    needs none of the checks by which compiled Python guards against changes of what it has read (they cost a tenth of
    a step).
    """
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it tells of a missing CUDA on any CPU
    graph = make_fx(function)(*given)
    cast_before_transposing(graph)
    options: dict[str, Any] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, "fallback_random": True}
    compiled = torch.compile(graph, fullgraph=True, dynamic=False, options=options)
    with torch.no_grad():
        compiled(*given)  # compiles it now: the function is pure
    return compiled


def cast_before_transposing(program: fx.GraphModule) -> None:
    """Write every cast(t(a)) as t(cast(a)), in place: the same values, in the same order of memory where a is dense.

    Autocast casts transposed weights, and so their gradients; the compiler makes of each two transpositions in memory,
    where t(a) alone costs nothing (a sixth of a step in bfloat16).
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
