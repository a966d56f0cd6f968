"""A run directory: held by one process at a time, described, and never taken from another run."""

import contextlib
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from vae import __version__
from vae.config import differences, dump, load_yaml, plain
from vae.errors import UsageError
from vae.files import Log, as_path, read_log, read_text, write_atomically
from vae.ranks import Ranks
from vae.training import checkpoint
from vae.training.run_state import MAY_CHANGE, PLACES, RunState
from vae.training.settings import Settings, read_settings

# What a kill in the first moment may leave.
_FIRST_FILES = {".lock", "checkpoints", "environment.json", ".environment.json.partial", ".config.yaml.partial"}
# What a run writes, in the order in which --overwrite removes it: what says that it is a run comes last.
FIGURES = (
    *("curves", "reconstructions", "samples", "manifold", "manifold_quantiles", "codes", "tsne", "strangest"),
    *("traversals", "interpolation", "samples_aggregate", "prediction"),
)
OWN_FILES = (
    *(f"figures/{name}.{suffix}" for name in FIGURES for suffix in ("png", "pdf")),
    "evaluations/*.json",
    "tensorboard/events.*",
    *(f"checkpoints/{name}" for name in ("best.safetensors", "last.safetensors", ".*.partial")),
    *(".*.partial", "metrics.jsonl", "environment.json", "config.yaml"),
)
# What other commands make of it, which would be of another model after --overwrite.
MADE_OF_IT = ("explorer.html", "export/??coder.onnx", "export/??coder.pt2")


class RunDirectory:
    """The files of a run at work, or none if `path` is None. Among several ranks, rank 0 alone reads and writes."""

    def __init__(self, path: Path | None, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks
        self.log = Log(path / "metrics.jsonl" if path is not None and ranks.first else None)

    def checkpoint(self, name: str) -> Path:
        """Where a checkpoint lies."""
        assert self.path is not None
        return self.path / "checkpoints" / f"{name}.safetensors"

    def write(self, name: str, run: RunState) -> None:
        """Write a checkpoint, after the metrics that it counts."""
        self.log.flush()
        run.progress.log_lines = len(self.log.lines)
        if self.path is not None:
            self.ranks.once(lambda: checkpoint.write(self.checkpoint(name), *run.pack()))

    def reserve(self, run: RunState) -> None:
        """Write as much as a checkpoint needs, and remove it; CheckpointError if there is no room for one.

        So a full disk, or a limit on the size of files, is found before the training and not after it.
        """
        if self.path is None:
            return
        file, (tensors, values) = self.checkpoint("last"), run.pack()
        # Twice the parameters for an optimizer that has no state yet.
        later = [] if run.state.step else 2 * list(run.state.model.parameters())
        size = sum(t.numel() * t.element_size() for t in (*tensors.values(), *later)) + len(json.dumps(values)) + 2**16
        trial = file.with_name(".trial.partial")
        try:
            with checkpoint.room(file, size):
                trial.parent.mkdir(parents=True, exist_ok=True)
                trial.write_bytes(bytes(size))
        finally:
            trial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # unless there are checkpoints
                trial.parent.rmdir()

    def read_last(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The last checkpoint, if there is one."""
        file = self.checkpoint("last")
        return self.ranks.once(lambda: checkpoint.read(file, RunState.VALUES) if file.exists() else None)

    def truncate_log(self, count: int) -> None:
        """Drop the metrics that were written after a checkpoint."""
        self.log.lines = self.ranks.once(lambda: self.log.truncate(count))

    def last_good(self) -> str:
        """Which checkpoint to go back to, in words."""
        if self.path is None or not self.checkpoint("last").exists():
            return "there is no earlier checkpoint"
        return f"the last good checkpoint is {self.checkpoint('last')}"

    def describe(self, settings: Settings, data: str, run: RunState) -> None:
        """Write what the run runs on, and the resolved config."""
        if self.path is None or not self.ranks.first:
            return
        device = run.streams.device
        on_cuda = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_cuda else platform.processor() or platform.machine()
        record = {
            "vae": __version__,
            "commit": commit(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "platform": platform.platform(),
            "device": f"{device.type} ({name})",
            "threads": torch.get_num_threads(),
            "processes": self.ranks.world,
            "steps": run.form or "plain",
            "precision": settings.train.precision,
            "data": data,
            "weights": run.about["weights"],
        }
        write_atomically(self.path / "environment.json", (json.dumps(record, indent=2) + "\n").encode())
        write_atomically(self.path / "config.yaml", dump(plain(settings)).encode())


def commit() -> str | None:
    """The commit of the library's own checkout, if it runs from one."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], **options)  # not of a project around it
        return subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


# ------------------------------------------------------------------------------------- who may write into it


@contextlib.contextmanager
def acquire(path: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold a run directory against other processes, made if need be; UsageError if it holds something else.

    It is looked at before its lock is taken, so that a folder of somebody else's gets no file, and again after, because
    another process may have written into it in between.
    """
    _check_free(path, resume, overwrite)
    with lock(path):
        _check_free(path, resume, overwrite)
        if overwrite:
            _remove_own_files(path)
        yield


def own_files(path: Path, patterns: Iterable[str] = OWN_FILES) -> list[Path]:
    """The files of a run that are there, and nothing that a user has put beside them."""
    return [file for pattern in patterns for file in sorted(path.glob(pattern))]


def _remove_own_files(path: Path) -> None:
    """Remove the files of a run; UsageError, before any is removed, if that is not possible. No link is followed."""
    folders = [path / name for name in ("export", "figures", "evaluations", "checkpoints")]
    files = own_files(path, (*MADE_OF_IT, *OWN_FILES))
    wrong = [f for f in folders if f.is_symlink() or (f.exists() and not os.access(f, os.W_OK))]
    wrong += [f for f in files if f.is_dir() and not f.is_symlink()]
    if wrong:
        raise UsageError(
            f"{wrong[0]}: is a link, a folder in place of a file, or read-only, which --overwrite leaves alone; remove "
            "it, or choose another directory with --out"
        )
    for file in files:
        file.unlink()
    for folder in folders:
        with contextlib.suppress(OSError):  # what the user has put there stays
            folder.rmdir()


def check_output(path: Path) -> None:
    """UsageError if writing to a path would replace a file of a run."""
    place = path.absolute()
    for folder in (place.parent, place.parent.parent):
        if _is_run(folder) and place in own_files(folder):
            raise UsageError(f"{path}: is a file of the run {folder}; choose another name")


def _check_free(path: Path, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise UsageError("resume continues a run, and overwrite replaces it; give one of them")
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; --out names a directory for the run")
    try:
        holds = path.is_dir() and any(p.name not in _FIRST_FILES for p in path.iterdir())
        if holds and not _is_run(path) and not (resume and (path / "config.yaml").exists()):
            raise UsageError(f"{path}: holds other files and is not a run; choose another directory with --out")
    except OSError as error:
        raise UsageError(f"{path}: cannot write the run there: {error.strerror}") from None
    if holds and not (resume or overwrite):
        raise UsageError(
            f"{path}: holds a run already; continue it with --resume {path} (resume=True in Python), replace it with "
            "--overwrite, or choose another directory with --out"
        )


@contextlib.contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold a directory, made if need be, against other processes; the lock ends with the process, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = (path / ".lock").open("w")
    except OSError as error:
        raise UsageError(f"{path}: cannot write the run there: {error.strerror}") from None
    with file:
        try:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on Windows
            pass
        except OSError:
            raise UsageError(f"{path}: another process is training in this directory; wait for it or stop it") from None
        yield


def _is_run(path: Path) -> bool:
    """Whether a directory is a run of this library, and not another program's with a config.yaml."""
    try:
        about = json.loads(read_text(path / "environment.json"))
        return (path / "config.yaml").exists() and isinstance(about, dict) and "vae" in about
    except (OSError, ValueError, RecursionError):
        return False


# ------------------------------------------------------------------------------------- its config


def open_config(path: str | Path) -> dict[str, Any]:
    """The raw config of a run directory; UsageError if it is none."""
    path = as_path(path, "run")
    if not path.is_dir():
        raise UsageError(f"{path}: no such run directory")
    if not (path / "config.yaml").exists():
        raise UsageError(f"{path}: is not a run directory (it has no config.yaml); give one that train.py has made")
    return load_yaml(path / "config.yaml")


def other_settings(theirs: Settings, ours: Settings) -> list[str]:
    """The dotted keys whose values make two runs different; where the data lie, and the device, do not."""
    return [key for key in differences(plain(theirs), plain(ours)) if key not in PLACES]


def resumed_settings(path: str | Path, overrides: Iterable[str]) -> Settings:
    """The settings to resume a run with; UsageError names the overrides that would make it another run."""
    raw = open_config(path)
    overrides = list(overrides)
    settings, before = read_settings(raw, overrides, Path(path) / "config.yaml"), read_settings(raw)
    changed = [key for key in differences(plain(before), plain(settings)) if key not in MAY_CHANGE]
    if changed:
        raise UsageError(
            f"--set: {', '.join(changed)} cannot change in a resumed run, only {', '.join(sorted(MAY_CHANGE))} can; to "
            f"begin another run with its weights: train.py --from {path} --config FILE"
        )
    return settings


def history(path: str | Path) -> list[dict[str, Any]]:
    """The metrics of a run directory, a dictionary for each line."""
    open_config(path)
    return read_log(Path(path) / "metrics.jsonl")
