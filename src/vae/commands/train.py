"""train.py: from a YAML file to a trained, measured and pictured model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.base import Parser, command
from vae.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from vae.data import Data
    from vae.models import VAE


def _parser() -> Parser:
    parser = Parser(
        "train",
        "Train a variational auto-encoder as a YAML config says, evaluate it on the test split, and draw its figures.",
        "--config configs/digits_d2.yaml --set model.latent_dim=10 train.epochs=50 --out runs/digits_d10",
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML config; configs/ holds one an experiment")
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="settings that replace the file's",
    )
    parser.add_argument("--out", metavar="RUN", help="the run directory (default: runs/<name of the config>)")
    parser.add_argument("--resume", metavar="RUN", help="go on with a run, to the same bits as one never stopped")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that the directory holds")
    parser.add_argument("--list", action="store_true", help="show every part with its options and defaults")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and the parameter count only")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a run."""
    args = _parser().parse_args(argv)
    chosen = [name for name in ("config", "resume", "list") if getattr(args, name)]
    if len(chosen) != 1:
        raise UsageError("train.py: give one of --config FILE, --resume RUN, --list; see train.py --help")
    if args.resume and (args.out or args.overwrite):
        raise UsageError("train.py: --resume goes on in its own directory; it takes no --out and no --overwrite")
    if args.list:
        from vae.commands.parts import listing

        print(listing())
    elif args.dry_run:
        _dry_run(args)
    else:
        _train(args)


def _settings(args: Any) -> tuple[Any, Path]:
    from vae.training import read_settings
    from vae.training.run import resumed_settings

    if args.resume:
        return resumed_settings(args.resume, args.set), Path(args.resume)
    return read_settings(args.config, args.set), Path(args.out or Path("runs") / Path(args.config).stem)


def _dry_run(args: Any) -> None:
    from vae.config import dump, plain
    from vae.training.build import build_model, resolve

    settings, shape = resolve(_settings(args)[0])
    model = build_model(settings.model, shape, settings.train.seed)
    print(dump(plain(settings)), end="")
    count = sum(p.numel() for p in model.parameters())
    print(f"# {count:,} parameters")


def _train(args: Any) -> None:
    from vae.commands.evaluate import evaluate_split, table
    from vae.commands.plot import draw_suitable
    from vae.training.run import evaluation_line, open_run, train

    settings, path = _settings(args)

    def test_curve(model: VAE, data: Data) -> list[dict[str, Any]]:
        return [{"split": "test", **evaluation_line(model, data, "test", settings.train.seed)}]

    try:
        run, data = train(settings, path, resume=bool(args.resume), overwrite=args.overwrite, observe=test_curve)
    except Interrupted as stop:
        how = f"the run is saved; go on with: python scripts/train.py --resume {path}"
        raise Interrupted(f"{stop}; {how}", stop.status) from None
    if args.resume and run.steps == 0:
        print(
            f"{path}: this run is finished; --set train.epochs=N with a larger N goes on with it",
            file=sys.stderr,
        )
        if (path / "evaluation.json").exists() and (path / "figures").exists():
            return
    opened = open_run(path)
    opened.model.to(next(run.model.parameters()).device)
    record, _ = evaluate_split(opened, data.evaluation_split("test"), "test")
    print(table(record))
    for file in draw_suitable(opened, data):
        print(file)
