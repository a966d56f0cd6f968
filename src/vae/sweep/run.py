"""A whole sweep: its cells trained, here or by Ray, then its table and figure."""

import itertools
import os
import signal
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vae.config import dump, load_yaml, override
from vae.errors import Interrupted
from vae.files import write_atomically
from vae.sweep.cell import Cell
from vae.sweep.grid import Grid, cells, check_directory, finished_evaluation
from vae.sweep.local import own_gpu, start, train
from vae.sweep.ray_engine import check_cluster, cluster
from vae.sweep.table import summary, write
from vae.training.build import choose_device
from vae.training.run_directory import lock

STOPPED = (130, 143)  # the exit statuses of a cell that saved its state because of a signal
LAST_LINES = 10  # of the stderr of a cell that failed

Say = Callable[[str], None]


def sweep(
    config: str | Path,
    grid: Grid,
    overrides: Sequence[str],
    folder: str | Path,
    *,
    engine: str = "local",
    processes: int | None = None,
    say: Say = print,
) -> tuple[dict[str, Any], list[Path]]:
    """Train and evaluate every combination of a grid over a config file; the record of the results, and its files.

    A stopped sweep goes on. ConfigError or UsageError, before any training, if something does not fit.
    """
    folder = Path(folder)
    if engine == "ray":
        check_cluster(processes)
    made = cells(config, grid, overrides, folder, here=engine != "ray")
    check_directory(folder, made)
    with lock(folder):
        record = {"config": override(load_yaml(config), overrides), "grid": grid}
        write_atomically(folder / "sweep.yaml", dump(record).encode())
        failures = run(made, engine=engine, processes=processes, say=say)
        record = summary(str(config), grid, [(cell, finished_evaluation(cell)) for cell in made], failures)
        return record, write(folder, record)


def run(
    cells: Sequence[Cell],
    *,
    engine: str = "local",
    processes: int | None = None,
    say: Say = print,
    done: Callable[[Cell], None] = lambda cell: None,
) -> dict[str, str]:
    """Train and evaluate the cells that are not finished; the reason of each failure by the cell's name.

    A cell has one thread, or OMP_NUM_THREADS of them. `say` is given a line for each start and each end, `done` each
    finished cell, also those that were finished before. Interrupted, a
    KeyboardInterrupt, after a signal, once the cells have saved their states.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, int(given)) if given.isdigit() else 1
    for cell in cells:
        cell.write()
    waiting = [cell for cell in cells if finished_evaluation(cell) is None]
    processes = processes or default_processes(engine, waiting, threads)
    failures, ended = dict[str, str](), itertools.count(len(cells) - len(waiting) + 1)
    say(f"{len(cells)} runs, {len(cells) - len(waiting)} of them finished")

    def end(cell: Cell, status: int | str, seconds: float) -> None:
        counted, record, lines = f"{next(ended)} of {len(cells)}", finished_evaluation(cell), cell.log_lines()
        for line in [line for line in lines if line.startswith("warning: ")] if record else lines[-LAST_LINES:]:
            say(f"{cell.name}: {line}")
        if record is None:
            failures[cell.name] = _reason(status, lines)
            say(f"{cell.name}: failed: {failures[cell.name]} ({counted})")
        else:
            say(f"{cell.name}: test ELBO {record['elbo']['mean']:.2f} ({seconds:.0f} s; {counted})")
            done(cell)

    try:
        for cell in cells:
            if cell not in waiting:
                done(cell)
        if engine == "ray":
            with cluster(processes * threads, threads, say) as submit:
                train(waiting, len(waiting), submit, end)
        else:
            gpus = torch.cuda.device_count()

            def begin(cell: Cell, slot: int) -> subprocess.Popen[bytes]:
                say(f"{cell.name}: training")
                return start(cell, threads, own_gpu(slot, gpus))

            train(waiting, processes, begin, end)
    except KeyboardInterrupt as stop:
        left = sum(finished_evaluation(cell) is None for cell in cells)
        message = f"stopped with {left} of {len(cells)} runs to go; the same command continues"
        raise Interrupted(message, getattr(stop, "status", 130)) from None
    return failures


def default_processes(engine: str, cells: Sequence[Cell], threads: int) -> int:
    """How many cells to train at a time: one per GPU, so that none share one, else as many as the cores allow."""
    on_gpus = engine != "ray" and any(choose_device(cell.config["train"]["device"]).type == "cuda" for cell in cells)
    return torch.cuda.device_count() if on_gpus else max(1, _cores() // threads)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _reason(status: int | str, lines: Sequence[str]) -> str:
    """Why a cell failed: the signal that ended it, else the last line of its stderr."""
    if isinstance(status, str):
        return status
    number = -status if status < 0 else status - 128 if status in STOPPED else 0
    if number:
        return f"ended by {signal.Signals(number).name}"
    return lines[-1] if status and lines else "it ended without an evaluation"
