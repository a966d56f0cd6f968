"""export.py: encoder and decoder of a run as files for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from vae.commands.base import Parser, add, command, load_on_device


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Export a run."""
    parser = Parser(
        "export",
        "Write encoder (x to mean and log-variance of z) and decoder (z to the mean of x) of a run as two files, for\n"
        "any size of batch, and compare what they give with the model. They say what they take and give.",
        "runs/digits_d2 --format onnx",
    )
    add(parser, "run", "--checkpoint", "--label")
    parser.add_argument(
        "--format", required=True, choices=("onnx", "torch"), help="onnx, or the .pt2 files of torch.export"
    )
    parser.add_argument("--out", metavar="DIR", help="the folder to write to (default: RUN/export)")
    args = parser.parse_args(argv)

    from vae.export import export
    from vae.training.run_directory import check_output

    run = load_on_device(args.run, args.checkpoint, label=args.label)
    out = Path(args.out or run.path / "export")
    check_output(out / "encoder")
    out.mkdir(parents=True, exist_ok=True)
    for path, difference in export(run.model, out, args.format).items():
        size = path.stat().st_size / 1e6
        print(f"{path}: {size:.2f} MB, differs from the model by {difference:.1e}, checkpoint {run.checkpoint}")
