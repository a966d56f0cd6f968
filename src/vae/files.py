"""Files that are written whole or not at all, and logs of metrics, which are cut back to what a checkpoint counts."""

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

from vae.errors import CheckpointError, UsageError
from vae.schema import show

UNSAFE = r"[^A-Za-z0-9_.+-]+"  # what the name of a file or directory should not contain


def as_path(given: str | Path, name: str) -> Path:
    """A path that a person gave as `name`; UsageError if it is empty, no path, or one that no file system can hold."""
    known = isinstance(given, str | os.PathLike) and str(given) and "\0" not in str(given)
    if not known or max(map(len, os.fsencode(given).split(b"/"))) > 255:
        raise UsageError(f"{name}: {show(given)} is no path, or too long for one")
    return Path(given)


def read_text(path: Path) -> str:
    """The text of a regular file; what is no UTF-8 in it is replaced."""
    with open_regular(path) as file:
        return file.read().decode("utf-8", "replace")


def open_regular(path: Path) -> BinaryIO:
    """A file opened for reading; OSError if it is a pipe or a device, for which a reader could wait for ever."""
    file = os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError(errno.EINVAL, "is not a regular file", str(path))
    return file


def memory() -> float:
    """The bytes of this machine's memory; infinity if the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def write_atomically(path: Path, content: bytes) -> None:
    """Replace a file so that a reader, or a crash, finds either the old content or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.partial")  # always the same name, so a crash leaves at most one
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the new name has to reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


class Log:
    """Lines of metrics in memory, and in a file (one JSON object a line) if there is one."""

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
            with self.path.open("ab") as file:  # Windows flushes only files that are open for writing
                os.fsync(file.fileno())

    def truncate(self, count: int) -> list[dict[str, Any]]:
        """Keep the first `count` lines, and give them; CheckpointError if some of them are gone."""
        assert self.path is not None, "a log in memory is not resumed"
        self.lines = read_log(self.path)[:count]
        if len(self.lines) < count:
            raise CheckpointError(
                f"{self.path}: holds {len(self.lines)} lines, and the checkpoint remembers {count}; restore the file"
            )
        if self.path.exists():  # a run that is not begun yet gets no file that makes its folder look like another's
            write_atomically(self.path, "".join(json.dumps(line) + "\n" for line in self.lines).encode())
        return self.lines


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a metrics file; what follows the last whole line (of a run at work) is left out."""
    if not path.exists():
        return []
    read = []
    for number, text in enumerate(read_text(path).splitlines(keepends=True), 1):
        if text.endswith("\n"):
            try:
                read.append(_checked(json.loads(text)))
            except ValueError:
                raise CheckpointError(f"{path}: line {number} was not written by this library; restore it") from None
    return read


def _checked(line: Any) -> dict[str, Any]:
    """A line that holds what every line holds: step, epoch and split. ValueError if it does not."""
    counts = isinstance(line, dict) and all(isinstance(line.get(key), int) for key in ("step", "epoch"))
    if not counts or not isinstance(line.get("split"), str):
        raise ValueError("not a line of metrics")
    return line
