"""The training loop. It knows minibatches, steps, epochs, checkpoints and signals, and nothing of VAEs."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
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

    `save(name)` writes a checkpoint and `last_good()` says which one to go back to. `validate` gives the line of an
    evaluation, whose `score` chooses the best checkpoint; `observe` gives further lines for the log and must not change
    the state. `labels` are the words for the values in the progress bar, in order.
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
    score: str
    labels: Mapping[str, str]
    datum_size: int  # values a datum
    dtype: torch.dtype = torch.float32
    validate: Callable[[], dict[str, Any]] | None = None
    observe: Callable[[], list[dict[str, Any]]] | None = None
    verbose: bool = True

    def run(self) -> None:
        """Train to the end of the plan. Interrupted after a signal, TrainingFailed on a bound gone wrong."""
        p = self.progress
        self._saved_at = self._printed_at = time.monotonic()
        self._started = time.monotonic() - (self.log.lines[-1]["seconds"] if self.log.lines else 0.0)
        with _signals() as stop, self._bar() as bar:
            if p.finished(self.plan) and p.count:  # resumed where a count of samples had ended within an epoch
                self._end_epoch(bar, whole=False)
            while not p.finished(self.plan):
                self._epoch(stop, bar)
                if stop.signal is not None:
                    self._stop(stop.signal)

    def _epoch(self, stop: "_Stop", bar: Any) -> None:
        p, shown, whole = self.progress, 0.0, True
        for batch in self.source.epoch(p.epoch, p.batch, self.streams):
            self._step(batch)
            bar.update(len(batch))
            now = time.monotonic()
            if not bar.disable and now - shown > 0.2:
                shown = now
                bar.set_postfix_str(self._words({name: value.item() / p.count for name, value in p.sums.items()}))
            enough = self.plan.samples is not None and p.samples >= self.plan.samples
            if enough and self.source.exact_within_epochs:  # a loader's epoch cannot be taken up in its middle
                whole = p.batch == self.source.num_batches
                break
            if stop.signal is not None and p.batch < self.source.num_batches:
                self._stop(stop.signal)
        self._end_epoch(bar, whole)

    def _step(self, batch: Tensor) -> None:
        p, size = self.progress, len(batch)
        kind, shape = self.algorithm.noise(self.state, size)
        with self._failing():
            self.state, info = self.algorithm.step(self.state, batch, self.streams.draw(kind, shape, self.dtype))
        if p.reference is None:
            p.reference = info.objective.item() / size
        for name, value in info.sums.items():
            p.sums[name] = p.sums[name] + value if name in p.sums else value
        p.batch, p.samples, p.count = p.batch + 1, p.samples + size, p.count + size

    @contextlib.contextmanager
    def _failing(self) -> Iterator[None]:
        """Add to a failure which checkpoint to go back to."""
        try:
            yield
        except TrainingFailed as error:
            raise TrainingFailed(f"{error}; {self.last_good()}") from None

    def _end_epoch(self, bar: Any, whole: bool) -> None:
        p, epoch = self.progress, self.progress.epoch + 1
        means = {name: value.item() / p.count for name, value in p.sums.items()}
        with self._failing():
            self._check_explosion(means)
        if whole:
            p.epoch, p.batch, p.sums, p.count = epoch, 0, {}, 0
        else:
            # The plan ends within an epoch: the checkpoint is of before its lines, so that a run which goes on with a
            # larger plan finishes the epoch and logs it once.
            self._save("last")
        lines = [self._line("train", means, epoch)]
        improved = False
        if epoch % self.plan.evaluate_every == 0 or p.finished(self.plan):
            with self._failing():
                improved = self._evaluate(lines, epoch)
        for line in lines:
            self.log.append(line)
        self._report(lines, bar)
        # The best before the last: a run killed between the two repeats the epoch and writes the same best again.
        if improved:
            self._save("best")
        due = time.monotonic() - self._saved_at >= self.plan.checkpoint_seconds
        if whole and (due or p.finished(self.plan) or not self.source.exact_within_epochs):
            self._save("last")

    def _evaluate(self, lines: list[dict[str, Any]], epoch: int) -> bool:
        """Add the lines of validation and observers; whether validation has improved."""
        p, improved = self.progress, False
        if self.validate is not None:
            line = self.validate()
            lines.append(self._line("validation", line, epoch))
            improved = p.best is None or line[self.score] > p.best
            p.best, p.stale = (line[self.score], 0) if improved else (p.best, p.stale + 1)
        if self.observe is not None:
            lines += [self._line(line.pop("split"), line, epoch) for line in self.observe()]
        return improved

    def _line(self, split: str, values: dict[str, Any], epoch: int) -> dict[str, Any]:
        place = {"step": self.state.step, "epoch": epoch, "samples": self.progress.samples, "split": split}
        return {**place, **values, "seconds": round(time.monotonic() - self._started, 3)}

    def _check_explosion(self, means: dict[str, float]) -> None:
        p = self.progress
        mean = means.get("objective", means[self.score])
        assert p.reference is not None
        if mean < p.reference - EXPLODED * max(abs(p.reference), self.datum_size):
            terms = {name: value for name, value in means.items() if name not in (self.score, "objective")}
            worst = max(terms, key=lambda name: abs(terms[name]))
            raise TrainingFailed(
                f"the bound explodes: its mean over epoch {p.epoch + 1} (to step {self.state.step}) is {mean:.4g} nats "
                f"after {p.reference:.4g}; the largest term is {worst} = {terms[worst]:.4g}; "
                f"{largest_gradient(self.state.model)}; try a smaller learning rate, or train.clip_grad_norm"
            )
        p.reference = max(p.reference, mean)

    def _save(self, name: str) -> None:
        self.log.flush()
        self.progress.log_lines = len(self.log.lines)
        self.save(name)
        if name == "last":
            self._saved_at = time.monotonic()

    def _stop(self, number: int) -> None:
        where = f"at step {self.state.step}"
        if self.progress.finished(self.plan):
            where += ", where it was finished anyway"  # and is saved
        elif self.source.exact_within_epochs:
            self._save("last")
        elif self.progress.batch:
            where += f" (the run goes on from the end of epoch {self.progress.epoch})"
        raise Interrupted(f"stopped by {signal.Signals(number).name} {where}", 128 + number)

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
            bar_format="{percentage:3.0f}%|{bar:8}| {n_fmt} [{remaining} left, {rate_fmt}{postfix}]",  # fits 80 columns
        )

    def _report(self, lines: list[dict[str, Any]], bar: Any) -> None:
        """A plain line an epoch where there is no bar, at most one a second."""
        p = self.progress
        now = time.monotonic()
        if not self.verbose or not bar.disable or (now - self._printed_at < 1 and not p.finished(self.plan)):
            return
        self._printed_at = now
        parts = [f"{line['split']}: {self._words(line)}" for line in lines]
        total = f"/{self.plan.epochs}" if self.plan.epochs else ""
        seconds = lines[-1]["seconds"]
        print(f"epoch {lines[0]['epoch']}{total}  {'  '.join(parts)}  ({seconds:.0f} s)", file=sys.stderr, flush=True)

    def _words(self, values: Mapping[str, Any]) -> str:
        return " ".join(f"{word} {values[name]:.1f}" for name, word in self.labels.items() if name in values)


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
