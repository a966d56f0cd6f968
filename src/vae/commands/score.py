"""score.py: how strange each datum is, beside data that were held out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.base import Parser, add, command, load_with_data, positive, write_table
from vae.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

SHOWN = 20  # of the strangest data, in the table and in the figure


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Score data."""
    parser = Parser(
        "score",
        "Print the strangest data of a file (or of a split) by a trained model: each datum's score, its terms, and a\n"
        "p-value, (1 + validation data that score no higher) / (1 + validation data); and draw them.\n"
        "The score is the ELBO, or log p(x) by importance sampling with --num-samples.",
        "runs/x --data mine.npz --out scores.csv",
    )
    add(parser, "run", "--checkpoint", "--split", "--limit")
    parser.add_argument("--data", metavar="FILE", help="an .npz file with x_test, or x (or a .csv file), to score")
    parser.add_argument("--num-samples", type=positive, metavar="K", help="score by log p(x), from K samples a datum")
    parser.add_argument("--out", metavar="FILE.csv", help="write a row for each datum to this file")
    parser.add_argument("--no-figures", action="store_true", help="draw nothing")
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    args = parser.parse_args(argv)
    if args.data is not None and args.split != "test":
        raise UsageError("score.py: --data replaces the split; leave --split out")

    from vae.data import read_user_split
    from vae.evaluation.outliers import least_likely, p_values, scores
    from vae.training.checks import check_support
    from vae.training.run_directory import check_output

    if args.out is not None:
        check_output(Path(args.out))
    run, data = load_with_data(args.run, args.checkpoint)
    if data.validation is None:
        raise UsageError(
            f"{args.run}: was trained without validation data, by which p-values are told; set "
            "data.validation_size, and train again"
        )
    name = args.split
    split = data.evaluation_split(args.split, args.limit)
    if args.data is not None:
        split, name = read_user_split(args.data, run.model.data_shape, run.settings.data, run.data_range), "data"
        split = split.first(args.limit)
        check_support(split, args.data, run.model)
    values = scores(run.model, split, name=name, num_samples=args.num_samples)
    held = scores(run.model, data.evaluation_split("validation"), name="validation", num_samples=args.num_samples)
    values["p_value"] = p_values(values.pop("score"), held["score"])
    words = [data.columns[i] for i in least_likely(run.model, split).tolist()] if data.columns else []
    order = values[by := "log_p_x" if args.num_samples else "elbo"].argsort()[:SHOWN]
    if args.out is not None:
        columns = {"index": split.index.tolist(), **{key: column.tolist() for key, column in values.items()}}
        write_table(args.out, columns | ({"least_likely": words} if data.columns else {}))
    if args.json:
        rows = [{"index": int(split.index[i]), **{key: v[i].item() for key, v in values.items()}} for i in order]
        rows = [{**row, "least_likely": words[i]} for i, row in zip(order, rows, strict=True)] if words else rows
        below = {f"{level:g}": (values["p_value"] <= level).double().mean().item() for level in (0.01, 0.05, 0.1)}
        record = {"n": len(split), "validation": len(held["score"]), "density": run.model.is_density}
        print(json.dumps({**record, "share_with_p_value_at_most": below, "strangest": rows}, allow_nan=False))
        return
    print(_table(values, split.index, order, args.data or f"the {name} split", len(held["score"]), words))
    if not run.model.is_density:
        from vae.text import NOT_A_DENSITY

        print(NOT_A_DENSITY)
    if not args.no_figures:
        from vae.figures.of_runs import draw_strangest

        above = [f"{int(split.index[i])}: p {values['p_value'][i]:.3g}" for i in order]
        print(*draw_strangest(run, split.images()[order], above, f"The strangest of {len(split)} by {by}"), sep="\n")


def _table(values: dict[str, Tensor], index: Tensor, order: Any, source: str, held: int, words: Sequence[str]) -> str:
    """The strangest data, each with its least likely column if they are rows of a table, and how many small p-values
    there are."""
    p = values["p_value"]
    shares = ", ".join(f"{(p <= level).double().mean():.1%} at most {level:g}" for level in (0.01, 0.05, 0.1))
    lines = [f"{source}, n = {len(p)}; p-values by {held} validation data: {shares}"]
    names = {"log_p_x": "log p(x)", "elbo": "ELBO", "log_p_x_given_z": "log p(x|z)", "kl": "KL", "p_value": "p-value"}
    keys = [key for key in names if key in values]
    lines.append(f"{'index':>8}" + "".join(f"{names[key]:>13}" for key in keys) + ("   least likely" if words else ""))
    for i in order:
        row = f"{int(index[i]):>8}" + "".join(f"{values[key][i]:>13.4g}" for key in keys)
        lines.append(row + (f"   {words[i]}" if words else ""))
    return "\n".join(lines)
