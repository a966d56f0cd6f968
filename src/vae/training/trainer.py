"""The training loop. It knows minibatches, steps, epochs, checkpoints and signals, and nothing of VAEs."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from vae.algorithms import largest_gradient
from vae.errors import Interrupted, TrainingFailed
from vae.randomness import Streams
from vae.training.log import Log

EXPLODED = 10  # an epoch's mean may fall below the best by this many times max(|best|, values a datum)


class Source(Protocol):
    """Where minibatches come from."""

    num_data: int
    num_batches: int
    exact_within_epochs: bool

    def epoch(self, epoch: int, start: int, streams: Streams) -> Iterator[Tensor]:
        """The minibatches of an epoch from number `start` on."""


@dataclass(frozen=True)
class Plan:
    """For how long to train, and what happens at which epochs."""

    epochs: int | None
    samples: int | None
    evaluate_every: int = 1
    patience: int | None = None
    checkpoint_seconds: float = 10.0


@dataclass
class Progress:
    """How far a run has come; part of its checkpoints. `sums` are over the current epoch."""

    epoch: int = 0  # epochs finished
    batch: int = 0  # minibatches done in the current epoch
    samples: int = 0
    count: int = 0  # data behind `sums`
    best: float | None = None  # the best validation value
    stale: int = 0  # validations since
    reference: float | None = None  # the best epoch mean of the objective (at first, that of the first step)
    log_lines: int = 0  # lines of metrics written
    sums: dict[str, Tensor] = field(default_factory=dict)

    def finished(self, plan: Plan) -> bool:
        """Whether the plan is fulfilled, or validation has stopped improving."""
        if plan.patience is not None and self.stale >= plan.patience:
            return True
        if plan.samples is not None:
            return self.samples >= plan.samples
        return self.epoch >= (plan.epochs or 0)


@dataclass
class Trainer:
    """One training run: the algorithm and its state, the data, and what to do beside stepping.

    `save(name)` writes a checkpoint; `validate` gives the line of an evaluation with its `elbo`, by which the best
    checkpoint is chosen; `observe` gives further lines for the log and must not change the state. `stopped` is what to
    tell a person whose run was interrupted.
    """

    algorithm: Any
    state: Any
    source: Source
    streams: Streams
    plan: Plan
    progress: Progress
    log: Log
    save: Callable[[str], None]
    last_good: Callable[[], str]
    dtype: torch.dtype = torch.float32
    validate: Callable[[], dict[str, Any]] | None = None
    observe: Callable[[], list[dict[str, Any]]] | None = None
    verbose: bool = True

    def run(self) -> None:
        """Train to the end of the plan. Interrupted after a signal, TrainingFailed on a bound gone wrong."""
        self._saved_at = self._printed_at = time.monotonic()
        self._started = time.monotonic() - (self.log.lines[-1]["seconds"] if self.log.lines else 0.0)
        with _signals() as stop, self._bar() as bar:
            while not self.progress.finished(self.plan):
                self._epoch(stop, bar)

    def _epoch(self, stop: "_Stop", bar: Any) -> None:
        p, shown = self.progress, 0.0
        for batch in self.source.epoch(p.epoch, p.batch, self.streams):
            self._step(batch)
            bar.update(len(batch))
            now = time.monotonic()
            if not bar.disable and now - shown > 0.2:
                shown = now
                bar.set_postfix_str(_words({name: value.item() / p.count for name, value in p.sums.items()}))
            if stop.signal is not None:
                self._stop(stop.signal)
            if self.plan.samples is not None and p.samples >= self.plan.samples:
                break
        self._end_epoch(bar)

    def _step(self, batch: Tensor) -> None:
        p, size = self.progress, len(batch)
        kind, shape = self.algorithm.noise(self.state, size)
        try:
            self.state, info = self.algorithm.step(self.state, batch, self.streams.draw(kind, shape, self.dtype))
        except TrainingFailed as error:
            raise TrainingFailed(f"{error}; {self.last_good()}") from None
        if p.reference is None:
            p.reference = info.objective.item() / size
        for name, value in info.sums.items():
            p.sums[name] = p.sums[name] + value if name in p.sums else value
        p.batch, p.samples, p.count = p.batch + 1, p.samples + size, p.count + size
        self._datum_size = batch[0].numel()

    def _end_epoch(self, bar: Any) -> None:
        p = self.progress
        means = {name: value.item() / p.count for name, value in p.sums.items()}
        self._check_explosion(means)
        whole = p.batch >= self.source.num_batches
        lines = [self._line("train", means)]
        epoch = p.epoch + 1
        if whole:
            p.epoch, p.batch = epoch, 0
        p.sums, p.count = {}, 0
        improved = False
        if epoch % self.plan.evaluate_every == 0 or p.finished(self.plan):
            if self.validate is not None:
                line = self.validate()
                lines.append(self._line("validation", line, epoch))
                improved = p.best is None or line["elbo"] > p.best
                p.best, p.stale = (line["elbo"], 0) if improved else (p.best, p.stale + 1)
            if self.observe is not None:
                lines += [self._line(line.pop("split"), line, epoch) for line in self.observe()]
        for line in lines:
            self.log.append(line)
        self._report(lines, bar)
        # The best before the last: a run killed between the two repeats the epoch and writes the same best again.
        if improved:
            self._save("best")
        due = time.monotonic() - self._saved_at >= self.plan.checkpoint_seconds
        if due or p.finished(self.plan) or not self.source.exact_within_epochs:
            self._save("last")

    def _line(self, split: str, values: dict[str, Any], epoch: int | None = None) -> dict[str, Any]:
        p = self.progress
        place = {"step": self.state.step, "epoch": epoch or p.epoch + 1, "samples": p.samples, "split": split}
        return {**place, **values, "seconds": round(time.monotonic() - self._started, 3)}

    def _check_explosion(self, means: dict[str, float]) -> None:
        p = self.progress
        mean = means.get("objective", means.get("elbo", 0.0))
        assert p.reference is not None
        limit = p.reference - EXPLODED * max(abs(p.reference), self._datum_size)
        if mean < limit:
            terms = {name: value for name, value in means.items() if name not in ("elbo", "objective")}
            worst = max(terms, key=lambda name: abs(terms[name]))
            raise TrainingFailed(
                f"the bound explodes: its mean over epoch {p.epoch + 1} (to step {self.state.step}) is {mean:.4g} nats "
                f"after {p.reference:.4g}; the largest term is {worst} = {terms[worst]:.4g}; "
                f"{largest_gradient(self.state.model)}; {self.last_good()}; try a smaller learning rate, or "
                "train.clip_grad_norm"
            )
        p.reference = max(p.reference, mean)

    def _save(self, name: str) -> None:
        self.log.flush()
        self.progress.log_lines = len(self.log.lines)
        self.save(name)
        self._saved_at = time.monotonic()

    def _stop(self, number: int) -> None:
        if self.source.exact_within_epochs:
            self._save("last")
        name = signal.Signals(number).name
        raise Interrupted(f"stopped by {name} at step {self.state.step}", 128 + number)

    def _bar(self) -> Any:
        p, plan = self.progress, self.plan
        total = plan.samples if plan.samples is not None else (plan.epochs or 0) * self.source.num_data
        # disable=None: no bar where stderr is no terminal; `_report` prints lines there instead.
        return tqdm(
            total=total,
            initial=p.samples,
            disable=None if self.verbose else True,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.2,
        )

    def _report(self, lines: list[dict[str, Any]], bar: Any) -> None:
        """A plain line an epoch where there is no bar, at most one a second."""
        p = self.progress
        now = time.monotonic()
        if not self.verbose or not bar.disable or (now - self._printed_at < 1 and not p.finished(self.plan)):
            return
        self._printed_at = now
        parts = [f"{line['split']}: {_words(line)}" for line in lines]
        total = f"/{self.plan.epochs}" if self.plan.epochs else ""
        print(
            f"epoch {lines[0]['epoch']}{total}  {'  '.join(parts)}  ({lines[-1]['seconds']:.0f} s)",
            file=sys.stderr,
            flush=True,
        )


_WORDS = {"elbo": "ELBO", "log_p_x_given_z": "log p(x|z)", "kl": "KL", "objective": "objective"}


def _words(values: dict[str, Any]) -> str:
    return " ".join(f"{word} {values[name]:.2f}" for name, word in _WORDS.items() if name in values)


class _Stop:
    """Which signal has asked the run to stop, if any."""

    signal: int | None = None


@contextlib.contextmanager
def _signals() -> Iterator[_Stop]:
    """Note SIGINT and SIGTERM, to be acted on between two steps; a second one is given to the handler before."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        signal.signal(number, before[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        before[number] = signal.signal(number, note)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
