"""A cell of a sweep: a config file, the command that trains it, and a run directory. Imports no torch."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vae.config import dump, flatten
from vae.files import UNSAFE, write_atomically

SEED = "train.seed"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its values of the grid's keys, its resolved config, its config file and its run directory."""

    name: str
    values: Mapping[str, Any]
    config: dict[str, Any]
    file: Path
    run: Path

    @property
    def log(self) -> Path:
        """The stderr of its process."""
        return self.file.with_suffix(".log")

    def log_lines(self) -> list[str]:
        """The lines of that log."""
        return self.log.read_text(errors="replace").strip().splitlines() if self.log.exists() else []

    @property
    def point(self) -> dict[str, Any]:
        """The values without the seed."""
        return {key: value for key, value in self.values.items() if key != SEED}

    def write(self) -> None:
        """Write the config file, which begins with the command that trains it."""
        command = shlex.join(["python", *_train("--config", self.file, "--out", self.run)])
        write_atomically(self.file, f"# {command}\n{dump(self.config)}".encode())

    def command(self) -> list[str]:
        """The arguments of Python that train the cell, or continue what its run directory holds.

        To continue, the settings are given again: places and device may have changed, and train.py refuses the others.
        """
        if not (self.run / "config.yaml").exists():
            return _train("--config", self.file, "--out", self.run, "--no-figures")
        settings = [f"{key}={json.dumps(value)}" for key, value in flatten(self.config).items()]
        return _train("--resume", self.run, "--no-figures", "--set", *settings)


def _train(*arguments: str | Path) -> list[str]:
    return ["-m", "vae.commands.train", *map(str, arguments)]


def cell_name(values: Mapping[str, Any]) -> str:
    """The name of a cell; it does not depend on the order of the keys or on the rest of the grid."""
    short = short_names(values)
    texts = {key: value_text(values[key]) for key in sorted(values)}
    name = ",".join(f"{short[key]}={re.sub(UNSAFE, '-', text)}" for key, text in texts.items())
    if len(name) <= 150 and not any(re.search(UNSAFE, text) for text in texts.values()):
        return name
    return f"{name[:150]},{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]}"


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole key if two share that part."""
    keys = list(keys)
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def value_text(value: Any) -> str:
    """A value as it is written in names and tables: 10, mlp, 512-256."""
    if isinstance(value, list) and not any(isinstance(inner, list | dict) for inner in value):
        return "-".join(map(value_text, value))
    return value if isinstance(value, str) else json.dumps(value)
