"""The end of an epoch: what is evaluated, logged and saved."""

import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from vae.algorithms import check_finite
from vae.errors import TrainingFailed
from vae.training.progress import Plan, Report
from vae.training.run_directory import RunDirectory
from vae.training.run_state import RunState

Line = dict[str, Any]  # of metrics.jsonl
FAR_BELOW = 10  # a mean is far below another if it falls by this many times its size (at least 1 nat per value)


@dataclass
class Recorder:
    """Keeps the metrics and checkpoints of a run.

    `evaluations` give lines for the log and change no bit of the state; `score` names the value of the validation line
    that chooses the best checkpoint; `show` is given the lines of each epoch.
    """

    run: RunState
    folder: RunDirectory
    plan: Plan
    score: str
    report: Report
    evaluations: Sequence[Callable[[], list[Line]]]
    show: Callable[[list[Line]], None] | None = None
    _warned: bool = False

    def __post_init__(self) -> None:
        lines = self.folder.log.lines
        self._saved_at = time.monotonic()
        self._started = self._saved_at - (lines[-1].get("seconds", 0.0) if lines else 0.0)

    def end_epoch(self, whole: bool) -> None:
        """Evaluate, log and save; `whole` is False if the plan ends within the epoch."""
        progress, plan = self.run.progress, self.plan
        check_finite(progress.sums, self.run.state.model, f"by step {self.run.state.step}")  # on CUDA the first look
        epoch, means = progress.epoch + 1, progress.means()
        if whole:
            progress.end_epoch()
        else:
            # The checkpoint is written before the lines of this epoch, so that a run which continues with a larger
            # plan finishes the epoch and logs it once.
            self.save("last")
        lines = [self._line(epoch, {"split": "train", **means})]
        improved = False
        if epoch % plan.evaluate_every == 0 or progress.finished(plan):
            evaluated = [self._line(epoch, line) for evaluate in self.evaluations for line in evaluate()]
            improved = self._improves(evaluated)
            lines += evaluated
        for line in lines:
            self.folder.log.append(line)
        self.report.epoch(lines)
        if self.show is not None:
            self.show(lines)
        self._warn_of_falls(lines[0], lines[1:])
        if improved:  # before last: a run killed between the two repeats the epoch and writes the same best again
            self.save("best")
        ranks, exact = self.folder.ranks, self.run.batches.exact_within_epochs
        due = ranks.once(lambda: time.monotonic() - self._saved_at >= plan.checkpoint_seconds)
        if whole and (due or progress.finished(plan) or not exact):
            self.save("last")

    def _line(self, epoch: int, values: Line) -> Line:
        place = {"step": self.run.state.step, "epoch": epoch, "samples": self.run.progress.samples}
        return {**place, **values, "seconds": round(time.monotonic() - self._started, 3)}

    def _improves(self, lines: Sequence[Line]) -> bool:
        progress = self.run.progress
        values = [line[self.score] for line in lines if line["split"] == "validation"]
        if not values:
            return False
        improved = progress.best is None or values[0] > progress.best
        progress.best, progress.stale = (values[0], 0) if improved else (progress.best, progress.stale + 1)
        return improved

    def _warn_of_falls(self, trained: Line, evaluated: Sequence[Line]) -> None:
        """Warn, once, if the ELBO, which no warm-up changes, is far below epoch 1, or in evaluation below training."""
        epoch, now, then = trained["epoch"], trained[self.score], self.folder.log.lines[0][self.score]
        said = {
            f"the mean ELBO fell from {then:.4g} nats per datum in epoch 1 to {now:.4g} in epoch {epoch}; a smaller "
            "learning rate, or train.clip_grad_norm, may help": (now, then)
        }
        if any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in self.run.state.model.modules()):
            for line in evaluated:
                said[
                    f"the ELBO is {now:.4g} on the minibatches of epoch {epoch} and {line[self.score]:.4g} on the "
                    f"{line['split']} data: batch normalisation takes the mean and variance of the minibatch in "
                    "training, and their running averages in evaluation; train longer, or use batch_norm: false"
                ] = line[self.score], now
        for text, (value, other) in said.items():
            far = FAR_BELOW * max(abs(other), math.prod(self.run.about["data_shape"]))
            if not self._warned and self.folder.ranks.first and value < other - far:
                self._warned = True
                warnings.warn(text, stacklevel=2)

    def save(self, name: str = "last") -> None:
        """Write the state as a checkpoint; TrainingFailed instead if a sum or a parameter is not finite."""
        model = self.run.state.model
        check_finite(self.run.progress.sums, model, f"by step {self.run.state.step}")
        bad = next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), None)
        if bad is not None:
            raise TrainingFailed(f"parameter {bad} is not finite after step {self.run.state.step}")
        self.folder.write(name, self.run)
        if name == "last":
            self._saved_at = time.monotonic()
