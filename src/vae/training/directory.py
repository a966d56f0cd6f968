"""A run directory: claimed by one process at a time, described, and never taken from another run."""

import contextlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from vae import __version__
from vae.config import differences, dump, load_yaml, plain
from vae.errors import CheckpointError, UsageError, VaeError
from vae.training.checkpoint import write_atomically
from vae.training.settings import Settings, read_settings

PLACES = {"data.root", "data.path", "train.device"}  # they change no result
MAY_CHANGE = PLACES | {"train.epochs", "train.samples"}  # in a resumed run
_FIRST_FILES = {
    ".lock",
    "environment.json",
    ".environment.json.partial",
    ".config.yaml.partial",
}  # a kill may leave them
OWN_FILES = ("config.yaml", "environment.json", "metrics.jsonl", "evaluations", "checkpoints", "figures")


@contextlib.contextmanager
def claimed(path: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """Hold a run directory against other processes, made if need be; UsageError where it holds something else."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is a file; --out names a directory for the run")
    try:
        holds = path.is_dir() and any(p.name not in _FIRST_FILES for p in path.iterdir())
        if holds and not _is_run(path) and not (resume and (path / "config.yaml").exists()):
            raise UsageError(f"{path}: holds other files and is no run; choose another directory with --out")
        if holds and not (resume or overwrite):
            raise UsageError(
                f"{path}: holds a run already; go on with it by --resume {path} (resume=True in Python), replace it by "
                "--overwrite, or choose another directory with --out"
            )
    except OSError as error:
        raise UsageError(f"{path}: cannot write the run there: {error.strerror}") from None
    with locked(path):
        if overwrite:
            for seed in _seeds(path):
                with locked(seed):
                    shutil.rmtree(seed)
            for target in (path / name for name in OWN_FILES):
                shutil.rmtree(target) if target.is_dir() else target.unlink(missing_ok=True)
        yield


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a directory, made if need be, against other processes; the lock ends with the process, however it ends."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UsageError(f"{path}: cannot write the run there: {error.strerror}") from None
    with lock:
        try:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # no such locks on Windows
            pass
        except OSError:
            raise UsageError(f"{path}: another process is training in this directory; wait for it or stop it") from None
        yield


def _is_run(path: Path) -> bool:
    """Whether a directory is a run of this library, and not another program's with a config.yaml."""
    try:
        return (path / "config.yaml").exists() and "vae" in json.loads((path / "environment.json").read_text())
    except (OSError, ValueError):
        return False


def _seeds(path: Path) -> list[Path]:
    """The runs of the seeds that were trained as one and left in a directory, by its config."""
    try:
        train = read_settings(open_config(path)).train
    except VaeError:
        return []
    seeds = range(train.seed, train.seed + train.replicas) if train.replicas > 1 else ()
    return [run for run in (path / f"seed_{seed}" for seed in seeds) if _is_run(run)]


def describe_run(
    path: Path, settings: Settings, data: str, device: torch.device, how: Mapping[str, str], processes: int
) -> None:
    """Write what the run runs on, and the resolved config."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    record = {
        "vae": __version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": numpy.__version__,
        "platform": platform.platform(),
        "device": f"{device.type} ({name})",
        "threads": torch.get_num_threads(),
        "processes": processes,
        **how,
        "data": data,
    }
    write_atomically(path / "environment.json", (json.dumps(record, indent=2) + "\n").encode())
    write_atomically(path / "config.yaml", dump(plain(settings)).encode())


def _commit() -> str | None:
    """The commit of the library's own checkout, if it runs from one."""
    try:
        git = ["git", "-C", str(Path(__file__).parent)]
        options: dict[str, Any] = {"capture_output": True, "text": True, "timeout": 10, "check": True}
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], **options)  # not of a project around it
        return subprocess.run([*git, "describe", "--always", "--dirty", "--abbrev=40"], **options).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def open_config(path: str | Path) -> dict[str, Any]:
    """The raw config of a run directory; UsageError where it is none."""
    path = Path(path)
    if not path.is_dir():
        raise UsageError(f"{path}: no such run directory")
    if not (path / "config.yaml").exists():
        raise UsageError(f"{path}: no run directory (it has no config.yaml); give one that train.py has made")
    return load_yaml(path / "config.yaml")


def other_settings(theirs: Settings, ours: Settings) -> list[str]:
    """The dotted keys whose values make two runs different; where the data lie and the device do not."""
    return [key for key in differences(plain(theirs), plain(ours)) if key not in PLACES]


def resumed_settings(path: str | Path, overrides: Iterable[str]) -> Settings:
    """The settings to resume a run with; UsageError names the overrides that would make it another run."""
    raw = open_config(path)
    overrides = list(overrides)
    settings, before = read_settings(raw, overrides, Path(path) / "config.yaml"), read_settings(raw)
    changed = [key for key in differences(plain(before), plain(settings)) if key not in MAY_CHANGE]
    if changed:
        raise UsageError(
            f"--set: {', '.join(changed)} cannot change in a resumed run, only {', '.join(sorted(MAY_CHANGE))} can"
        )
    return settings


def check_same_run(file: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """CheckpointError where a checkpoint was written under another config than that of its directory."""
    changed = [key for key in differences(theirs, ours) if key not in MAY_CHANGE]
    if changed:
        raise CheckpointError(
            f"{file}: written under another config: {', '.join(changed)} differ from config.yaml, where only "
            f"{', '.join(sorted(MAY_CHANGE))} may; put the right file back"
        )
