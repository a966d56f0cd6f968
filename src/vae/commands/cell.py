"""One cell of a sweep: a process (`python -m vae.commands.cell`), or a task of Ray."""

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

if TYPE_CHECKING:
    from vae.commands.grid import Cell


def arguments(cell: Cell, threads: int) -> list[str]:
    """What `main` takes to train a cell."""
    from vae.config import plain

    return [json.dumps(plain(cell.settings)), str(cell.path), str(threads)]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure a cell, from its last checkpoint on if it has one."""
    import torch

    from vae.commands.base import open_on_device
    from vae.commands.evaluate import keep
    from vae.commands.train import measure, test_curve
    from vae.training import read_settings
    from vae.training.run import train

    raw, raw_path, threads = argv or sys.argv[1:]
    torch.set_num_threads(int(threads))
    settings = read_settings(json.loads(raw))
    run = train(settings, Path(raw_path), resume=True, verbose=False, observe=test_curve)
    opened = open_on_device(raw_path, None)
    keep(opened, measure(opened, run.data))


def _end_with_parent() -> None:
    """Stop as SIGTERM does, with the state saved, once the process that holds the other end of stdin is gone."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main())
