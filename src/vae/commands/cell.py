"""One cell of a sweep, as a process of its own (`python -m vae.commands.cell`) or within a worker of Ray."""

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
    """Train and measure a cell, from its last checkpoint on where it has one."""
    import torch

    from vae.commands.base import open_on_device
    from vae.commands.evaluate import keep
    from vae.commands.train import measure, train_runs
    from vae.training import read_settings

    settings, path, threads = argv or sys.argv[1:]
    torch.set_num_threads(int(threads))
    _, data = train_runs(read_settings(json.loads(settings)), Path(path), resume=True, verbose=False)
    opened = open_on_device(path, None)
    keep(opened, measure(opened, data))


def _end_with_parent() -> None:
    """Stop as SIGTERM does, with the state saved, once the process that holds the other end of stdin is gone."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=_end_with_parent, daemon=True).start()
    sys.exit(main())
