"""encode.py: the codes of a split, as an .npz file."""

from __future__ import annotations

from collections.abc import Sequence

from vae.commands.base import Parser, add, command, load_with_data, write_npz, write_table


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Encode a split."""
    parser = Parser(
        "encode",
        "Write the codes of a split: z (N, J), y (N,) labels if there are any, index (N,) places in the data file.",
        "runs/digits_d2 --out codes.npz",
    )
    add(parser, "run", "--checkpoint", "--split", "--limit")
    parser.add_argument("--out", required=True, metavar="FILE", help="the .npz or .csv file to write")
    parser.add_argument("--sample", action="store_true", help="a sample from each posterior instead of its mean")
    args = parser.parse_args(argv)

    from vae.evaluation import posterior_codes

    run, data = load_with_data(args.run, args.checkpoint)
    split = data.evaluation_split(args.split, args.limit)
    z = posterior_codes(run.model, split, name=args.split, sampled=args.sample).numpy()
    arrays = {"z": z, "index": split.index.numpy(), **({} if split.y is None else {"y": split.y.numpy()})}
    if args.out.endswith(".csv"):
        columns = {f"z{j + 1}": column.tolist() for j, column in enumerate(z.T)}
        write_table(args.out, {**{key: arrays[key].tolist() for key in ("index", "y") if key in arrays}, **columns})
    else:
        write_npz(args.out, arrays)
    kind = "posterior samples" if args.sample else "posterior means"
    print(f"{args.out}: {kind} of the {len(split)} {args.split} data, z {z.shape}, checkpoint {run.checkpoint}")
