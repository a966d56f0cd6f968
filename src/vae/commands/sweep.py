"""sweep.py: train and evaluate every combination of a grid of settings, then write one table and one figure."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae.commands import engines
from vae.commands.base import Parser, add_set, command, positive
from vae.commands.grid import Cell, check_directory, checked_cells, finished_evaluation, read_cells
from vae.commands.results import summarise, write_results
from vae.config import dump, load_yaml, override, read_grid
from vae.errors import ConfigError, Interrupted, TrainingFailed, UsageError
from vae.files import write_atomically


def _parser() -> Parser:
    parser = Parser(
        "sweep",
        "Train and evaluate every combination of a grid of settings, each in a run directory DIR/runs/NAME, which the\n"
        "other commands can open. Then write a table of means over the seeds (DIR/sweep.md, DIR/sweep.json) and their\n"
        "curves (DIR/figures). The same command again continues a stopped sweep; a grid with more values adds runs.",
        "--config configs/digits_d2.yaml --grid model.latent_dim=2,5,10 train.seed=0,1,2 --out sweeps/digits",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML config, such as those in configs/")
    add_set(parser, ", in every run")
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        required=True,
        metavar="KEY=VALUE,...",
        help="the values of each setting; the means are over train.seed, the first other setting has the colours",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the directory of the sweep")
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local (default): processes on this machine. ray: tasks on the cluster at RAY_ADDRESS, else on a cluster "
        "that is started here. Several machines must share DIR, the data and this folder on one file system. A task "
        "takes a GPU if the cluster has any and train.device is not cpu",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="how many runs to train at a time on this machine, each with one torch thread, or OMP_NUM_THREADS of them "
        "(default: one run per GPU if they train on GPUs, else as many as the cores allow)",
    )
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Sweep a grid."""
    args = _parser().parse_args(argv)
    out = Path(args.out)
    config, grid, cells = _read(args, out)

    from vae.training.run_directory import lock

    cells = checked_cells(cells, here=args.engine != "ray")
    with lock(out):
        write_atomically(out / "sweep.yaml", dump({"config": config, "grid": grid}).encode())
        failures = _train(args, [cell for cell in cells if finished_evaluation(cell) is None], len(cells))
        record = summarise(args.config, grid, [(cell, finished_evaluation(cell)) for cell in cells], failures)
        files, markdown = write_results(out, record)
    if args.json:
        print(json.dumps({**record, "files": [str(file) for file in files]}, allow_nan=False))
    else:
        print(markdown, end="")
        for file in files:
            print(file)
    if failures:
        name, reason = next(iter(failures.items()))
        raise TrainingFailed(f"{len(failures)} of {len(cells)} runs failed; {name}: {reason}")


def _read(args: Any, out: Path) -> tuple[dict[str, Any], dict[str, list[Any]], list[Cell]]:
    """The raw config, the grid and its cells, after all checks that need no data."""
    if args.engine == "ray":
        engines.import_ray()
        if args.processes and os.environ.get("RAY_ADDRESS"):
            raise UsageError("sweep.py: --processes is for this machine; the cluster at RAY_ADDRESS has its own size")
        engines.check_address()
    grid = read_grid(args.grid)
    twice = next((key for key in grid if key in {given.partition("=")[0] for given in args.set}), None)
    if twice is not None:
        raise ConfigError(f"--grid {twice}: is also given by --set; leave it out of one")
    config = override(load_yaml(args.config), args.set)
    cells = read_cells(args.config, config, args.set, grid, out / "runs")
    check_directory(out, args.config, config, grid)
    return config, grid, cells


# ------------------------------------------------------------------------------------- training


def _train(args: Any, cells: Sequence[Cell], total: int) -> dict[str, str]:
    """Train and evaluate the unfinished cells; return the reason of each failure by the cell's name."""
    threads = _threads()
    processes = args.processes or _processes(args.engine, cells, threads)
    _log(f"{total} runs, {total - len(cells)} of them finished")
    done, began, failures = total - len(cells), dict[str, float](), dict[str, str]()
    try:
        with contextlib.closing(engines.ENGINES[args.engine](cells, processes, threads)) as events:
            for cell, status, message in events:
                if status is None:
                    began[cell.name] = time.monotonic()
                    _log(f"{cell.name}: {message}")
                    continue
                record, seconds = finished_evaluation(cell), time.monotonic() - began[cell.name]
                done += 1
                for line in message.splitlines() if record else message.splitlines()[:-1]:
                    _log(f"{cell.name}: {line}")
                if record is None:
                    failures[cell.name] = (message or "it ended without an evaluation").splitlines()[-1]
                    _log(f"{cell.name}: failed: {failures[cell.name]} ({done} of {total})")
                else:
                    _log(f"{cell.name}: test ELBO {record['elbo']['mean']:.2f} ({seconds:.0f} s; {done} of {total})")
    except KeyboardInterrupt as stop:
        status = getattr(stop, "status", 130)
        left = sum(finished_evaluation(cell) is None for cell in cells)
        raise Interrupted(f"stopped with {left} of {total} runs to go; the same command continues", status) from None
    return failures


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else 1


def _processes(engine: str, cells: Sequence[Cell], threads: int) -> int:
    """How many runs to train at a time: one per GPU, so that runs do not share one, else as many as the cores allow."""
    import torch

    from vae.training.build import choose_device

    on_gpus = engine != "ray" and any(choose_device(cell.settings.train.device).type == "cuda" for cell in cells)
    return torch.cuda.device_count() if on_gpus else max(1, _cores() // threads)


def _cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
