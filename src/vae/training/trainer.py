"""The training loop. It knows minibatches, steps, epochs, checkpoints and signals, and nothing of VAEs."""

import contextlib
import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from tqdm import tqdm

from vae.algorithms import largest_gradient
from vae.errors import Interrupted, TrainingFailed
from vae.randomness import Streams
from vae.ranks import Stop
from vae.training.log import Log

NEXT = "next"  # the checkpoint of a run that waits for those of the others
EXPLODED = 10  # an epoch's mean may fall below the best by this many times max(|best|, values a datum)


class Steps(NamedTuple):
    """What has been done since the last report: training steps, the data they saw, and sums over these data."""

    batches: int
    data: int
    sums: dict[str, Tensor]  # () each, or (R,) of R runs that are trained together


class Stepper(Protocol):
    """The way through an epoch."""

    def __call__(self, epoch: int, start: int, left: int | None = None) -> Iterator[Steps]:
        """The steps from minibatch `start` on; `left` data end the run, where it ends before the epoch."""


def one_by_one(algorithm: Any, state: Any, source: Any, streams: Streams, dtype: torch.dtype) -> Stepper:
    """The plain way through an epoch: a minibatch, its noise, a step, a report."""

    def steps(epoch: int, start: int, left: int | None = None) -> Iterator[Steps]:
        for batch in source.epoch(epoch, start, streams):
            kind, shape = algorithm.noise(state, len(batch))
            _, info = algorithm.step(state, batch, streams.draw(kind, shape, dtype))
            yield Steps(1, len(batch), info.sums)

    return steps


@dataclass(frozen=True)
class Plan:
    """For how long to train, and what happens at which epochs."""

    epochs: int | None
    samples: int | None
    evaluate_every: int = 1
    patience: int | None = None
    checkpoint_seconds: float = 10.0

    def steps(self, num_batches: int, num_data: int) -> int:
        """How many steps that is."""
        epochs = self.samples / num_data if self.samples is not None else self.epochs or 0
        return math.ceil(epochs * num_batches)


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
class Member:
    """One run among those that are trained together (mostly it is alone), with what is its own.

    `save(name)` writes a checkpoint, `rename(name, other)` puts one in the place of another, and `last_good()` says
    which one to go back to. `validate` gives the line of an evaluation, whose `score` chooses the best checkpoint;
    `observe` gives further lines for the log and must not change the state.
    """

    model: Any
    progress: Progress
    log: Log
    save: Callable[[str], None]
    rename: Callable[[str, str], None]
    last_good: Callable[[], str]
    validate: Callable[[], dict[str, Any]] | None = None
    observe: Callable[[], list[dict[str, Any]]] | None = None

    @contextlib.contextmanager
    def failing(self) -> Iterator[None]:
        """Add to a failure which checkpoint to go back to."""
        try:
            yield
        except TrainingFailed as error:
            raise TrainingFailed(f"{error}; {self.last_good()}") from None


@dataclass
class Trainer:
    """Trains one run, or several at once: steps through the data, and what there is to do beside stepping.

    `state` counts the steps. `labels` are the words for the values in the progress bar, in order.
    """

    steps: Stepper
    state: Any
    source: Any  # num_data, num_batches, exact_within_epochs
    plan: Plan
    members: Sequence[Member]
    score: str
    labels: Mapping[str, str]
    datum_size: int  # values a datum
    verbose: bool = True
    stop: Stop = field(default_factory=Stop)

    def run(self) -> None:
        """Train to the end of the plan. Interrupted after a signal, TrainingFailed on a bound gone wrong."""
        p, lines = self.progress, self.members[0].log.lines
        self._saved_at = self._printed_at = time.monotonic()
        self._started = time.monotonic() - (lines[-1]["seconds"] if lines else 0.0)
        each = [member.progress.sums for member in self.members]
        self.sums = {name: torch.stack([sums[name] for sums in each]) for name in each[0]}  # (R,) each
        with _signals(self.stop), self._bar() as bar:
            if p.finished(self.plan) and p.count:  # resumed where a count of samples had ended within an epoch
                self._end_epoch(bar, whole=False)
            while not p.finished(self.plan):
                self._epoch(bar)
                self.stop.sync()
                if self.stop.signal is not None:
                    self._stop(self.stop.signal)

    @property
    def progress(self) -> Progress:
        """Where the run stands; runs that are trained together stand at the same place of their data."""
        return self.members[0].progress

    def _epoch(self, bar: Any) -> None:
        p, shown, whole = self.progress, 0.0, True
        for steps in self._failing_steps():
            self._count(steps)
            bar.update(steps.data)
            now = time.monotonic()
            if not bar.disable and now - shown > 0.2:
                shown = now
                bar.set_postfix_str(self._words({n: v.mean().item() / p.count for n, v in self.sums.items()}))
            enough = self.plan.samples is not None and p.samples >= self.plan.samples
            if enough and self.source.exact_within_epochs:  # a loader's epoch cannot be taken up in its middle
                whole = p.batch == self.source.num_batches
                break
            if self.stop.signal is not None and p.batch < self.source.num_batches:
                self._stop(self.stop.signal)
        self._end_epoch(bar, whole)

    def _failing_steps(self) -> Iterator[Steps]:
        p, samples = self.progress, self.plan.samples
        with self.members[0].failing():
            yield from self.steps(p.epoch, p.batch, None if samples is None else samples - p.samples)

    def _count(self, steps: Steps) -> None:
        self.sums = {  # in the order of the step, which a checkpoint does not keep
            name: self.sums[name] + value if name in self.sums else value.reshape(-1)
            for name, value in steps.sums.items()
        }
        for k, member in enumerate(self.members):
            p = member.progress
            if p.reference is None:
                maximised = steps.sums.get("objective", steps.sums[self.score]).reshape(-1)
                p.reference = maximised[k].item() / steps.data
            p.batch, p.samples, p.count = p.batch + steps.batches, p.samples + steps.data, p.count + steps.data

    def _end_epoch(self, bar: Any, whole: bool) -> None:
        p, epoch = self.progress, self.progress.epoch + 1
        count, sums = p.count, {name: value.tolist() for name, value in self.sums.items()}
        means = [{name: values[k] / count for name, values in sums.items()} for k in range(len(self.members))]
        for member, values in zip(self.members, means, strict=True):
            with member.failing():
                self._check_explosion(member, values)
        if whole:
            self.sums = {}
            for member in self.members:
                q = member.progress
                q.epoch, q.batch, q.count = epoch, 0, 0
        else:
            # The plan ends within an epoch: the checkpoint is of before its lines, so that a run which goes on with a
            # larger plan finishes the epoch and logs it once.
            self._save("last", self.members)
        everyone, improved = [], []
        for member, values in zip(self.members, means, strict=True):
            lines = [self._line("train", values, epoch)]
            if epoch % self.plan.evaluate_every == 0 or p.finished(self.plan):
                with member.failing():
                    improved += [member] if self._evaluate(member, lines, epoch) else []
            for line in lines:
                member.log.append(line)
            everyone.append(lines)
        self._report(everyone, bar)
        # The best before the last: a run killed between the two repeats the epoch and writes the same best again.
        self._save("best", improved)
        due = self.stop.ranks.once(lambda: time.monotonic() - self._saved_at >= self.plan.checkpoint_seconds)
        if whole and (due or p.finished(self.plan) or not self.source.exact_within_epochs):
            self._save("last", self.members)

    def _evaluate(self, member: Member, lines: list[dict[str, Any]], epoch: int) -> bool:
        """Add the lines of validation and observers; whether validation has improved."""
        p, improved = member.progress, False
        if member.validate is not None:
            line = member.validate()
            lines.append(self._line("validation", line, epoch))
            improved = p.best is None or line[self.score] > p.best
            p.best, p.stale = (line[self.score], 0) if improved else (p.best, p.stale + 1)
        if member.observe is not None:
            lines += [self._line(line.pop("split"), line, epoch) for line in member.observe()]
        return improved

    def _line(self, split: str, values: dict[str, Any], epoch: int) -> dict[str, Any]:
        place = {"step": self.state.step, "epoch": epoch, "samples": self.progress.samples, "split": split}
        return {**place, **values, "seconds": round(time.monotonic() - self._started, 3)}

    def _check_explosion(self, member: Member, means: dict[str, float]) -> None:
        p = member.progress
        mean = means.get("objective", means[self.score])
        assert p.reference is not None
        if mean < p.reference - EXPLODED * max(abs(p.reference), self.datum_size):
            terms = {name: value for name, value in means.items() if name not in (self.score, "objective")}
            worst = max(terms, key=lambda name: abs(terms[name]))
            raise TrainingFailed(
                f"the bound explodes: its mean over epoch {p.epoch + 1} (to step {self.state.step}) is {mean:.4g} nats "
                f"after {p.reference:.4g}; the largest term is {worst} = {terms[worst]:.4g}; "
                f"{largest_gradient(member.model)}; try a smaller learning rate, or train.clip_grad_norm"
            )
        p.reference = max(p.reference, mean)

    def _save(self, name: str, members: Sequence[Member]) -> None:
        # All or none: runs that are trained together go on together only from one place, so that none gets its new
        # checkpoint before all have written theirs. A resume takes up what is cut short in between.
        together = len(self.members) > 1 and name == "last"
        for member in members:
            p, place = member.progress, self.members.index(member)
            p.sums = {key: value[place] for key, value in self.sums.items()}
            member.log.flush()
            p.log_lines = len(member.log.lines)
            member.save(NEXT if together else name)
        for member in members if together else []:
            member.rename(NEXT, name)
        if name == "last":
            self._saved_at = time.monotonic()

    def _stop(self, number: int) -> None:
        where = f"at step {self.state.step}"
        if self.progress.finished(self.plan):
            where += ", where it was finished anyway"  # and is saved
        elif self.source.exact_within_epochs:
            self._save("last", self.members)
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

    def _report(self, everyone: list[list[dict[str, Any]]], bar: Any) -> None:
        """A plain line an epoch where there is no bar, at most one a second; means over runs trained together."""
        p = self.progress
        now = time.monotonic()
        if not self.verbose or not bar.disable or (now - self._printed_at < 1 and not p.finished(self.plan)):
            return
        self._printed_at = now
        lines = everyone[0]
        parts = []
        for i, line in enumerate(lines):
            values = {name: sum(of[i][name] for of in everyone) / len(everyone) for name in self.labels if name in line}
            parts.append(f"{line['split']}: {self._words(values)}")
        total = f"/{self.plan.epochs}" if self.plan.epochs else ""
        together = f", means of {len(everyone)} runs" if len(everyone) > 1 else ""
        seconds = lines[-1]["seconds"]
        words = f"epoch {lines[0]['epoch']}{total}  {'  '.join(parts)}  ({seconds:.0f} s{together})"
        print(words, file=sys.stderr, flush=True)

    def _words(self, values: Mapping[str, Any]) -> str:
        return " ".join(f"{word} {values[name]:.1f}" for name, word in self.labels.items() if name in values)


@contextlib.contextmanager
def _signals(stop: Stop) -> Iterator[None]:
    """Note SIGINT and SIGTERM, to be acted on between two steps; a second one is given to the handler before.

    Among several ranks it is not: torchrun may send one after a cluster did, and the others wait for the checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        stop.record(number)
        if not stop.ranks.several:
            signal.signal(number, before[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        before[number] = signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
