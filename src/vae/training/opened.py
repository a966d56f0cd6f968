"""A run directory opened for use: the model of a checkpoint, and the metrics."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vae.errors import CheckpointError, UsageError, VaeError
from vae.models import VAE
from vae.training import checkpoint
from vae.training.build import build_model
from vae.training.directory import check_same_run, open_config, other_settings
from vae.training.log import read_log
from vae.training.settings import Settings, read_settings
from vae.training.trainer import Plan, Progress


@dataclass
class Opened:
    """What a checkpoint holds for use: the model in evaluation mode, the run's settings, and where it came from."""

    model: VAE
    settings: Settings
    path: Path
    checkpoint: str
    step: int
    data_sha256: str | None
    data_range: tuple[float, float] | None  # of the values of the training data, where they are known


def open_run(
    path: str | Path,
    *,
    which: str | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> Opened:
    """The model of a run directory from a checkpoint: `which`, else best where there is one, else last.

    A network that was the user's own module has to be given again. Opening runs no code of the file. CheckpointError
    where the file is damaged or of another model, UsageError where the directory is no run.
    """
    path = Path(path)
    raw = open_config(path)
    files = {name: path / "checkpoints" / f"{name}.safetensors" for name in ("best", "last")}
    there = [name for name, file in files.items() if file.exists()]
    if not there:
        check_single(path)
    if not there:
        raise CheckpointError(f"{path}: has no checkpoint yet; train it: train.py --resume {path}")
    if which is not None and which not in there:
        raise CheckpointError(f"{path}: has no checkpoint {which}, only {', '.join(there)}")
    which = which or there[0]
    file = files[which]
    tensors, values = checkpoint.read(file, checkpoint.VALUES)
    check_same_run(file, values["config"], raw)
    settings = read_settings(values["config"], where=file)
    model = build_model(settings.model, tuple(values["data_shape"]), settings.train.seed, encoder, decoder)
    if settings.train.precision == "float64":
        model.double()
    checkpoint.load_model(model, tensors, file)
    data_range = tuple(values["data_range"]) if values["data_range"] else None
    return Opened(model.eval(), settings, path, which, values["step"], values["data_sha256"], data_range)


def check_single(path: Path) -> None:
    """UsageError where a directory holds the runs of several seeds."""
    if seeds := sorted(path.glob("seed_*")):
        raise UsageError(f"{path}: holds the runs of {len(seeds)} seeds; give one of them, such as {seeds[0]}")


def finished_at(path: Path, settings: Settings) -> int | None:
    """The step of the checkpoint that `open_run` takes of a run of these very settings which has nothing left to train.

    None where the run has further to go, has other settings (the paths of the data and the device apart), or is none.
    """
    files = {name: path / "checkpoints" / f"{name}.safetensors" for name in ("last", "best")}
    try:
        theirs = read_settings(open_config(path))
        values = {name: checkpoint.read(f, checkpoint.VALUES)[1] for name, f in files.items() if f.exists()}
    except VaeError:
        return None
    if "last" not in values or other_settings(theirs, settings):
        return None
    train = settings.train
    if not Progress(**values["last"]["progress"]).finished(Plan(train.epochs, train.samples, patience=train.patience)):
        return None
    return values.get("best", values["last"])["step"]


def load(
    path: str | Path,
    *,
    checkpoint: str | None = None,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
) -> VAE:
    """The trained model of a run directory, in evaluation mode, on the CPU.

    From checkpoint best where there is one, else last, unless `checkpoint` says which. Networks that were your own
    modules have to be given again: `vae.load("runs/x", encoder=module)`. Opening a run runs no code of it.
    """
    return open_run(path, which=checkpoint, encoder=encoder, decoder=decoder).model


def history(path: str | Path) -> list[dict[str, Any]]:
    """The metrics of a run directory, one dictionary a line."""
    open_config(path)
    return read_log(Path(path) / "metrics.jsonl")
