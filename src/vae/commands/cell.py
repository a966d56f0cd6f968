"""One cell of a sweep, or its seeds together: a process (`python -m vae.commands.cell`), or a task of Ray."""

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


def arguments(cells: Sequence[Cell], threads: int) -> list[str]:
    """What `main` takes to train cells that differ in nothing but the seed."""
    from vae.config import plain

    paths = {cell.settings.train.seed: str(cell.path) for cell in cells}
    return [json.dumps(plain(cells[0].settings)), json.dumps(paths), str(threads)]


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train and measure a cell from its last checkpoint on, where it has one, or several as one program."""
    import torch

    from vae.commands.base import open_on_device
    from vae.commands.evaluate import keep
    from vae.commands.train import measure, test_curve, train_runs
    from vae.training import read_settings
    from vae.training.run import train_together

    raw, raw_paths, threads = argv or sys.argv[1:]
    torch.set_num_threads(int(threads))
    settings = read_settings(json.loads(raw))
    paths = {int(seed): Path(path) for seed, path in json.loads(raw_paths).items()}
    if len(paths) > 1:
        _, data = train_together(settings, paths, resume=True, verbose=False, observe=test_curve)
    else:
        _, data = train_runs(settings, next(iter(paths.values())), resume=True, verbose=False)
    for path in paths.values():
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
