"""One cell of a sweep, in a process of its own (`python -m vae.commands.cell`) or a Ray task."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from vae.commands.base import command
from vae.config import plain

if TYPE_CHECKING:
    from vae.commands.grid import Cell


def arguments(cell: Cell, threads: int) -> list[str]:
    """The arguments with which `main` trains a cell."""
    return [json.dumps(plain(cell.settings)), str(cell.path), str(threads)]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a cell, from its last checkpoint if it has one, and evaluate it on the test split."""
    import torch

    from vae.commands.base import load_on_device, origin
    from vae.commands.train import test_curve
    from vae.evaluation.report import evaluate_test_split, write_evaluation
    from vae.training import read_settings
    from vae.training.run import train

    settings, path, threads = argv or sys.argv[1:]
    torch.set_num_threads(int(threads))
    run = train(read_settings(json.loads(settings)), Path(path), resume=True, verbose=False, observe=test_curve)
    loaded = load_on_device(path, None)
    write_evaluation(loaded.path, evaluate_test_split(loaded.model, run.data, origin(loaded)))


def _end_with_parent() -> None:
    """Send SIGTERM to this process, which saves its state, once the parent at the other end of stdin is gone."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main())
