"""metrics.jsonl: one JSON object a line, cut back on resume to what the checkpoint remembers."""

import json
import math
import os
from pathlib import Path
from typing import Any

from vae.errors import CheckpointError
from vae.training.checkpoint import write_atomically


class Log:
    """Lines of metrics in memory, and in a file where there is one."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []

    def append(self, line: dict[str, Any]) -> None:
        """Add a line; it is in the file when this returns (on the disk after `flush`)."""
        self.lines.append(line)
        if self.path is not None:
            with self.path.open("a", encoding="ascii") as file:
                file.write(json.dumps(line, allow_nan=False) + "\n")

    def flush(self) -> None:
        """Force the lines to the disk, so that no checkpoint is newer than its metrics."""
        if self.path is not None and self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def cut_back(self, count: int) -> list[dict[str, Any]]:
        """Drop the lines that were written after a checkpoint, and give those before it; CheckpointError where some of
        them are gone."""
        assert self.path is not None, "a log in memory is not resumed"
        self.lines = read_log(self.path)[:count]
        if len(self.lines) < count:
            raise CheckpointError(
                f"{self.path}: holds {len(self.lines)} lines, and the checkpoint remembers {count}; put the file "
                "back as it was"
            )
        write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        return self.lines


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; what follows the last whole line (of a run that goes on) is left out."""
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    read = []
    for number, line in enumerate(lines, 1):
        if line.endswith("\n"):
            try:
                read.append(_checked(json.loads(line)))
            except ValueError:
                raise CheckpointError(f"{path}: line {number} is none of this library's; put the file back") from None
    return read


def _checked(line: Any) -> dict[str, Any]:
    """A line that holds what every line holds; ValueError where it does not."""
    if not isinstance(line, dict) or not isinstance(line.get("split"), str):
        raise ValueError("no line of metrics")
    for key in ("step", "epoch", "samples", "elbo", "log_p_x_given_z", "kl", "seconds"):
        if not isinstance(line.get(key), int | float) or not math.isfinite(line[key]):
            raise ValueError(key)
    return line
