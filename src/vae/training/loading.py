"""A run directory opened for use: the model of a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vae.errors import CheckpointError, VaeError
from vae.models import VAE
from vae.precision import parameter_dtype
from vae.training import checkpoint
from vae.training.build import build_model
from vae.training.progress import Plan, Progress
from vae.training.run_directory import open_config, other_settings
from vae.training.run_state import RunState, check_same_run
from vae.training.settings import Settings, read_settings


@dataclass
class LoadedRun:
    """What a checkpoint holds for use: the model in evaluation mode, the run's settings, and where it came from."""

    model: VAE
    settings: Settings
    path: Path
    checkpoint: str
    step: int
    data_sha256: str | None
    data_range: tuple[float, float] | None  # of the values of the training data, if they are known


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
    path = Path(path)
    raw, files = open_config(path), _checkpoints(path)
    if not files:
        raise CheckpointError(f"{path}: has no checkpoint yet; train it: train.py --resume {path}")
    if which is not None and which not in files:
        raise CheckpointError(f"{path}: has no checkpoint {which}, only {', '.join(files)}")
    which = which or next(iter(files))
    file = files[which]
    tensors, values = checkpoint.read(file, RunState.VALUES)
    check_same_run(file, values["config"], raw)
    settings = read_settings(values["config"], where=file)
    model = build_model(settings.model, tuple(values["data_shape"]), settings.train.seed, encoder, decoder)
    model.to(parameter_dtype(settings.train.precision))
    checkpoint.load_model(model, tensors, file)
    data_range = tuple(values["data_range"]) if values["data_range"] else None
    return LoadedRun(model.eval(), settings, path, which, values["step"], values["data_sha256"], data_range)


def _checkpoints(path: Path) -> dict[str, Path]:
    """The checkpoints of a run, the one that is opened by default first."""
    files = {name: path / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")}
    return {name: file for name, file in files.items() if file.exists()}


def finished_at(path: Path, settings: Settings) -> int | None:
    """The step of the checkpoint that `load_run` opens, if this is a run of these very settings with nothing left to
    train; None if it has further to go, has other settings (places of data and device apart), or is not a run."""
    try:
        theirs = read_settings(open_config(path))
        values: dict[str, Any] = {name: checkpoint.read_values(file) for name, file in _checkpoints(path).items()}
        if "last" not in values or other_settings(theirs, settings):
            return None
        train = settings.train
        plan = Plan(train.epochs, train.samples, patience=train.patience)
        return next(iter(values.values()))["step"] if Progress(**values["last"]["progress"]).finished(plan) else None
    except (VaeError, KeyError, TypeError):
        return None


def load(
    path: str | Path,
    *,
    checkpoint: str | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> VAE:
    """The trained model of a run directory, in evaluation mode, on the CPU.

    From checkpoint best if there is one, else last, unless `checkpoint` names one. Networks that were your own modules
    have to be given again: `vae.load("runs/x", encoder=module)`. Opening a run runs no code of it.
    """
    return load_run(path, which=checkpoint, encoder=encoder, decoder=decoder).model
