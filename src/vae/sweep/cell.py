"""A cell of a sweep: a config file, the process that trains it, and a run directory. Imports no torch."""

import ctypes
import functools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vae.config import dump, flatten
from vae.files import write_atomically

Say = Callable[[str], None]
TRAIN = ("-m", "vae.commands.train")
# Linux sends SIGTERM to a process that called this, which then saves its state, once its parent has ended in any way.
END_WITH_PARENT = functools.partial(ctypes.CDLL(None).prctl, 1, signal.SIGTERM) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Cell:
    """One run of several: its name, its config, the file that holds it, and the directory of the run."""

    name: str
    config: dict[str, Any]
    file: Path
    run: Path
    values: Mapping[str, Any] = field(default_factory=dict)  # of the keys of a grid

    @property
    def log(self) -> Path:
        """The stderr of its process."""
        return self.file.with_suffix(".log")

    def write(self) -> None:
        """Write the config file, which begins with the command that trains it, and begin the log."""
        command = shlex.join(["python", *TRAIN, "--config", str(self.file), "--out", str(self.run)])
        write_atomically(self.file, f"# {command}\n{dump(self.config)}".encode())
        self.log.touch()

    def command(self) -> list[str]:
        """The arguments of Python that train the cell, or continue what its run directory holds."""
        if not (self.run / "config.yaml").exists():
            return [*TRAIN, "--no-figures", "--config", str(self.file), "--out", str(self.run)]
        # The settings are given again: places and device may have changed, and train.py refuses the others.
        settings = [f"{key}={json.dumps(value)}" for key, value in flatten(self.config).items()]
        return [*TRAIN, "--no-figures", "--resume", str(self.run), "--set", *settings]


Ended = Generator[tuple[Cell, int], None, None]  # cells, each with the exit status of its process


def start(cell: Cell, threads: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the command of a cell, in a session of its own, so that Ctrl-C reaches it only through `stop`."""
    with cell.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", *cell.command()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
            start_new_session=True,
            preexec_fn=END_WITH_PARENT,
        )


def stop(processes: Sequence[Any]) -> None:
    """Tell processes to save and stop, and wait for them; a second signal kills them."""
    for process in processes:
        process.terminate()
    try:
        for process in processes:
            process.wait()
    finally:
        for process in processes:
            process.kill()  # which does nothing to one that has ended
