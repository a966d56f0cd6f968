"""train.py: train a model from a YAML config, evaluate it, and draw its figures."""

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


def _parser() -> Parser:
    parser = Parser(
        "train",
        "Train a variational auto-encoder, or a regression, from a YAML config, evaluate it on the test split, and\n"
        "draw its figures.\n"
        "Give one of --config, --resume and --list.",
        "--config configs/digits_d2.yaml --set model.latent_dim=10 train.epochs=50 --out runs/digits_d10",
    )
    parser.add_argument("--config", metavar="FILE", help="a YAML config, such as those in configs/")
    add_set(parser)
    parser.add_argument("--from", dest="weights", metavar="RUN", help="begin with the weights of this run")
    parser.add_argument("--out", metavar="RUN", help="the run directory (default: runs/NAME of the config file)")
    parser.add_argument(
        "--resume", metavar="RUN", help="continue a run; the result is the same, bit for bit, as without a stop"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run in the directory, if there is one")
    parser.add_argument("--no-figures", action="store_true", help="evaluate, but draw no figures")
    parser.add_argument(
        "--list", action="store_true", help="list every setting and every part, with options and defaults"
    )
    parser.add_argument("--dry-run", action="store_true", help="only print the resolved config and remarks on the data")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Train a run."""
    args = _parser().parse_args(argv)
    chosen = [name for name in ("config", "resume", "list") if getattr(args, name)]
    if len(chosen) != 1:
        raise UsageError("train.py: give one of --config FILE, --resume RUN, --list; see train.py --help")
    if args.resume and (args.out or args.overwrite or args.weights):
        raise UsageError(
            "train.py: --resume continues a run in its own directory; it takes no --out, no --overwrite and no --from"
        )
    if args.out == "":
        raise UsageError("train.py: --out is empty; name a directory for the run")
    if args.list:
        from vae.commands.list import listing

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
    from vae.data import DATASETS, load_data
    from vae.errors import DataError
    from vae.likelihoods.advice import check_kind
    from vae.training.build import build_for, build_model, resolve, with_likelihood
    from vae.training.checks import check_parts
    from vae.training.doctor import diagnosis

    settings = _settings(args)[0]
    try:
        data = load_data(settings.data)
    except DataError as error:
        if DATASETS[settings.data.name].shape is None or getattr(settings.model, "condition", None):
            raise  # they alone tell what to build
        settings, shape, kind = resolve(settings)
        model = build_model(settings.model, shape, settings.train.seed)
        check_parts(settings, model)
        check_kind(model.likelihood_head, kind, (0, 1), settings.data.name)
        count = sum(p.numel() for p in model.parameters())
        found = [f"{count:,} parameters", f"the data were not looked at: {error}"]
    else:
        settings = with_likelihood(settings, data.kind, data.shape, data.doubt)
        found = list(diagnosis(settings, data, build_for(settings, data)))
    print(dump(plain(settings)), end="")
    for sentence in found:
        print(f"# {sentence}")


def test_curve(model: VAE, data: Data) -> list[dict[str, Any]]:
    """A line of metrics with the ELBO on the test split."""
    from vae.evaluation import evaluation_line

    return [evaluation_line(model, data, "test")]


def _train(args: Any) -> None:
    from vae.ranks import Ranks
    from vae.training.run import train

    ranks = Ranks.joined()
    settings, path = ranks.once(lambda: _settings(args))
    try:
        options = {"resume": bool(args.resume), "overwrite": args.overwrite, "weights": args.weights}
        run = train(settings, path, observe=test_curve, **options)
    except Interrupted as stop:
        how = f"; continue with: python scripts/train.py --resume {path}" if (path / "config.yaml").exists() else ""
        raise Interrupted(f"{stop}{how}", stop.status) from None
    if args.resume and run.steps == 0:
        longer = "samples" if settings.train.samples else "epochs"
        how = f"to train it longer, add --set train.{longer}=N with a larger N"
        if run.stopped_early:
            how = "validation stopped improving (train.patience)"
        print(f"{path}: this run is finished; {how}", file=sys.stderr)
    if ranks.first:
        _evaluate_and_draw(path, run.data, trained=run.steps > 0, figures=not args.no_figures)


def _evaluate_and_draw(path: Path, data: Data, trained: bool, figures: bool) -> None:
    """Evaluate the run and draw its figures; if this was done for this checkpoint, draw only those that are missing.

    evaluations/test.json is written last: if it has the step of the checkpoint, everything before it was done.
    """
    from vae.commands.base import load_on_device, origin
    from vae.evaluation.report import evaluate_test_split, read_evaluation, table, write_evaluation

    loaded = load_on_device(path, None, any_model=True)
    record, before = None, read_evaluation(path)
    if trained or before is None or before["step"] != loaded.step:
        record = evaluate_test_split(loaded.model, data, origin(loaded))
        print(table(record))
    if figures:
        from vae.figures.of_runs import suitable_figures

        for name, draw in suitable_figures(loaded, data).items():
            if record is not None or not (path / "figures" / f"{name}.pdf").exists():
                print(*draw(), sep="\n")
    if record is not None:
        write_evaluation(path, record)


if __name__ == "__main__":
    sys.exit(main())
