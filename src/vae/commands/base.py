"""What the commands share: arguments, messages, exit statuses, and the opening of a run with its data."""

from __future__ import annotations

import argparse
import contextlib
import functools
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from vae.errors import Interrupted, UsageError, VaeError
from vae.ranks import Ranks

if TYPE_CHECKING:
    from vae.data import Data, Split
    from vae.training.loading import LoadedRun


class Main(Protocol):
    """A command: arguments (those of the process by default) to an exit status."""

    def __call__(self, argv: Sequence[str] | None = None) -> int:
        """Run it."""


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def __init__(self, program: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"{program}.py",
            description=description,
            epilog=f"example:\n  python scripts/{program}.py {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # an example can be copied
            allow_abbrev=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse; no argument can hold a NUL byte, which no path takes."""
        parsed = super().parse_args(args, namespace)
        if any("\0" in str(value) for value in vars(parsed).values()):
            self.error("an argument holds a NUL byte")
        return parsed

    def error(self, message: str) -> NoReturn:
        """Raise what `command` turns into a sentence and exit status 2."""
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def command(main: Callable[[Sequence[str] | None], None]) -> Main:
    """Run a command: errors that a user can mend become their sentence on stderr and an exit status."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        try:
            with warnings.catch_warnings(), _terminable(), _one_voice():
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = _show_warning
                main(argv)
            if sys.stdout is not None:
                sys.stdout.flush()
        except (VaeError, Interrupted) as error:
            return _ended(error, error.status)
        except KeyboardInterrupt:
            return _ended("interrupted", 130)
        except BrokenPipeError:  # the reader of stdout (head, less) has gone
            sys.stderr.close()
            return 141
        except OSError as error:
            return _ended(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            print(f"out of memory: {str(error).splitlines()[0]}; choose smaller sizes or batches", file=sys.stderr)
            return 1
        return 0

    return run


def _out_of_memory(error: Exception) -> bool:
    """Whether memory has run out, and no other error speaks of it; told without torch, which would take a second."""
    allocator = ("not enough memory: you tried to allocate", "can't allocate memory")  # torch's own on the processor
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(words in str(error) for words in allocator)


def _ended(sentence: object, status: int) -> int:
    """Say how a command has ended; of several processes under torchrun, all of which know it, the first does."""
    ranks = Ranks.launched()
    if ranks.several:  # torchrun ends the rest once one of them has ended; each is to end with this status
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if ranks.first:
        print(sentence, file=sys.stderr, flush=True)
    ranks.wait_for_rank_0()
    return status


@contextlib.contextmanager
def _one_voice() -> Iterator[None]:
    """Silence a command on all processes of a torchrun but the first, up to errors that only one of them may have."""
    if Ranks.launched().first:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, with status 143; training saves its state first."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Interrupted("terminated", 128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, category: type[Warning], *rest: Any, **more: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def positive(text: str) -> int:
    """An argument that counts something."""
    if not text.isdigit() or not 1 <= int(text) < 2**31:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of at least 1 (and below 2^31)")
    return int(text)


def natural(text: str) -> int:
    """An argument that is a seed."""
    if not text.isdigit() or int(text) >= 2**32:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 0 to {2**32 - 1}")
    return int(text)


def add_set(parser: Parser, of: str = "") -> None:
    """Settings beside a config."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"settings that replace the file's{of}",
    )


def add_runs(parser: Parser, several: bool = False) -> None:
    """The run, or runs, of a command."""
    parser.add_argument("run", nargs="+" if several else None, metavar="RUN", help="a run directory of train.py")


def add_checkpoint(parser: Parser) -> None:
    """Which checkpoint of a run to open."""
    parser.add_argument(
        "--checkpoint",
        choices=("last", "best"),
        help="which checkpoint (default: best where there is one, else last)",
    )


def add_split(parser: Parser) -> None:
    """The arguments by which a command chooses data."""
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test", help="default: test")
    parser.add_argument("--limit", type=positive, metavar="N", help="the first N data only")


def write_npz(path: str, arrays: dict[str, Any]) -> None:
    """Write arrays as one .npz file, whole or not at all."""
    import io

    import numpy as np

    from vae.files import write_atomically

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    try:
        if Path(path).is_dir():
            raise UsageError(f"{path}: is a folder; name the .npz file to write")
        write_atomically(Path(path), buffer.getvalue())
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None


def open_on_device(path: str | Path, checkpoint: str | None) -> LoadedRun:
    """A run, its model on the CPU if it was trained there by its settings, else on the best device at hand."""
    from vae.training.build import choose_device
    from vae.training.loading import load_run

    opened = load_run(path, which=checkpoint)
    opened.model.to(choose_device("cpu" if opened.settings.train.device == "cpu" else "auto"))
    return opened


def open_with_data(path: str | Path, checkpoint: str | None) -> tuple[LoadedRun, Data]:
    """A run and the data that it was trained on."""
    from vae.data import load_data

    opened = open_on_device(path, checkpoint)
    data = load_data(opened.settings.data)
    if data.shape != opened.model.data_shape:
        raise UsageError(
            f"{path}: was trained on data of shape {opened.model.data_shape}, and they are now {data.shape}"
        )
    if opened.data_sha256 is not None and data.sha256() != opened.data_sha256:
        warnings.warn(f"{path}: the data are no longer those that this run was trained on", stacklevel=2)
    return opened, data


def chosen_split(data: Data, name: str, limit: int | None) -> Split:
    """A split by name, or its first data."""
    return data.evaluation_split(name, limit)
