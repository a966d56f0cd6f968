"""sweep.py: train and evaluate every combination of a grid of settings, then write one table and one figure."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

from vae.commands.base import Parser, add, add_set, command, positive
from vae.config import read_grid
from vae.errors import TrainingFailed


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
    add(parser, "--json")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Sweep a grid."""
    args = _parser().parse_args(argv)
    grid = read_grid(args.grid)

    from vae.sweep.run import sweep
    from vae.sweep.table import markdown

    record, files = sweep(args.config, grid, args.set, args.out, engine=args.engine, processes=args.processes, say=_log)
    if args.json:
        print(json.dumps({**record, "files": [str(file) for file in files]}, allow_nan=False))
    else:
        print(markdown(record), end="")
        for file in files:
            print(file)
    if record["failed"]:
        name, reason = next(iter(record["failed"].items()))
        raise TrainingFailed(f"{len(record['failed'])} of {record['runs']} runs failed; {name}: {reason}")


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
