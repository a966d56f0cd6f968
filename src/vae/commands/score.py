"""score.py: how strange each datum is, beside data that were held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.base import Parser, add, command, load_with_data, positive, write_table
from vae.errors import UsageError
from vae.text import NOT_A_DENSITY

if TYPE_CHECKING:
    from vae.data import Data, Split
    from vae.models import VAE

SHOWN = 20  # of the strangest data, in the table and in the figure
LEVELS = (0.01, 0.05, 0.1)
NAMES = {"log_p_x": "log p(x)", "elbo": "ELBO", "log_p_x_given_z": "log p(x|z)", "kl": "KL", "p_value": "p-value"}
Columns = dict[str, list[Any]]  # of each datum: index, the keys of NAMES, and of a table its least likely column


def _parser() -> Parser:
    parser = Parser(
        "score",
        "Print the strangest data of a file (or of a split) by a trained model: each datum's score, its terms, and a\n"
        "p-value, (1 + validation data that score no higher) / (1 + validation data); and draw them.\n"
        "The score is the ELBO, or log p(x) by importance sampling with --num-samples.",
        "runs/x --data mine.npz --out scores.csv",
    )
    add(parser, "run", "--checkpoint", "--split", "--limit", "--data", "--json")
    parser.add_argument("--num-samples", type=positive, metavar="K", help="score by log p(x), from K samples a datum")
    parser.add_argument("--out", metavar="FILE.csv", help="write a row for each datum to this file")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score data."""
    args = _parser().parse_args(argv)
    if args.data is not None and args.split != "test":
        raise UsageError("score.py: --data replaces the split; leave --split out")

    from vae.training.run_directory import check_output

    if args.out is not None:
        check_output(Path(args.out))
    run, data = load_with_data(args.run, args.checkpoint)
    if data.validation is None:
        raise UsageError(
            f"{args.run}: was trained without validation data, by which p-values are told; set "
            "data.validation_size, and train again"
        )
    if args.data is None:
        name, split = args.split, data.evaluation_split(args.split, args.limit)
    else:
        name, split = "data", run.read(args.data).first(args.limit)
    columns = _columns(run.model, split, data, name, args.num_samples)
    if args.out is not None:
        write_table(args.out, columns)
    by = "log_p_x" if args.num_samples else "elbo"
    strangest = sorted(range(len(split)), key=columns[by].__getitem__)[:SHOWN]
    few = {key: [column[i] for i in strangest] for key, column in columns.items()}
    shares = {f"{level:g}": sum(p <= level for p in columns["p_value"]) / len(split) for level in LEVELS}
    if args.json:
        record = {"n": len(split), "validation": len(data.validation), "density": run.model.is_density}
        rows = [dict(zip(few, row, strict=True)) for row in zip(*few.values(), strict=True)]
        print(json.dumps({**record, "share_with_p_value_at_most": shares, "strangest": rows}, allow_nan=False))
        return
    what = f"{args.data or f'the {name} split'}, n = {len(split)}; p-values by {len(data.validation)} validation data"
    said = ", ".join(f"{share:.1%} at most {level}" for level, share in shares.items())
    print(f"{what}: {said}", *_lines(few), sep="\n")
    if not run.model.is_density:
        print(NOT_A_DENSITY)
    if not args.no_figures:
        from vae.figures.of_runs import draw_strangest

        above = [f"{index}: p {p:.3g}" for index, p in zip(few["index"], few["p_value"], strict=True)]
        title = f"The strangest of {len(split)} by {by}"
        print(*draw_strangest(run, split.images()[strangest], above, title), sep="\n")


def _columns(model: VAE, split: Split, data: Data, name: str, num_samples: int | None) -> Columns:
    """What is known of each datum."""
    from vae.evaluation.outliers import least_likely, p_values, scores

    values = scores(model, split, name=name, num_samples=num_samples)
    held_out = scores(model, data.evaluation_split("validation"), name="validation", num_samples=num_samples)
    values["p_value"] = p_values(values.pop("score"), held_out["score"])
    columns: Columns = {"index": split.index.tolist(), **{key: column.tolist() for key, column in values.items()}}
    if data.columns:
        columns["least_likely"] = [data.columns[place] for place in least_likely(model, split).tolist()]
    return columns


def _lines(columns: Columns) -> list[str]:
    """Columns as the lines of a table."""
    keys, words = [key for key in NAMES if key in columns], columns.get("least_likely")
    lines = [f"{'index':>8}" + "".join(f"{NAMES[key]:>13}" for key in keys) + ("   least likely" if words else "")]
    for i, index in enumerate(columns["index"]):
        row = f"{index:>8}" + "".join(f"{columns[key][i]:>13.4g}" for key in keys)
        lines.append(row + (f"   {words[i]}" if words else ""))
    return lines
