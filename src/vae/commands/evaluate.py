"""evaluate.py: the ELBO of a run on a split, and log p(x), with standard errors."""

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
    add_runs,
    add_split,
    chosen_split,
    command,
    natural,
    open_on_device,
    open_with_data,
    positive,
    write_npz,
)
from vae.commands.questions import METHODS
from vae.errors import UsageError
from vae.files import UNSAFE

if TYPE_CHECKING:
    from vae.data import Data, Split
    from vae.training.loading import LoadedRun


def _parser() -> Parser:
    parser = Parser(
        "evaluate",
        "Print the evidence lower bound of a trained model and its two terms over a split: mean, standard error, n.\n"
        "With --log-likelihood also log p(x): by importance sampling (is), a density fitted to posterior samples\n"
        "(hmc), annealed importance sampling (ais), or quadrature (up to 3 latents).\n"
        "The answer is kept in RUN/evaluations, in a file with the name of what was asked.",
        "runs/digits_d2 --log-likelihood is --num-samples 5000 --limit 100",
    )
    add_runs(parser)
    add_checkpoint(parser)
    add_split(parser)
    parser.add_argument("--data", metavar="FILE", help="an .npz file with x_test, or x, in the place of the test split")
    parser.add_argument("--seed", type=natural, default=0, help="of the noise (default: 0)")
    parser.add_argument("--log-likelihood", choices=METHODS, help="estimate log p(x) too, by this method")
    parser.add_argument(
        "--num-samples",
        type=positive,
        metavar="K",
        help="samples of z a datum: of the ELBO (default: 1), importance samples (is: 5000; also of --gaps), posterior "
        "samples kept (hmc: 500), intermediate distributions (ais: 500), points an axis to start from (quadrature)",
    )
    parser.add_argument(
        "--start", choices=("posterior", "prior"), help="where the chains of ais begin (default: posterior, which is q)"
    )
    parser.add_argument("--chains", type=positive, metavar="C", help="of hmc and ais (default: 16)")
    parser.add_argument(
        "--gaps", action="store_true", help="how much of log p(x) - ELBO is due to the family of q, and to the encoder"
    )
    parser.add_argument(
        "--self-check", action="store_true", help="bound log p(x) from both sides on data simulated from the model"
    )
    parser.add_argument(
        "--representation",
        action="store_true",
        help="accuracy of classifiers on the codes, beside pixels, PCA, auto-encoders; --limit: labels to fit on",
    )
    parser.add_argument(
        "--batch-size",
        type=positive,
        metavar="M",
        help="data at a time (default: 1000; for log p(x), what suits the method): changes the speed, not the numbers",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, alone")
    parser.add_argument("--save", metavar="FILE.npz", help="write the values of each datum")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a run."""
    args = _parser().parse_args(argv)
    questions.check(args)
    if args.save and not Path(args.save).absolute().parent.is_dir():
        raise UsageError(f"{args.save}: there is no such folder to write into")
    opened, split, name, data = _open(args)
    answers, columns = questions.ask(opened.model, split, name, data, args)  # first: it may refuse
    elbo_samples = 1 if answers else args.num_samples or 1
    record, values = evaluate_split(opened, split, name, args.seed, elbo_samples, args.batch_size or 1000)
    record.update(answers)
    values.update(columns)
    if args.data is not None:
        record["data"] = args.data
    if args.save:
        write_npz(args.save, values)
    print(json.dumps(record, allow_nan=False) if args.json else table(record))
    keep(opened, record, evaluation_name(args, Path(args.data).resolve() if args.data else None))


def _open(args: Any) -> tuple[LoadedRun, Split, str, Data | None]:
    if args.data is None:
        opened, data = open_with_data(args.run, args.checkpoint)
        split = data.evaluation_split("test") if args.representation else chosen_split(data, args.split, args.limit)
        return opened, split, args.split, data
    from vae.data import read_user_split
    from vae.training.checks import check_support

    if args.split != "test":
        raise UsageError("evaluate.py: --data takes the place of a split; leave --split out")
    opened = open_on_device(args.run, args.checkpoint)
    split = read_user_split(args.data, opened.model.data_shape, opened.settings.data)
    check_support(split, "data", opened.model)
    return opened, split.first(args.limit), "data", None


def evaluate_split(
    opened: LoadedRun, split: Split, name: str, seed: int = 0, num_samples: int = 1, batch_size: int = 1000
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is printed and kept of an evaluation, and the values of each datum."""
    from vae.evaluation import evaluate_bound, mean_and_stderr, warn_of_collapse
    from vae.training.checks import check_support

    model = opened.model
    check_support(split, name, model)
    result = evaluate_bound(model, split, name=name, seed=seed, num_samples=num_samples, batch_size=batch_size)
    if len(split) > 1:  # a single datum shows no variation
        warn_of_collapse(result.active_units)
    columns = {key: getattr(result, key) for key in ("elbo", "log_p_x_given_z", "kl")}
    record: dict[str, Any] = {
        **{key: mean_and_stderr(column) for key, column in columns.items()},
        "density": model.is_density,
        "estimator": result.estimator,
        "num_samples": num_samples,
        "split": name,
        "seed": seed,
        "run": str(opened.path),
        "checkpoint": opened.checkpoint,
        "step": opened.step,
        "active_units": result.active_units if len(split) > 1 else None,
        "latent_dim": model.latent_dim,
        "kl_per_dimension": None if result.kl_per_dimension is None else result.kl_per_dimension.tolist(),
    }
    return record, {**{key: column.numpy() for key, column in columns.items()}, "index": split.index.numpy()}


# ------------------------------------------------------------------------------------- what a run keeps


def evaluation_name(args: Any, data: Path | None) -> str:
    """The name of what was asked: test, or test_limit-100_seed-3_is-5000.

    A split's name alone stands for all of it, at seed 0, with one sample, from the checkpoint that is taken unasked.
    """
    flags = {"representation": args.representation, "self-check": args.self_check, "gaps": args.gaps}
    asked = [word for word, wanted in {**flags, args.log_likelihood: args.log_likelihood}.items() if wanted]
    if args.num_samples and (asked or args.num_samples > 1):  # one is the ELBO's own number
        asked = [*asked[:-1], f"{asked[-1] if asked else 'samples'}-{args.num_samples}"]
    checkpoint = None if args.checkpoint == "best" else args.checkpoint  # best is taken unasked
    before = {"checkpoint": checkpoint, "limit": args.limit, "seed": args.seed or None}
    after = {"chains": args.chains, "start": args.start}
    first, last = ([f"{key}-{value}" for key, value in part.items() if value is not None] for part in (before, after))
    return "_".join([args.split if data is None else _name_of(data), *first, *asked, *last])


def _name_of(data: Path) -> str:
    """A name for a user's file that a file system takes, and that another file of the same name has not."""
    return f"data-{re.sub(UNSAFE, '-', data.stem)[:60]}-{hashlib.sha256(str(data).encode()).hexdigest()[:8]}"


def evaluation_file(run: Path, name: str = "test") -> Path:
    """Where a run keeps an evaluation."""
    return run / "evaluations" / f"{name}.json"


def keep(opened: LoadedRun, record: dict[str, Any], name: str = "test") -> None:
    """Write a record into the run."""
    from vae.files import write_atomically

    file, content = evaluation_file(opened.path, name), json.dumps(record, indent=2, allow_nan=False) + "\n"
    try:
        write_atomically(file, content.encode())
    except OSError as error:  # somebody else's run; what was asked for is printed
        print(f"{file}: not written: {error.strerror}", file=sys.stderr)


def kept(run: Path) -> dict[str, Any] | None:
    """The evaluation of the whole test split that a run keeps, if there is one."""
    try:
        record = json.loads(evaluation_file(run).read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "step" in record else None


# ------------------------------------------------------------------------------------- in words


def table(record: dict[str, Any]) -> str:
    """A record in words."""
    names = {"elbo": "ELBO", "log_p_x_given_z": "log p(x|z)", "kl": "KL"}
    n = record["elbo"]["n"]
    lines = [
        f"{record['run']}, checkpoint {record['checkpoint']} (step {record['step']}), {record['split']}, n = {n}",
        f"{'':12}{'mean':>12}{'std. error':>12}   nats a datum",
    ]
    for key, word in names.items():
        stderr = record[key]["stderr"]
        lines.append(
            f"{word:12}{record[key]['mean']:12.4f}" + (f"{stderr:12.4f}" if stderr is not None else f"{'-':>12}")
        )
    lines += questions.lines_of(record)
    if record["active_units"] is not None:
        lines.append(f"active units: {record['active_units']} of {record['latent_dim']}")
    if not record["density"]:
        lines.append("grey cross-entropy is no density of x: compare these values with one another only")
    return "\n".join(lines)
