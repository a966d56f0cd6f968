"""The training loop: minibatches, steps, epochs and signals; nothing in it is specific to VAEs."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch

from vae.algorithms import Algorithm, State, Sums
from vae.errors import Interrupted
from vae.randomness import Streams
from vae.ranks import Stop
from vae.training.progress import Plan, Progress


@dataclass(frozen=True)
class Stepper:
    """Makes the steps of an epoch: a minibatch, its noise, an update of the state."""

    algorithm: Algorithm
    state: State
    batches: Any
    streams: Streams
    dtype: torch.dtype

    def epoch(self, epoch: int, start: int) -> Iterator[tuple[int, Sums]]:
        """Make the steps of an epoch from minibatch `start` on: the size of each minibatch, and the sums over it."""
        for batch in self.batches.epoch(epoch, start, self.streams):
            noise = self.streams.draw(self.algorithm.noises(self.state, len(batch.x)), self.dtype)
            yield len(batch.x), self.algorithm.step(self.state, batch, noise)


def run_to_the_end(
    stepper: Stepper,
    plan: Plan,
    progress: Progress,
    after_step: Callable[[int], None],
    end_epoch: Callable[[bool], None],
    save: Callable[[], None],
    stop: Stop,
) -> None:
    """Train until the plan is fulfilled. Interrupted after a signal, once the state is saved.

    `end_epoch(whole)` evaluates, logs and saves; `whole` is False if the plan ends within an epoch.
    """
    batches = stepper.batches

    def interrupt_if_asked() -> None:
        if stop.signal is None:
            return
        where = f"at step {stepper.state.step}"
        if progress.finished(plan):
            where += ", when it was finished anyway"  # and is saved
        elif batches.exact_within_epochs:
            save()
        elif progress.batch:
            where += f" (the run continues from the end of epoch {progress.epoch})"
        raise Interrupted(f"stopped by {signal.Signals(stop.signal).name} {where}", 128 + stop.signal)

    def steps_of_epoch() -> bool:
        for size, sums in stepper.epoch(progress.epoch, progress.batch):
            progress.add(size, sums)
            after_step(size)
            # A DataLoader's epoch cannot be resumed in its middle, so it always runs to its end.
            if batches.exact_within_epochs and plan.samples is not None and progress.samples >= plan.samples:
                return progress.batch == batches.num_batches
            if progress.batch < batches.num_batches:
                interrupt_if_asked()
        return True

    with recording_signals(stop):
        if progress.finished(plan) and progress.count:  # resumed where a count of samples had ended within an epoch
            end_epoch(False)
        while not progress.finished(plan):
            end_epoch(steps_of_epoch())
            stop.sync()
            interrupt_if_asked()


@contextlib.contextmanager
def recording_signals(stop: Stop) -> Iterator[None]:
    """Record SIGINT and SIGTERM, to be acted on between two steps; a second one goes to the handler of before.

    With several ranks it does not: torchrun may send one after a cluster did, and the others wait for the checkpoint.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before: dict[int, Any] = {}

    def record(number: int, frame: FrameType | None) -> None:
        stop.record(number)
        if not stop.ranks.several:
            signal.signal(number, before[number])

    for number in (int(signal.SIGINT), int(signal.SIGTERM)):
        before[number] = signal.signal(number, record)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
