"""explore.py: the latent explorer of a run, one HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vae.commands.base import Parser, add, command, load_with_data

LIMITS = {1: 5000, 3: 1000}  # data on the page by the channels of their pictures, so that it stays below 5 MB


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Write the explorer of a run."""
    parser = Parser(
        "explore",
        "Write one HTML page that opens from disk: the codes of a split in the latent plane, decoded wherever the\n"
        "pointer is; interpolations, a lasso, and pictures of your own, encoded in the browser.",
        "runs/digits_d2",
    )
    add(parser, "run", "--checkpoint", "--split", "--limit")
    parser.add_argument("--out", metavar="FILE.html", help="the file to write (default: RUN/explorer.html)")
    args = parser.parse_args(argv)

    from vae.explorer import explorer_page
    from vae.files import write_atomically
    from vae.training.run_directory import check_output

    run, data = load_with_data(args.run, args.checkpoint)
    out = Path(args.out or run.path / "explorer.html")
    check_output(out)
    split = data.evaluation_split(args.split, args.limit or LIMITS.get(data.shape[0], 1000))
    page = explorer_page(run.model, split, name=run.path.resolve().name, split_name=args.split, classes=data.classes)
    write_atomically(out, page.encode())
    print(f"{out}: {len(page) / 1e6:.1f} MB, {len(split)} {args.split} data, checkpoint {run.checkpoint}")
