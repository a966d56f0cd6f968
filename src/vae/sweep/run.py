"""Cells trained here or by Ray, and a whole sweep: the cells of a grid, then their table and figure."""

import collections
import contextlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from vae.errors import Interrupted, VaeError
from vae.evaluation.report import read_evaluation
from vae.files import read_text
from vae.sweep.cell import Cell, Ended, Say, start, stop
from vae.sweep.grid import Grid, cells, check_cells, check_directory
from vae.sweep.ray_engine import check_cluster, train_by_ray
from vae.sweep.table import summary, write
from vae.training.build import choose_device
from vae.training.checkpoint import read_values
from vae.training.loading import checkpoints
from vae.training.progress import Progress
from vae.training.run import plan_of
from vae.training.run_directory import lock, other_settings
from vae.training.settings import read_settings


def sweep(
    config: str | Path, grid: Grid, overrides: Sequence[str], folder: str | Path, **how: Any
) -> tuple[dict[str, Any], list[Path]]:
    """Train and evaluate every combination of a grid over a config file; the record of the results, and its files.

    A stopped sweep goes on. Further keywords are those of `run`. ConfigError or UsageError, before any training, if
    something does not fit.
    """
    folder = Path(folder)
    if how.get("engine") == "ray":
        check_cluster(how.get("processes"))
    made = cells(config, grid, overrides, folder)
    check_cells(made, here=how.get("engine") != "ray")
    check_directory(folder, made)
    with lock(folder):
        failures = run(made, **how)
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
    finished cell. Interrupted, a KeyboardInterrupt, after a signal, once the cells have saved their states.
    """
    threads = torch.get_num_threads() if os.environ.get("OMP_NUM_THREADS") else 1
    waiting = [cell for cell in cells if finished_evaluation(cell) is None]
    finished, failures = [cell for cell in cells if cell not in waiting], dict[str, str]()
    say(f"{len(cells)} runs, {len(finished)} of them finished")
    for cell in cells:
        cell.write()
    training = (train_by_ray if engine == "ray" else train_here)(waiting, processes, threads, say)
    try:
        for cell in finished:
            done(cell)
        with contextlib.closing(training):
            for number, (cell, status) in enumerate(training, len(finished) + 1):
                record, lines = finished_evaluation(cell), read_text(cell.log).splitlines()
                if record is None:
                    failures[cell.name] = _reason(status, lines)
                    shown, result = lines[-10:], f"failed: {failures[cell.name]}"
                else:
                    shown = [line for line in lines if line.startswith("warning: ")]
                    result = f"test ELBO {record['elbo']['mean']:.2f}"
                for line in (*shown, f"{result} ({number} of {len(cells)})"):
                    say(f"{cell.name}: {line}")
                if record is not None:
                    done(cell)
    except KeyboardInterrupt as stopped:
        left = sum(finished_evaluation(cell) is None for cell in cells)
        message = f"stopped with {left} of {len(cells)} runs to go; the same command continues"
        raise Interrupted(message, getattr(stopped, "status", 130)) from None
    return failures


def train_here(cells: Sequence[Cell], processes: int | None, threads: int, say: Say) -> Ended:
    """Train cells in so many processes at a time; those that run when the generator is closed are stopped."""
    slots = range(processes or default_processes(cells, threads))
    waiting, running = collections.deque(cells), dict[int, tuple[Cell, Any]]()
    try:
        while waiting or running:
            for slot in slots:
                if slot not in running and waiting:
                    cell = waiting.popleft()
                    say(f"{cell.name}: training")
                    running[slot] = cell, start(cell, threads, own_gpu(slot))
                elif slot in running and (status := running[slot][1].poll()) is not None:
                    yield running.pop(slot)[0], status
            time.sleep(0.05)
    finally:
        stop([process for _, process in running.values()])


def default_processes(cells: Sequence[Cell], threads: int) -> int:
    """How many cells to train at a time: one per GPU, so that none share one, else as many as the cores allow."""
    on_gpus = any(choose_device(cell.config["train"]["device"]).type == "cuda" for cell in cells)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return torch.cuda.device_count() if on_gpus else max(1, cores // threads)


def own_gpu(slot: int) -> dict[str, str]:
    """The environment in which a process sees one of several GPUs, since it takes the first that it sees."""
    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": seen[slot % count]} if count > 1 else {}


def finished_evaluation(cell: Cell) -> dict[str, Any] | None:
    """The test evaluation of a finished cell; None if the cell has yet to be trained or evaluated."""
    settings, record = read_settings(cell.config), read_evaluation(cell.run)
    try:
        values = [read_values(file) for file in checkpoints(cell.run).values()]  # best, if there is one, and last
        same = not other_settings(read_settings(values[-1]["config"]), settings)
        finished = Progress(**values[-1]["progress"]).finished(plan_of(settings))
        return record if record and same and finished and record["step"] == values[0]["step"] else None
    except (VaeError, LookupError, TypeError):
        return None


def _reason(status: int, lines: Sequence[str]) -> str:
    """Why a cell failed: the signal that ended it, else the last line of its stderr."""
    number = -status if status < 0 else status - 128  # as shells count, and train.py after it has saved its state
    if number in signal.valid_signals():
        return f"ended by {signal.Signals(number).name}"
    return lines[-1] if status and lines else "it ended without an evaluation"
