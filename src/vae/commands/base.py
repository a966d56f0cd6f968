"""Shared by the commands: arguments, messages, exit statuses, and how a run is loaded with its data."""

from __future__ import annotations

import argparse
import contextlib
import csv
import functools
import io
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from vae.errors import Interrupted, UsageError, VaeError
from vae.files import write_atomically
from vae.ranks import Ranks

if TYPE_CHECKING:
    from vae.data import Data
    from vae.training.loading import LoadedRun


# A command maps arguments (by default those of the process) to an exit status.
Main = Callable[..., int]


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one sentence."""

    def __init__(self, program: str, description: str, example: str) -> None:
        super().__init__(
            prog=f"{program}.py",
            description=description,
            epilog=f"example:\n  python scripts/{program}.py {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,  # so that the example can be copied
            allow_abbrev=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """The arguments; UsageError if one holds a NUL byte, which no path can hold."""
        parsed = super().parse_args(args, namespace)
        if any("\0" in str(value) for value in vars(parsed).values()):
            self.error("an argument holds a NUL byte")
        return parsed

    def error(self, message: str) -> NoReturn:
        """UsageError, which `command` prints and turns into exit status 2."""
        raise UsageError(f"{self.prog}: {message}; see {self.prog} --help")


def command(main: Callable[[Sequence[str] | None], None]) -> Main:
    """A command that prints an error which the user can fix as one sentence on stderr, and returns its exit status."""

    @functools.wraps(main)
    def run(argv: Sequence[str] | None = None) -> int:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="surrogateescape")  # paths whose bytes are no text are printed as they are
        try:
            with warnings.catch_warnings(), _sigterm_interrupts(), _first_rank_prints():
                warnings.simplefilter("default", UserWarning)
                warnings.showwarning = _show_warning
                main(argv)
            if sys.stdout is not None:
                sys.stdout.flush()
        except (VaeError, Interrupted) as error:
            return _report(error, error.status)
        except KeyboardInterrupt:
            return _report("interrupted", 130)
        except BrokenPipeError:  # whatever read stdout (head, less) has ended
            sys.stderr.close()
            return 141
        except OSError as error:
            return _report(f"{error.filename or 'a file'}: {error.strerror or error}", 2)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            print(f"out of memory: {str(error).splitlines()[0]}; choose smaller sizes or batches", file=sys.stderr)
            return 1
        return 0

    return run


def _out_of_memory(error: Exception) -> bool:
    """Whether memory ran out; decided without importing torch, which would take a second."""
    on_cpu = ("not enough memory: you tried to allocate", "can't allocate memory")  # torch's messages
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or any(message in str(error) for message in on_cpu)


def _report(error: object, status: int) -> int:
    """Print why a command ends, on the first rank only, and return its exit status."""
    ranks = Ranks.launched()
    if ranks.several:  # torchrun sends SIGTERM to the others once one has ended; each must end with this status
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if ranks.first:
        print(error, file=sys.stderr, flush=True)
    ranks.wait_for_rank_0()
    return status


@contextlib.contextmanager
def _first_rank_prints() -> Iterator[None]:
    """Silence the command on all ranks of torchrun but the first."""
    if Ranks.launched().first:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


@contextlib.contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Let SIGTERM end a command as Ctrl-C does, but with status 143; training saves its state first."""

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


def whole_number(least: int, bits: int) -> Callable[[str], int]:
    """The type of an argument: a whole number of at least `least` and below 2^bits."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) < 2**bits:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least {least} (and below 2^{bits})")
        return int(text)

    return parse


positive = whole_number(1, 31)
natural = whole_number(0, 32)


def add_set(parser: Parser, where: str = "") -> None:
    """The argument that replaces settings of the config."""
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help=f"settings that replace those of the config{where}",
    )


ARGUMENTS: dict[str, dict[str, Any]] = {
    "run": {"metavar": "RUN", "help": "a run directory, such as runs/digits_d2"},
    "--checkpoint": {
        "choices": ("last", "best"),
        "help": "which checkpoint (default: best if there is one, else last)",
    },
    "--split": {"choices": ("test", "validation", "train"), "default": "test", "help": "which data (default: test)"},
    "--label": {"metavar": "Y", "help": "of a conditional model: the label that x is given, its name or number"},
    "--limit": {"type": positive, "metavar": "N", "help": "only the first N data"},
    "--data": {"metavar": "FILE", "help": "an .npz file with x_test, or x (or a .csv file), in place of the split"},
    "--json": {"action": "store_true", "help": "print only one JSON object"},
}


def add(parser: Parser, *names: str, **more: Any) -> None:
    """Arguments that several commands take."""
    for name in names:
        parser.add_argument(name, **ARGUMENTS[name], **more)


def write_npz(path: str, arrays: dict[str, Any]) -> None:
    """Write arrays to an .npz file."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    _write(Path(path), buffer.getvalue())


def write_table(path: str, columns: dict[str, Any]) -> None:
    """Write columns of numbers or words, each (N,), to a .csv file under their names."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    shown = ([f"{value:.10g}" if isinstance(value, float) else value for value in of] for of in columns.values())
    writer.writerows(zip(*shown, strict=True))
    _write(Path(path), buffer.getvalue().encode())


def _write(path: Path, content: bytes) -> None:
    """Write a file, whole or not at all. UsageError if it cannot be, or is one of a run's own."""
    from vae.training.run_directory import check_output

    check_output(path)
    try:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name the file to write")
        write_atomically(path, content)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror}") from None


def load_on_device(
    path: str | Path, checkpoint: str | None, *, label: str | None = None, any_model: bool = False
) -> LoadedRun:
    """A run, its model on the CPU if its settings name the CPU, else on CUDA if there is a GPU.

    A conditional model is given the label, if there is one. UsageError if its model is no VAE, unless `any_model`.
    """
    from vae.models import VAE
    from vae.training.build import choose_device
    from vae.training.loading import load_run

    run = load_run(path, which=checkpoint)
    if not any_model and not isinstance(run.model, VAE):
        raise UsageError(f"{path}: is a run of a regression, which has no latents; use evaluate.py or plot_curves.py")
    run.model.to(choose_device("cpu" if run.settings.train.device == "cpu" else "auto"))
    if label is not None:
        run.model = run.given(label)
    return run


def origin(run: LoadedRun) -> dict[str, Any]:
    """What the record of an evaluation says of where the model is from."""
    return {"run": str(run.path), "checkpoint": run.checkpoint, "step": run.step}


def load_with_data(path: str | Path, checkpoint: str | None, *, any_model: bool = False) -> tuple[LoadedRun, Data]:
    """A run and the data that it was trained on."""
    from vae.data import load_data

    run = load_on_device(path, checkpoint, any_model=any_model)
    data = load_data(run.settings.data)
    if data.shape != run.model.data_shape:
        raise UsageError(f"{path}: was trained on data of shape {run.model.data_shape}, and they now have {data.shape}")
    if run.data_sha256 is not None and data.sha256() != run.data_sha256:
        warnings.warn(f"{path}: the data are no longer those that this run was trained on", stacklevel=2)
    return run, data
