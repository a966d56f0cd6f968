"""train.py: from a YAML file to a trained, measured and pictured model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.base import Parser, add_set, command
from vae.errors import Interrupted, UsageError

if TYPE_CHECKING:
    from vae.data import Data
    from vae.models import VAE
    from vae.training.loading import LoadedRun


def _parser() -> Parser:
    parser = Parser(
        "train",
        "Train a variational auto-encoder as a YAML config says, evaluate it on the test split, and draw its figures.\n"
        "One of --config, --resume and --list is needed.",
        "--config configs/digits_d2.yaml --set model.latent_dim=10 train.epochs=50 --out runs/digits_d10",
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML config; configs/ holds one an experiment")
    add_set(parser)
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
    from vae.training.run_directory import resumed_settings

    if args.resume:
        return resumed_settings(args.resume, args.set), Path(args.resume)
    return read_settings(args.config, args.set), Path(args.out or Path("runs") / Path(args.config).stem)


def _dry_run(args: Any) -> None:
    from vae.config import dump, plain
    from vae.likelihoods.advice import check_kind
    from vae.training.build import build_model, resolve
    from vae.training.checks import check_parts

    settings, shape, kind = resolve(_settings(args)[0])
    model = build_model(settings.model, shape, settings.train.seed)
    check_parts(settings, model)
    unbounded = (float("-inf"), float("inf"))
    check_kind(model.likelihood_head, kind, unbounded if kind == "real" else (0, 1), settings.data.name)
    print(dump(plain(settings)), end="")
    count = sum(p.numel() for p in model.parameters())
    print(f"# {count:,} parameters")


def test_curve(model: VAE, data: Data) -> list[dict[str, Any]]:
    """The ELBO of the test split, for the metrics."""
    from vae.evaluation import evaluation_line

    return [evaluation_line(model, data, "test")]


def measure(opened: LoadedRun, data: Data) -> dict[str, Any]:
    """What a trained run's evaluations/test.json holds: its ELBO and terms on the whole test split."""
    from vae.commands.evaluate import evaluate_split

    return evaluate_split(opened, data.evaluation_split("test"), "test")[0]


def _train(args: Any) -> None:
    from vae.ranks import Ranks
    from vae.training.run import train

    ranks = Ranks.joined()
    settings, path = ranks.once(lambda: _settings(args))
    try:
        run = train(settings, path, resume=bool(args.resume), overwrite=args.overwrite, observe=test_curve)
    except Interrupted as stop:
        how = f"; go on with: python scripts/train.py --resume {path}" if (path / "config.yaml").exists() else ""
        raise Interrupted(f"{stop}{how}", stop.status) from None
    if args.resume and run.steps == 0:
        longer = "samples" if settings.train.samples else "epochs"
        how = f"--set train.{longer}=N with a larger N goes on with it"
        if run.stopped_early:
            how = "validation had stopped improving (train.patience)"
        print(f"{path}: this run is finished; {how}", file=sys.stderr)
    if ranks.first:
        _measure_and_draw(path, run.data, anew=run.steps > 0)


def _measure_and_draw(path: Path, data: Data, anew: bool) -> None:
    """Evaluate the run and draw what suits it; where that is done for this very checkpoint, only what is missing.

    evaluations/test.json comes last, so that one of this step says that all before it was done.
    """
    from vae.commands.base import open_on_device
    from vae.commands.evaluate import keep, kept, table
    from vae.commands.plot import suitable

    opened = open_on_device(str(path), None)
    record, before = None, kept(path)
    if anew or before is None or before["step"] != opened.step:
        record = measure(opened, data)
        print(table(record))
    for name, draw in suitable(opened, data).items():
        if record is not None or not (path / "figures" / f"{name}.pdf").exists():
            for file in draw():
                print(file)
    if record is not None:
        keep(opened, record)
