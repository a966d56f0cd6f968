"""compare_estimators.py: bias, variance and signal-to-noise ratio of gradient estimators, compared with theory."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.base import Parser, command, natural, positive, whole_number
from vae.errors import UsageError
from vae.files import write_atomically
from vae.text import markdown_table, plus_minus

if TYPE_CHECKING:
    from vae.data import Data
    from vae.models import VAE

THETAS, NUM_SAMPLES, BATCH_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0), (1, 2, 4, 8, 16), (1, 4, 16, 64)
KNOWN_SAMPLES, KNOWN_THETA = 4, 1.0  # each is fixed while the other varies
IMPORTANCE_SAMPLES = (16, 64, 256, 1024)
SAMPLES_OF = {
    **dict.fromkeys(("score_function", "score_function, running", "sgvb_a", "sgvb_b", "stl"), 1),
    **dict.fromkeys(("score_function, leave_one_out", "iwae", "dreg"), 5),
}


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
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Compare estimators."""
    args = _parser().parse_args(argv)
    out = Path(args.out)
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; --out names a directory")
    tables = _compare(args)
    files = _write(out, args, tables)
    if args.json:
        print(json.dumps({**_about(args), **tables, "files": [str(file) for file in files]}, allow_nan=False))
    else:
        for file in files:
            print(file)


def _compare(args: Any) -> dict[str, list[dict[str, Any]]]:
    from vae.evaluation.estimators import compare_against_data, compare_against_samples, compare_known
    from vae.evaluation.signal_to_noise import compare_signal_to_noise, fitted_slopes

    model, data = _trained(args)
    n, seed = args.samples, args.seed
    cases = [(theta, KNOWN_SAMPLES) for theta in THETAS]
    cases += [(KNOWN_THETA, L) for L in NUM_SAMPLES if L != KNOWN_SAMPLES]
    known = [row for theta, L in _progress(cases, "E[x^2]") for row in compare_known(theta, L, n, seed)]
    ratios = [
        row
        for K in _progress(IMPORTANCE_SAMPLES, "linear-Gaussian model")
        for row in compare_signal_to_noise(K, n // 5, seed)
    ]
    split = data.evaluation_split("train")  # whose dynamic pixels are drawn once
    size = min(args.batch_size, len(split))
    noise = compare_against_samples(model, split, NUM_SAMPLES, size, n // 100, seed)
    sizes = [M for M in BATCH_SIZES if len(split) >= M]
    batches = compare_against_data(model, split, sizes, SAMPLES_OF, n // 100, seed)
    return {
        "known": known,
        "vae_noise": list(_progress(noise, "VAE, noise")),
        "vae_minibatches": list(_progress(batches, "VAE, minibatches")),
        "signal_to_noise": ratios,
        "slopes": fitted_slopes(ratios),
    }


def _trained(args: Any) -> tuple[VAE, Data]:
    from vae.training import read_settings
    from vae.training.run import train

    settings = read_settings(
        args.config, [f"train.epochs={args.epochs}", "train.samples=null", f"train.seed={args.seed}"]
    )
    print(f"training {args.config}", file=sys.stderr)
    run = train(settings, None)
    return run.model, run.data


def _progress(items: Iterable[Any], name: str) -> Iterable[Any]:
    from tqdm import tqdm

    return tqdm(items, desc=name, leave=True, file=sys.stderr, mininterval=1, dynamic_ncols=True)


def _about(args: Any) -> dict[str, Any]:
    keys = ("config", "epochs", "samples", "batch_size", "seed")
    return {key: getattr(args, key) for key in keys}


def _write(out: Path, args: Any, tables: dict[str, list[dict[str, Any]]]) -> list[Path]:
    from vae.figures import estimators, save

    made = estimators(
        tables["known"],
        tables["vae_noise"],
        tables["vae_minibatches"],
        tables["signal_to_noise"],
        tables["slopes"],
        Path(args.config).stem,
    )
    contents = {
        "estimators.md": _markdown(_about(args), tables),
        "estimators.json": json.dumps({**_about(args), **tables}, indent=1, allow_nan=False) + "\n",
    }
    try:
        for name, text in contents.items():
            write_atomically(out / name, text.encode())
        return [*(out / name for name in contents), *save(made, out / "estimators")]
    except OSError as error:
        raise UsageError(f"{out}: cannot be written to: {error.strerror}") from None


HEADINGS = {
    "known": "E[x^2] over the mean theta of x ~ N(theta, 1): the gradient is 2 theta",
    "vae_noise": "The VAE, over the noise on one minibatch: variance is the trace of the covariance, bias is relative "
    "to the length of the gradient (of the ELBO; of L_K for iwae, dreg, stl)",
    "vae_minibatches": "The VAE, over noise and minibatches",
    "signal_to_noise": "A linear-Gaussian model: |exact mean| / deviation of the gradient of L_K",
    "slopes": "Slopes of the signal-to-noise ratio in K, and their limits in theory",
}


def _markdown(about: dict[str, Any], tables: dict[str, list[dict[str, Any]]]) -> str:
    """The tables for people: value ± standard error."""
    lines = ["# Estimators of gradients", "", ", ".join(f"{key} {value}" for key, value in about.items()), ""]
    for key, rows in tables.items():
        columns = [c for c in rows[0] if not c.endswith("_stderr") and any(row[c] is not None for row in rows)]
        cells = [[_cell(row, column) for column in columns] for row in rows]
        lines += [f"## {HEADINGS[key]}", "", markdown_table(columns, cells)]
    return "\n".join(lines)


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return plus_minus(value, row.get(f"{column}_stderr"), ".5g", ".2g")
