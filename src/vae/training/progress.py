"""How far a run is to go, how far it has come, and what people see of it."""

import math
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm

# The values that people see, in this order.
LABELS = {
    "elbo": "ELBO",
    "kl": "KL",
    "log_p_x_given_z": "log p(x|z)",
    "log_p_y_given_x": "log p(y|x)",
    "objective": "objective",
}


@dataclass(frozen=True)
class Plan:
    """For how long to train, and what happens at which epochs."""

    epochs: int | None
    samples: int | None
    evaluate_every: int = 1
    patience: int | None = None
    checkpoint_seconds: float = 10.0

    def steps(self, num_batches: int, num_data: int) -> int:
        """The number of steps of the whole run."""
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
    log_lines: int = 0  # lines of metrics written
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, size: int, sums: Mapping[str, Tensor]) -> None:
        """Count a step on a minibatch of `size` data."""
        self.sums = {  # in the order of the step, which a checkpoint does not keep
            name: self.sums[name] + value if name in self.sums else value for name, value in sums.items()
        }
        self.batch, self.samples, self.count = self.batch + 1, self.samples + size, self.count + size

    def means(self) -> dict[str, float]:
        """The means over the current epoch so far."""
        return {name: value.item() / self.count for name, value in self.sums.items()}

    def end_epoch(self) -> None:
        """Begin the next epoch."""
        self.epoch, self.batch, self.count, self.sums = self.epoch + 1, 0, 0, {}

    def stopped_early(self, plan: Plan) -> bool:
        """Whether validation has stopped improving."""
        return plan.patience is not None and self.stale >= plan.patience

    def finished(self, plan: Plan) -> bool:
        """Whether there is nothing left to train."""
        if self.stopped_early(plan):
            return True
        if plan.samples is not None:
            return self.samples >= plan.samples
        return self.epoch >= (plan.epochs or 0)


class Report:
    """What people see on stderr: a progress bar on a terminal, elsewhere a line per epoch, at most one per second."""

    def __init__(self, plan: Plan, progress: Progress, num_data: int, verbose: bool) -> None:
        self.plan, self.progress, self.verbose = plan, progress, verbose
        self._shown, self._printed = 0.0, time.monotonic()
        self.bar = tqdm(
            total=plan.samples if plan.samples is not None else (plan.epochs or 0) * num_data,
            initial=progress.samples,
            disable=None if verbose else True,  # None: no bar if stderr is not a terminal
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            mininterval=0.2,
            bar_format="{percentage:3.0f}%|{bar:8}| {n_fmt} [{remaining} left, {rate_fmt}{postfix}]",  # fits 80 columns
        )

    def step(self, size: int) -> None:
        """Show a step on `size` data."""
        self.bar.update(size)
        now = time.monotonic()
        if not self.bar.disable and now - self._shown > 0.2:
            self._shown = now
            self.bar.set_postfix_str(_words(self.progress.means()))

    def epoch(self, lines: list[dict[str, Any]]) -> None:
        """Show the log lines of an epoch."""
        now, last = time.monotonic(), self.progress.finished(self.plan)
        if self.verbose and self.bar.disable and (now - self._printed >= 1 or last):
            self._printed = now
            total = f"/{self.plan.epochs}" if self.plan.epochs else ""
            parts = "  ".join(f"{line['split']}: {_words(line)}" for line in lines)
            print(
                f"epoch {lines[0]['epoch']}{total}  {parts}  ({lines[-1]['seconds']:.0f} s)",
                file=sys.stderr,
                flush=True,
            )


def _words(values: Mapping[str, Any]) -> str:
    return " ".join(f"{word} {values[name]:.1f}" for name, word in LABELS.items() if name in values)
