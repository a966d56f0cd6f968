"""A session: a run at work, with its parts, its state and its checkpoints."""

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch

from vae.algorithms import AEVB, State
from vae.config import plain
from vae.data import Data, Loader, Resident
from vae.errors import CheckpointError, TrainingFailed, UsageError
from vae.evaluation import evaluate_bound
from vae.models import VAE
from vae.randomness import Streams
from vae.ranks import Ranks
from vae.training import checkpoint
from vae.training.build import build_algorithm, check_batch_norm, check_objective, check_support, choose_device
from vae.training.directory import check_same_run, describe_run
from vae.training.log import Log
from vae.training.parallel import check_same_data, own_device, prepare
from vae.training.settings import AUTOCAST, Precision, Settings, TrainSettings
from vae.training.trainer import NEXT, Member, Plan, Progress


class Session:
    """A run: its parts, its state and its checkpoints."""

    def __init__(self, settings: Settings, model: VAE, data: Any, path: Path | None) -> None:
        train = settings.train
        self.settings, self.model, self.data, self.path = settings, model, data, path
        self.ranks = ranks = Ranks.joined()
        self.device = ranks.together(lambda: own_device(choose_device(train.device, train.precision), ranks))
        self.dtype = torch.float64 if train.precision == "float64" else torch.float32
        model.to(device=self.device, dtype=self.dtype).train()
        self.source = _source(data, model, train, self.device, self.dtype)
        check_batch_norm(model, self.source.smallest_batch, settings.objective.options["num_samples"])
        if ranks.several:
            prepare(model, self.source, settings, self.device, ranks)
        algorithm = build_algorithm(settings, self.source.num_data, self.source.num_batches)
        self.algorithm: AEVB = replace(algorithm, expand=self.source.expand)
        check_objective(self.algorithm.objective, model)
        self.state: State = self.algorithm.init(model)
        self.streams = Streams(train.seed, self.device)
        self.plan = Plan(train.epochs, train.samples, train.evaluate_every, train.patience, train.checkpoint_seconds)
        self.progress = Progress()
        self.recorded_form: str | None = None  # of a resumed run
        self.recorded_precision: Precision | None = None
        self.precision: Precision = "float32" if train.precision == "auto" else train.precision
        self.form: Callable[[], str] = lambda: self.recorded_form or "plain"
        self.before_save: Callable[[], None] = lambda: None
        self.log = Log(path / "metrics.jsonl" if path is not None and ranks.first else None)
        self.facts = {
            "config": plain(settings),
            "data_shape": list(model.data_shape),
            "data_sha256": fingerprint(data) if isinstance(data, Data) else None,
            "threads": torch.get_num_threads(),
            "data_range": list(data.train.range) if isinstance(data, Data) else None,
        }
        check_same_data(self.facts["data_sha256"], ranks)

    def member(self, observe: Callable[[VAE, Data], list[dict[str, Any]]] | None) -> Member:
        """What the trainer has to know of this run."""
        data, model, once = self.data, self.model, self.ranks.once
        validates = isinstance(data, Data) and data.validation is not None
        return Member(
            model,
            self.progress,
            self.log,
            self.save,
            self.rename,
            self.last_good,
            validate=(lambda: once(lambda: evaluation_line(model, data, "validation"))) if validates else None,
            observe=(lambda: once(lambda: observe(model, data))) if observe is not None else None,
        )

    def multiply_in(self, precision: Precision) -> None:
        """Let the networks' products be in a precision."""
        self.precision = precision
        self.algorithm = replace(self.algorithm, autocast=AUTOCAST.get(precision))

    def describe(self, about: str) -> None:
        """Write what the run is and runs on, in its directory."""
        assert self.path is not None
        how = {"steps": self.form(), "precision": self.precision}
        describe_run(self.path, self.settings, about, self.device, how, self.ranks.world)

    def file(self, name: str) -> Path:
        """Where a checkpoint lies."""
        assert self.path is not None
        return self.path / "checkpoints" / f"{name}.safetensors"

    def last_good(self) -> str:
        """Which checkpoint to go back to, in words."""
        if self.path is None or not self.file("last").exists():
            return "there is no checkpoint from before"
        return f"the last good checkpoint is {self.file('last')}"

    def save(self, name: str) -> None:
        """Write the whole state as a checkpoint; TrainingFailed instead if a parameter is not finite."""
        model = self.model
        bad = next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), None)
        if bad is not None:
            raise TrainingFailed(f"parameter {bad} is not finite after step {self.state.step}; {self.last_good()}")
        if self.path is not None:
            self.before_save()
            self.ranks.once(lambda: self._write(name))

    def rename(self, name: str, other: str) -> None:
        """Put a checkpoint in the place of another."""
        if self.path is not None:
            checkpoint.rename(self.file(name), self.file(other))

    def step_of(self, name: str) -> int:
        """The step of a checkpoint; -1 where there is none."""
        file = self.file(name)
        return checkpoint.read(file, checkpoint.VALUES)[1]["step"] if file.exists() else -1

    def _write(self, name: str) -> None:
        optimizer_tensors, optimizer_values = checkpoint.optimizer_state(self.state.optimizer)
        tensors = {
            **checkpoint.prefixed("model", self.model.state_dict()),
            **checkpoint.prefixed("optimizer", optimizer_tensors),
            **checkpoint.prefixed("memory", self.state.memory),
            **checkpoint.prefixed("streams", {**self.streams.state(), **self.source.state()}),
            **checkpoint.prefixed("sums", self.progress.sums),
        }
        progress = {f.name: getattr(self.progress, f.name) for f in fields(Progress) if f.name != "sums"}
        values = {
            **self.facts,
            "form": self.form(),
            "precision": self.precision,
            "step": self.state.step,
            "optimizer": optimizer_values,
            "progress": progress,
        }
        checkpoint.write(self.file(name), tensors, values)

    def resume(self) -> None:
        """Take up the state of the last checkpoint, if there is one; else start from the beginning."""
        path = self.file("last")
        found = self.ranks.once(lambda: checkpoint.read(path, checkpoint.VALUES) if path.exists() else None)
        if found is None:
            self._cut_back_log(0)
            return
        tensors, values = found
        checkpoint.load_model(self.state.model, tensors, path)
        check_same_run(path, values["config"], self.facts["config"])
        if values["data_sha256"] != self.facts["data_sha256"]:
            raise CheckpointError(f"{path}: the training data are not those that this run was trained on; restore them")
        if values["threads"] != self.facts["threads"]:
            warnings.warn(
                f"the run was begun with {values['threads']} threads and goes on with {self.facts['threads']}: its "
                "sums round differently, so it will not end in the same bits",
                stacklevel=2,
            )
        checkpoint.load_optimizer(
            self.state.optimizer, checkpoint.under("optimizer", tensors), values["optimizer"], path
        )
        device = self.streams.device
        self.state.memory = {k: t.to(device) for k, t in checkpoint.under("memory", tensors).items()}
        self.state.step = values["step"]
        self.recorded_form, self.recorded_precision = values["form"], values["precision"]
        streams = checkpoint.under("streams", tensors)
        self.streams.restore(streams, self.state.step)
        self.source.restore(streams)
        self.progress = Progress(**values["progress"])
        begun = self.progress.epoch + (self.progress.batch > 0)
        if self.plan.epochs is not None and self.plan.epochs < begun:
            raise UsageError(
                f"train.epochs: {self.plan.epochs}, and the run has begun epoch {begun}; give at least that"
            )
        self.progress.sums = {k: t.to(device) for k, t in checkpoint.under("sums", tensors).items()}
        self._cut_back_log(self.progress.log_lines)

    def _cut_back_log(self, count: int) -> None:
        self.log.lines = self.ranks.once(lambda: self.log.cut_back(count))


def finish_save(sessions: Sequence[Session]) -> None:
    """Finish what a kill has cut short: where one of several runs has its new checkpoint, all have written theirs."""
    newest = max(session.step_of("last") for session in sessions)
    for session in sessions:
        if session.step_of("last") < newest and session.step_of(NEXT) == newest:
            session.rename(NEXT, "last")


def _source(data: Data | Any, model: VAE, train: TrainSettings, device: torch.device, dtype: torch.dtype) -> Any:
    """Where minibatches come from, after a look at shape and values."""
    if not isinstance(data, Data):
        return Loader(data, model.data_shape, str(model.likelihood_head.support), device, dtype)
    if data.shape != model.data_shape:
        raise UsageError(f"the data have shape {data.shape}, and the model is of {model.data_shape}")
    for split in (data.train, data.validation, data.test):
        if split is not None:
            check_support(split, data.name, model)
    return Resident(data.train, train.batch_size, train.seed, device, dtype)


def evaluation_line(model: VAE, data: Data, name: str) -> dict[str, Any]:
    """One line of metrics on the ELBO of a split, with KL a dimension and active units.

    Its noise is that of evaluate.py's default seed, whatever the seed of the training.
    """
    return evaluate_bound(model, data.evaluation_split(name), name=name).log_line()


def fingerprint(data: Data) -> str:
    """SHA-256 of all that training and selection see."""
    digest = hashlib.sha256()
    for split in (data.train, data.validation):
        if split is not None:
            digest.update(f"{tuple(split.x.shape)} {split.scale}".encode())
            digest.update(split.x.contiguous().reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]  # without a copy
    return digest.hexdigest()
