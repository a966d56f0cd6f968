"""export.py: encoder and decoder of a run as files for other programs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vae.commands.base import Parser, add, command, load_on_device, load_with_data
from vae.errors import UsageError


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Export a run."""
    parser = Parser(
        "export",
        "Write encoder (x to mean and log-variance of z) and decoder (z to the mean of x) of a run as two files, for\n"
        "any size of batch, and compare what they give with the model; they say what they take and give. Or, as\n"
        "weights, a run directory for use alone: the weights in 16 bits, without the state of the training.",
        "runs/digits_d2 --format onnx",
    )
    add(parser, "run", "--checkpoint", "--label")
    parser.add_argument(
        "--format",
        required=True,
        choices=("onnx", "torch", "weights"),
        help="onnx, the .pt2 files of torch.export, or a smaller run directory",
    )
    parser.add_argument("--out", metavar="DIR", help="the folder to write to (default: RUN/export)")
    args = parser.parse_args(argv)

    from vae.training.run_directory import check_output

    out = Path(args.out or Path(args.run) / "export")
    if args.format == "weights":
        _weights(args, out)
        return
    from vae.export import export

    run = load_on_device(args.run, args.checkpoint, label=args.label)
    if run.model.classes and args.label is None:
        raise UsageError(f"{args.run}: the model is conditional on labels; --label Y exports that of one")
    check_output(out / "encoder")
    out.mkdir(parents=True, exist_ok=True)
    for path, difference in export(run.model, out, args.format).items():
        size = path.stat().st_size / 1e6
        print(f"{path}: {size:.2f} MB, differs from the model by {difference:.1e}, checkpoint {run.checkpoint}")


def _weights(args: Any, out: Path) -> None:
    """Write the smaller run directory, and say what the rounding changed."""
    from vae.evaluation import evaluate_bound, mean_and_stderr
    from vae.training.checkpoint import sha256_of
    from vae.training.loading import load, write_weights
    from vae.training.run_directory import check_output

    if args.label is not None:
        raise UsageError("export.py: --label is of the other formats; the weights are those of all labels")
    check_output(out / "checkpoints" / "last.safetensors")
    run, data = load_with_data(args.run, args.checkpoint)
    file, split = write_weights(run, out), data.evaluation_split("test")
    before, after = (evaluate_bound(model, split, name="test").elbo for model in (run.model, load(out)))
    change = mean_and_stderr(after - before)
    print(f"{file}: {file.stat().st_size / 1e6:.2f} MB, SHA-256 {sha256_of(file)}, checkpoint {run.checkpoint}")
    print(
        f"test ELBO {after.mean():.4f}, changed by {change['mean']:+.4f} nats by the rounding (standard error "
        f"{change['stderr'] or 0:.4f}, n = {change['n']})"
    )
