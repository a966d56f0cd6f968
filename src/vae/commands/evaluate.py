"""evaluate.py: the ELBO of a run on a split and log p(x), with standard errors."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands import questions
from vae.commands.base import (
    Parser,
    add_checkpoint,
    add_limit,
    add_runs,
    add_split,
    command,
    load_on_device,
    load_with_data,
    natural,
    positive,
    write_npz,
)
from vae.commands.questions import METHODS
from vae.errors import UsageError
from vae.files import UNSAFE, write_atomically
from vae.text import NOT_A_DENSITY, mean_row

if TYPE_CHECKING:
    from vae.data import Data, Split
    from vae.training.loading import LoadedRun


def _parser() -> Parser:
    parser = Parser(
        "evaluate",
        "Print the evidence lower bound of a trained model on a split, and its two terms: mean, standard error, n.\n"
        "With --log-likelihood also log p(x): by importance sampling (is), a density fitted to posterior samples\n"
        "(hmc), annealed importance sampling (ais), or quadrature (up to 3 latents).\n"
        "The result is also written to RUN/evaluations, to a file named after the arguments.",
        "runs/digits_d2 --log-likelihood is --num-samples 5000 --limit 100",
    )
    add_runs(parser)
    add_checkpoint(parser)
    add_split(parser)
    add_limit(parser)
    parser.add_argument(
        "--data", metavar="FILE", help="an .npz file with x_test, or x, to use instead of the test split"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of the noise (default: 0)")
    parser.add_argument("--log-likelihood", choices=METHODS, help="also estimate log p(x), by this method")
    parser.add_argument(
        "--num-samples",
        type=positive,
        metavar="K",
        help="per datum: samples of z for the ELBO (default: 1), importance samples (is and --gaps: 5000), posterior "
        "samples (hmc: 500), intermediate distributions (ais: 500), or points per axis to start from (quadrature)",
    )
    parser.add_argument(
        "--start", choices=("posterior", "prior"), help="where the chains of ais start (default: posterior, which is q)"
    )
    parser.add_argument("--chains", type=positive, metavar="C", help="of hmc and ais (default: 16)")
    parser.add_argument(
        "--gaps", action="store_true", help="how much of log p(x) - ELBO is due to the family of q and to the encoder"
    )
    parser.add_argument(
        "--self-check",
        action="store_true",
        help="bound log p(x) from both sides, on data simulated from the model (50, or N by --limit)",
    )
    parser.add_argument(
        "--representation",
        action="store_true",
        help="accuracy of classifiers on the codes, compared with pixels, PCA and auto-encoders; --limit N: fit on N "
        "labels",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="M",
        help="data at a time (default: 1000; for log p(x), it depends on the method); changes only the speed",
    )
    parser.add_argument("--json", action="store_true", help="print only one JSON object")
    parser.add_argument("--save", metavar="FILE.npz", help="write the values of each datum to this file")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a run."""
    args = _parser().parse_args(argv)
    questions.check_arguments(args)
    if args.save and not Path(args.save).absolute().parent.is_dir():
        raise UsageError(f"{args.save}: its folder does not exist")
    run, split, name, data = _load(args)
    answers, columns = questions.answer(run.model, split, name, data, args)  # first, since it may raise an error
    elbo_samples = 1 if answers else args.num_samples or 1
    record, values = evaluate_split(run, split, name, args.seed, elbo_samples, args.batch_size or 1000)
    record.update(answers)
    values.update(columns)
    if args.data is not None:
        record["data"] = args.data
    if args.save:
        write_npz(args.save, values)
    print(json.dumps(record, allow_nan=False) if args.json else evaluation_table(record))
    write_evaluation(run, record, evaluation_name(args, Path(args.data).resolve() if args.data else None))


def _load(args: Any) -> tuple[LoadedRun, Split, str, Data | None]:
    if args.data is None:
        run, data = load_with_data(args.run, args.checkpoint)
        limit = None if args.representation else args.limit  # which limits the labels
        return run, data.evaluation_split(args.split, limit), args.split, data
    from vae.data import read_user_split
    from vae.training.checks import check_support

    if args.split != "test":
        raise UsageError("evaluate.py: --data replaces the test split; leave --split out")
    run = load_on_device(args.run, args.checkpoint)
    split = read_user_split(args.data, run.model.data_shape, run.settings.data)
    check_support(split, "data", run.model)
    return run, split.first(args.limit), "data", None


def evaluate_split(
    run: LoadedRun, split: Split, name: str, seed: int = 0, num_samples: int = 1, batch_size: int = 1000
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of an evaluation, to be printed and written, and the values of each datum."""
    from vae.evaluation import evaluate_bound, mean_and_stderr, warn_of_collapse
    from vae.training.checks import check_support

    model = run.model
    check_support(split, name, model)
    result = evaluate_bound(model, split, name=name, seed=seed, num_samples=num_samples, batch_size=batch_size)
    if len(split) > 1:  # of one datum, no unit varies
        warn_of_collapse(result.active_units)
    columns = {key: getattr(result, key) for key in ("elbo", "log_p_x_given_z", "kl")}
    record: dict[str, Any] = {
        **{key: mean_and_stderr(column) for key, column in columns.items()},
        "density": model.is_density,
        "estimator": result.estimator,
        "num_samples": num_samples,
        "split": name,
        "seed": seed,
        "run": str(run.path),
        "checkpoint": run.checkpoint,
        "step": run.step,
        "active_units": result.active_units if len(split) > 1 else None,
        "latent_dim": model.latent_dim,
        "kl_per_dimension": None if result.kl_per_dimension is None else result.kl_per_dimension.tolist(),
    }
    return record, {**{key: column.numpy() for key, column in columns.items()}, "index": split.index.numpy()}


def evaluate_test_split(run: LoadedRun, data: Data) -> dict[str, Any]:
    """The record of evaluations/test.json: the ELBO and its terms on the whole test split."""
    return evaluate_split(run, data.evaluation_split("test"), "test")[0]


# ------------------------------------------------------------------------------------- the files in a run


def evaluation_name(args: Any, data: Path | None) -> str:
    """The name of an evaluation, from its arguments: test, or test_limit-100_seed-3_is-5000.

    Defaults are left out: the whole split, seed 0, one sample per datum, checkpoint best.
    """
    flags = {"representation": args.representation, "self-check": args.self_check, "gaps": args.gaps}
    asked = [word for word, wanted in {**flags, args.log_likelihood: args.log_likelihood}.items() if wanted]
    if args.num_samples and (asked or args.num_samples > 1):  # the ELBO alone has one by default
        asked = [*asked[:-1], f"{asked[-1] if asked else 'samples'}-{args.num_samples}"]
    checkpoint = None if args.checkpoint == "best" else args.checkpoint
    before = {"checkpoint": checkpoint, "limit": args.limit, "seed": args.seed or None}
    after = {"chains": args.chains, "start": args.start}
    first, last = ([f"{key}-{value}" for key, value in part.items() if value is not None] for part in (before, after))
    return "_".join([args.split if data is None else _name_of(data), *first, *asked, *last])


def _name_of(data: Path) -> str:
    """A safe name for the evaluation of a user's file; the hash of its path tells apart files of the same name."""
    return f"data-{re.sub(UNSAFE, '-', data.stem)[:60]}-{hashlib.sha256(str(data).encode()).hexdigest()[:8]}"


def _evaluation_file(run: Path, name: str) -> Path:
    return run / "evaluations" / f"{name}.json"


def write_evaluation(run: LoadedRun, record: dict[str, Any], name: str = "test") -> None:
    """Write an evaluation into the run."""
    file, content = _evaluation_file(run.path, name), json.dumps(record, indent=2, allow_nan=False) + "\n"
    try:
        write_atomically(file, content.encode())
    except OSError as error:  # a run that only others may write to; the result is printed
        print(f"{file}: not written: {error.strerror}", file=sys.stderr)


def evaluation_table(record: dict[str, Any]) -> str:
    """An evaluation as a table for people."""
    names = {"elbo": "ELBO", "log_p_x_given_z": "log p(x|z)", "kl": "KL"}
    n = record["elbo"]["n"]
    lines = [
        f"{record['run']}, checkpoint {record['checkpoint']} (step {record['step']}), {record['split']}, n = {n}",
        f"{'':12}{'mean':>12}{'std. error':>12}   nats per datum",
    ]
    lines += [mean_row(name, record[key]) for key, name in names.items()]
    lines += questions.answer_lines(record)
    if record["active_units"] is not None:
        lines.append(f"active units: {record['active_units']} of {record['latent_dim']}")
    if not record["density"]:
        lines.append(NOT_A_DENSITY)
    return "\n".join(lines)
