"""compare_estimators.py: bias, variance and signal-to-noise ratio of gradient estimators, compared with theory."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vae.commands.base import Parser, add, command, natural, positive, whole_number
from vae.errors import UsageError


def _parser() -> Parser:
    parser = Parser(
        "compare_estimators",
        "Measure the bias and variance of gradient estimators: for E[x^2] and a linear-Gaussian model, whose exact\n"
        "values are known, and for a VAE, which is trained first. Write tables (Markdown, JSON) and a figure.",
        "--config configs/digits_d2.yaml --out comparison",
    )
    parser.add_argument(
        "--config", default="configs/digits_d2.yaml", metavar="FILE", help="of the VAE (default: %(default)s)"
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="where to write the tables and the figure")
    parser.add_argument("--epochs", type=positive, default=10, metavar="N", help="of the VAE's training (default: 10)")
    parser.add_argument(
        "--samples",
        type=whole_number(1000, 31),
        default=20_000,
        metavar="N",
        help="gradients per estimator (default: 20000); a fifth of these for the linear-Gaussian model, a hundredth "
        "for the VAE",
    )
    parser.add_argument(
        "--batch-size", type=positive, default=16, metavar="M", help="of the VAE's minibatch (default: 16)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of weights, noise and minibatches (default: 0)")
    add(parser, "--json")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Compare estimators."""
    args = _parser().parse_args(argv)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; --out names a directory")

    from vae.reproduce.estimators.study import Study, compare, write

    study = Study(args.config, args.epochs, args.samples, args.batch_size, args.seed)
    tables = compare(study)
    files = write(out, study, tables)
    if args.json:
        print(json.dumps({**vars(study), **tables, "files": [str(file) for file in files]}, allow_nan=False))
    else:
        print(*files, sep="\n")
