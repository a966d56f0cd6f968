"""sweep.py: every combination of a grid of settings trained and measured, then one table and one figure."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.base import Parser, add_set, command, positive
from vae.errors import Interrupted, TrainingFailed

if TYPE_CHECKING:
    from vae.commands.grid import Cell


def _parser() -> Parser:
    parser = Parser(
        "sweep",
        "Train and evaluate every combination of a grid of settings, each as a run directory DIR/runs/NAME that the\n"
        "other commands open. At the end write a table (DIR/sweep.md, DIR/sweep.json) with means over the seeds, and\n"
        "the curves (DIR/figures). The same command again goes on where it was stopped, and a grid with more values\n"
        "adds their runs.",
        "--config configs/digits_d2.yaml --grid model.latent_dim=2,5,10 train.seed=0,1,2 --out sweeps/digits",
    )
    parser.add_argument(
        "--config", required=True, metavar="FILE", help="a YAML config; configs/ holds one an experiment"
    )
    add_set(parser, ", in every run")
    parser.add_argument(
        "--grid",
        nargs="+",
        action="extend",
        required=True,
        metavar="KEY=VALUE,...",
        help="the values of each setting to combine; train.seed is averaged over, the first other one has the colours",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="the directory of the sweep")
    parser.add_argument(
        "--engine",
        choices=("local", "ray"),
        default="local",
        help="local (default): processes on this machine. ray: tasks on the cluster at RAY_ADDRESS, else on one of "
        "its own here; on several machines DIR, the data and this folder must be on a file system that all share, and "
        "a run takes a GPU where the cluster has some and train.device is not cpu",
    )
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="how many runs at a time, on this machine (default: as many as its cores hold, or one a GPU where they "
        "train on GPUs). Each has one torch thread, so that they do not fight for cores; OMP_NUM_THREADS gives them "
        "more",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, alone")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Sweep a grid."""
    args = _parser().parse_args(argv)
    out = Path(args.out)
    config, grid, cells = _read(args, out)

    from vae.commands.grid import checked, finished
    from vae.commands.results import summary, write
    from vae.config import dump
    from vae.files import write_atomically
    from vae.training.run_directory import lock

    cells = checked(cells, here=args.engine != "ray")
    with lock(out):
        write_atomically(out / "sweep.yaml", dump({"config": config, "grid": grid}).encode())
        failures = _train(args, [cell for cell in cells if finished(cell) is None], len(cells))
        record = summary(args.config, grid, [(cell, finished(cell)) for cell in cells], failures)
        files, markdown = write(out, record)
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
    """The raw config, the grid and its cells, after every check that needs no data."""
    from vae.config import load_yaml, override, read_grid
    from vae.errors import ConfigError, UsageError

    if args.engine == "ray":
        from vae.commands.engines import check_address, import_ray

        import_ray()
        if args.processes and os.environ.get("RAY_ADDRESS"):
            raise UsageError("sweep.py: --processes is of this machine; the cluster at RAY_ADDRESS has its own size")
        check_address()
    grid = read_grid(args.grid)
    twice = next((key for key in grid if key in {given.partition("=")[0] for given in args.set}), None)
    if twice is not None:
        raise ConfigError(f"--grid {twice}: stands in --set too; leave it out of one")
    config = override(load_yaml(args.config), args.set)

    from vae.commands.grid import check_directory, read_cells

    cells = read_cells(args.config, config, args.set, grid, out / "runs")
    check_directory(out, args.config, config, grid)
    return config, grid, cells


# ------------------------------------------------------------------------------------- training


def _train(args: Any, cells: Sequence[Cell], total: int) -> dict[str, str]:
    """Train and measure what is not finished; the failures by name, and why."""
    from vae.commands.engines import ENGINES
    from vae.commands.grid import finished

    threads = _threads()
    processes = args.processes or _processes(args.engine, cells, threads)
    _say(f"{total} runs, {total - len(cells)} of them finished")
    done, began, failures = total - len(cells), dict[str, float](), dict[str, str]()
    try:
        with contextlib.closing(ENGINES[args.engine](cells, processes, threads)) as events:
            for cell, status, words in events:
                if status is None:
                    began[cell.name] = time.monotonic()
                    _say(f"{cell.name}: {words}")
                    continue
                record, seconds = finished(cell), time.monotonic() - began[cell.name]
                done += 1
                for line in words.splitlines() if record else words.splitlines()[:-1]:
                    _say(f"{cell.name}: {line}")
                if record is None:
                    failures[cell.name] = (words or "it ended without a whole evaluation").splitlines()[-1]
                    _say(f"{cell.name}: failed: {failures[cell.name]} ({done} of {total})")
                else:
                    _say(f"{cell.name}: test ELBO {record['elbo']['mean']:.2f} ({seconds:.0f} s; {done} of {total})")
    except KeyboardInterrupt as stop:
        status = getattr(stop, "status", 130)
        left = sum(finished(cell) is None for cell in cells)
        raise Interrupted(f"stopped with {left} of {total} runs to go; the same command goes on", status) from None
    return failures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _threads() -> int:
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) else 1


def _processes(engine: str, cells: Sequence[Cell], threads: int) -> int:
    """How many runs at a time: as many as the cores hold, or one a GPU where a run would share its memory and time."""
    import torch

    from vae.training.build import choose_device

    on_gpus = engine != "ray" and any(choose_device(cell.settings.train.device).type == "cuda" for cell in cells)
    return torch.cuda.device_count() if on_gpus else max(1, _cores() // threads)


def _cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
