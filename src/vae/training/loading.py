"""A run directory opened for use: the model of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vae.data import Split, read_user_split
from vae.errors import CheckpointError, UsageError
from vae.files import as_path, write_atomically
from vae.models import VAE, Standardise
from vae.precision import parameter_dtype
from vae.schema import names_of
from vae.training import checkpoint
from vae.training.build import build_model
from vae.training.checkpoint import under
from vae.training.checks import check_labels, check_support
from vae.training.run_directory import open_config
from vae.training.run_state import RunState, check_same_run
from vae.training.settings import Settings, read_settings


@dataclass
class LoadedRun:
    """What a checkpoint holds for use: the model in evaluation mode, the run's settings, and where it came from."""

    model: Any  # a VAE, or a regression
    settings: Settings
    path: Path
    checkpoint: str
    step: int
    data_sha256: str | None
    data_range: tuple[float, float] | None  # of the values of the training data, if they are known
    columns: tuple[str, ...] = ()  # the names of the elements of a datum, of a table
    classes: tuple[str, ...] = ()  # what the labels count, if they have names

    def name_of(self, label: int) -> str:
        """What a label is called."""
        return self.classes[label] if label < len(self.classes) else f"label {label}"

    def given(self, label: str) -> VAE:
        """The VAE of p(x|y) for one label, by its name or number. UsageError if the model has none of it."""
        if label in self.classes:
            return self.model.given(self.classes.index(label))
        if not (label.isdecimal() and len(label) < 10):
            known = f"{names_of(list(self.classes), 12)}, or " if self.classes else ""
            raise UsageError(f"{self.path}: has no label {label}; give {known}a number from 0")
        return self.model.given(int(label))

    def read(self, file: str | Path) -> Split:
        """The data of a file, as this model takes them; ConfigError or DataError if it cannot."""
        shape, settings = self.model.data_shape, self.settings.data
        classes = self.classes if getattr(self.model, "classes", 0) else None  # without a condition any label will do
        split = read_user_split(file, shape, settings, self.data_range, self.columns, classes)
        if isinstance(self.model, VAE):
            check_support(split, str(file), self.model)
            check_labels(split.labels, str(file), self.model)
        return split


def load_run(
    path: str | Path,
    *,
    which: str | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> LoadedRun:
    """The model of a run directory from a checkpoint: `which`, else best if there is one, else last.

    A network that was the user's own module has to be given again. Opening runs no code of the file. CheckpointError
    if the file is damaged or of another model, UsageError if the directory is not a run.
    """
    path = as_path(path, "run")
    raw, files = open_config(path), checkpoints(path)
    if not files:
        raise CheckpointError(f"{path}: has no checkpoint yet; train it: train.py --resume {path}")
    if which is not None and which not in files:
        raise CheckpointError(f"{path}: has no checkpoint {which}, only {', '.join(files)}")
    which = which or next(iter(files))
    file = files[which]
    tensors, values = checkpoint.read(file, RunState.VALUES)
    check_same_run(file, values["config"], raw)
    settings = read_settings(values["config"], where=file)
    with checkpoint.of_this_library(file):
        targets = len(tensors.get("model.outputs.mean", ()))  # of a regression
        classes = len(tensors.get("model.class_shares", ()))  # of a conditional VAE
        shape = tuple(values["data_shape"])
        model = build_model(settings.model, shape, settings.train.seed, encoder, decoder, targets, classes)
    if (mean := tensors.get("model.standardise.mean")) is not None:
        model.standardise = Standardise(mean, torch.ones_like(mean))
    model.to(parameter_dtype(settings.train.precision))
    checkpoint.load_model(model, tensors, file)
    model.data_range = tuple(values["data_range"]) if values["data_range"] else None
    facts = values["step"], values["data_sha256"], model.data_range
    names = (tuple(map(str, values[key] or ())) for key in ("columns", "classes"))
    return LoadedRun(model.eval(), settings, path, which, *facts, *names)


def checkpoints(path: Path) -> dict[str, Path]:
    """The checkpoints of a run, the one that is opened by default first."""
    files = {name: path / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")}
    return {name: file for name, file in files.items() if file.exists()}


def write_weights(run: LoadedRun, out: Path) -> Path:
    """A run directory for use alone: config, metrics, and a checkpoint of the weights in float16, without optimizer."""
    tensors, values = checkpoint.read(checkpoints(run.path)[run.checkpoint], RunState.VALUES)
    halves = {f"model.{name}": t.half() if t.is_floating_point() else t for name, t in under("model", tensors).items()}
    file = out / "checkpoints" / "last.safetensors"
    for name in ("config.yaml", "environment.json", "metrics.jsonl"):
        write_atomically(out / name, (run.path / name).read_bytes())
    checkpoint.write(file, halves, {**values, "weights_only": True})
    return file


def load(
    path: str | Path,
    *,
    checkpoint: str | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> Any:
    """The trained model of a run directory, in evaluation mode, on the CPU.

    From checkpoint best if there is one, else last, unless `checkpoint` names one. Networks that were your own modules
    have to be given again: `vae.load("runs/x", encoder=module)`. Opening a run runs no code of it.
    """
    return load_run(path, which=checkpoint, encoder=encoder, decoder=decoder).model
