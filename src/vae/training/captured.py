"""Steps without a word to the host: what a CUDA graph can capture, and the graphs.

`DeviceStep` is an ordinary function of the rows of a minibatch: it gathers them, draws their noise, takes the gradient
and updates, all on tensors that stay where they are; it looks at no value. So it can be recorded once as a CUDA graph
and replayed, several steps at a time. On the CPU it runs as it is, and there it is tested against the plain step.
"""

import itertools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from vae.errors import TrainingFailed
from vae.training.fast import Functional
from vae.training.trainer import Stepper, Steps

STEPS_A_REPLAY = 16
WARM_UP = 3  # steps of a shape that run as they are before it is captured: libraries set themselves up in them


def captures(form: Functional, source: Any) -> bool:
    """Whether a run's steps can stay on the device: data there, and an optimizer that reads no value on the host."""
    group = form.optimizer.param_groups[0]
    adagrad = isinstance(form.optimizer, torch.optim.Adagrad) and group["lr_decay"] == 0 and form.plain.schedule is None
    quiet = "capturable" in group or isinstance(form.optimizer, torch.optim.SGD) or adagrad
    return quiet and not isinstance(form.optimizer, torch.optim.ASGD) and source.exact_within_epochs


class DeviceStep:
    """A training step of rows (M,), or (R, M) of R runs together, and of a learning rate, all tensors.

    The first step whose objective is not finite is noted in `failed`; from then on nothing changes any more, as all
    gradients and the rate are 0, and `check` tells of it when the host asks.
    """

    def __init__(self, form: Functional, draw: Callable[[Tensor], tuple[Tensor, Tensor]], step: int) -> None:
        self.form, self.draw = form, draw
        like = form.parameters[0]
        self.step = torch.tensor(step, device=like.device)
        self.failed = torch.zeros_like(self.step)  # the number of the first step that was not finite
        self.sums: dict[str, Tensor] = {}  # of the steps since `take`
        self.bad: dict[str, Tensor] = {}  # of the step that failed
        group = form.optimizer.param_groups[0]
        self.rate_is_fixed = isinstance(form.optimizer, torch.optim.Adagrad)  # it takes numbers only
        if not self.rate_is_fixed:
            group["lr"] = torch.tensor(float(group["lr"]), dtype=like.dtype, device=like.device)
        if "capturable" in group:
            group["capturable"] = like.is_cuda
            form.optimizer._warned_capturable_if_run_uncaptured = True  # as the first ones are
        for state in form.optimizer.state.values():  # of a resumed run
            if "step" in state and "capturable" in group:
                state["step"] = state["step"].to(like.device)

    def __call__(self, rows: Tensor, rate: Tensor) -> None:
        """Make the step."""
        form = self.form
        batch, noise = self.draw(rows)
        parameters = [p.detach() for p in form.parameters]
        gradient = form.program(rows.shape[-1], parameters, form.buffers, batch, noise, form.memory, self.step)
        maximised = gradient.sums.get("objective", gradient.sums["elbo"])
        with torch.no_grad():
            fine = torch.isfinite(maximised).all() & (self.failed == 0)
            for name, value in gradient.sums.items():
                if name not in self.sums:
                    self.sums[name], self.bad[name] = torch.zeros_like(value), torch.zeros_like(value)
                self.sums[name].add_(torch.where(fine, value, 0))
                self.bad[name].copy_(torch.where(fine | (self.failed != 0), self.bad[name], value))
            self.failed.copy_(torch.where(fine | (self.failed != 0), self.failed, self.step + 1))
            for buffer, after in zip(form.buffers, gradient.buffers, strict=True):
                buffer.copy_(torch.where(fine, after, buffer))
            if form.memory.keys() == gradient.memory.keys():
                for name, value in gradient.memory.items():
                    form.memory[name].copy_(torch.where(fine, value, form.memory[name]))
            else:  # the first step of an objective that remembers
                form.memory = {name: value.clone() for name, value in gradient.memory.items()}
            for parameter, derivative in zip(form.parameters, gradient.parameters, strict=True):
                parameter.grad = torch.where(fine, derivative, 0)
            if form.plain.clip_grad_norm is not None:
                form.clip(form.plain.clip_grad_norm)
            if not self.rate_is_fixed:
                form.optimizer.param_groups[0]["lr"].copy_(torch.where(fine, rate, 0))
        form.optimizer.step()
        self.step += fine

    def take(self) -> dict[str, Tensor]:
        """The sums since they were last taken."""
        taken = {name: value.clone() for name, value in self.sums.items()}
        for value in self.sums.values():
            value.zero_()
        return taken

    def check(self) -> None:
        """TrainingFailed where a step was not finite: which, and which term. This waits for the device."""
        number = int(self.failed)
        if number:
            terms = (name for name in self.bad if name not in ("elbo", "objective"))
            term = next((name for name in terms if not torch.isfinite(self.bad[name]).all()), "the objective")
            raise TrainingFailed(
                f"{term} is not finite at step {number}; "  # its gradients have been overwritten by zeros
                "try a smaller learning rate, or train.clip_grad_norm"
            )


class Graphs:
    """Makes steps on the device: of each number and size as they are at first, then as one captured graph."""

    def __init__(self, step: DeviceStep, generators: Sequence[torch.Generator]) -> None:
        self.step, self.generators = step, generators
        self.captures = step.step.is_cuda
        self._seen: dict[tuple[int, ...], int] = {}
        self._graphs: dict[tuple[int, ...], tuple[torch.cuda.CUDAGraph, Tensor, Tensor]] = {}
        self._pool: Any = None

    def __call__(self, rows: Tensor, rates: Tensor) -> None:
        """Make the steps of rows (K, ...) at K learning rates."""
        shape = tuple(rows.shape)
        if self.captures and shape not in self._graphs and self._seen.get(shape, 0) >= WARM_UP:
            self._capture(rows, rates)
        if shape in self._graphs:
            graph, own_rows, own_rates = self._graphs[shape]
            own_rows.copy_(rows)
            own_rates.copy_(rates)
            graph.replay()
        else:
            self._seen[shape] = self._seen.get(shape, 0) + 1
            self._as_it_is(rows, rates)

    def _as_it_is(self, rows: Tensor, rates: Tensor) -> None:
        for of_step, rate in zip(rows, rates, strict=True):
            self.step(of_step, rate)

    def _capture(self, rows: Tensor, rates: Tensor) -> None:
        """Record a graph; nothing is computed in it. What cannot be captured runs as it is, after one line."""
        graph = torch.cuda.CUDAGraph()
        for generator in self.generators:
            graph.register_generator_state(generator)
        own_rows, own_rates = rows.clone(), rates.clone()
        try:
            torch.cuda.synchronize()
            with torch.cuda.graph(graph, pool=self._pool):
                self._as_it_is(own_rows, own_rates)
        except RuntimeError as error:
            self.captures = False
            warnings.warn(f"the steps are not captured: {str(error).splitlines()[0]}", stacklevel=2)
            return
        self._pool = graph.pool()
        self._graphs[tuple(rows.shape)] = graph, own_rows, own_rates


def captured_steps(form: Functional, sources: Sequence[Any], streams: Sequence[Any], dtype: torch.dtype) -> Stepper:
    """The way through an epoch of one run, or of several together, on the device."""
    states, plain = form.states, form.plain
    together = len(states) > 1

    def draw(rows: Tensor) -> tuple[Tensor, Tensor]:
        kind, shape = plain.noise(states[0], rows.shape[-1])
        each = zip(rows if together else [rows], sources, streams, strict=True)
        pairs = [(s.minibatch(own, stream), stream.draw(kind, shape, dtype)) for own, s, stream in each]
        if not together:
            return pairs[0]
        return torch.stack([batch for batch, _ in pairs]), torch.stack([noise for _, noise in pairs])

    step = DeviceStep(form, draw, states[0].step)
    graphs = Graphs(step, [g for stream in streams for g in (stream.noise, stream.pixels)])
    form.checks.append(step.check)
    initial = float(form.optimizer.param_groups[0]["initial_lr"])

    def rates(number: int, count: int) -> Tensor:
        """The learning rates of the next steps, on the device without waiting for it."""
        values = [initial * (plain.schedule(number + i) if plain.schedule else 1.0) for i in range(count)]
        on_host = torch.tensor(values, dtype=dtype)
        return on_host.pin_memory().to(step.step.device, non_blocking=True) if step.step.is_cuda else on_host

    def steps(epoch: int, start: int, left: int | None = None) -> Iterator[Steps]:
        source = sources[0]
        end = source.num_batches
        if left is not None:
            end = min(end, start + math.ceil(left / source.batch_size))
        orders = torch.stack([s.order(epoch) for s in sources])  # (R, N)
        for first, count in pieces(start, end, min(end, source.num_data // source.batch_size)):
            rows = orders[:, first * source.batch_size : (first + count) * source.batch_size]
            rows = rows.unflatten(1, (count, -1)).transpose(0, 1)  # (K, R, M)
            graphs(rows if together else rows[:, 0], rates(states[0].step, count))
            form.count(count)
            if first + count == end:  # before the last report, since none may ask for more
                step.check()
            yield Steps(count, rows.shape[0] * rows.shape[2], step.take())

    return steps


def pieces(start: int, batches: int, full: int) -> Iterator[tuple[int, int]]:
    """(first, count) of the minibatches from `start` on: so many a replay, then one by one; the last may be smaller."""
    ends = itertools.chain(range(start + STEPS_A_REPLAY, full + 1, STEPS_A_REPLAY), [None])
    first = start
    for end in ends:
        if end is not None:
            yield first, end - first
            first = end
    yield from ((one, 1) for one in range(first, batches))
