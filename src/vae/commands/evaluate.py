"""evaluate.py: the ELBO of a run on a split and log p(x), with standard errors."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.base import Parser, add, command, load_on_device, load_with_data, natural, origin, positive, write_npz
from vae.errors import UsageError
from vae.files import UNSAFE

if TYPE_CHECKING:
    from torch import Tensor

    from vae.data import Data, Split
    from vae.evaluation.report import Questions
    from vae.training.loading import LoadedRun

METHODS = ("is", "hmc", "ais", "quadrature")  # the keys of LOG_LIKELIHOODS, which would import torch


def _parser() -> Parser:
    parser = Parser(
        "evaluate",
        "Print the evidence lower bound of a trained model on a split, and its two terms: mean, standard error, n.\n"
        "With --log-likelihood also log p(x): by importance sampling (is), a density fitted to posterior samples\n"
        "(hmc), annealed importance sampling (ais), or quadrature (up to 3 latents).\n"
        "The result is also written to RUN/evaluations, to a file named after the arguments.",
        "runs/digits_d2 --log-likelihood is --num-samples 5000 --limit 100",
    )
    add(parser, "run", "--checkpoint", "--split", "--limit", "--data", "--json")
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
    parser.add_argument("--save", metavar="FILE.npz", help="write the values of each datum to this file")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Evaluate a run."""
    args = _parser().parse_args(argv)

    from vae.evaluation.report import ANSWERS, report, table, write_evaluation
    from vae.models import VAE
    from vae.training.checks import check_support

    questions = _questions(args)
    asked = any(getattr(questions, question) for question in ANSWERS)
    if args.save and not Path(args.save).absolute().parent.is_dir():
        raise UsageError(f"{args.save}: its folder does not exist")
    run, data, split = _load(args)
    train = data.evaluation_split("train") if args.representation and data is not None else None
    name = args.split if args.data is None else "data"
    if isinstance(run.model, VAE) and data is not None:
        check_support(split, name, run.model)
    record, values = report(run.model, split, questions, name=name, train=train, origin=origin(run), verbose=True)
    if args.data is not None:
        record["data"] = args.data
    elif data is not None and isinstance(run.model, VAE) and not asked:
        record["remarks"] = _remarks(run, data, values["elbo"], record, args)
    if args.save:
        write_npz(args.save, {key: column.numpy() for key, column in values.items()})
    print(json.dumps(record, allow_nan=False) if args.json else table(record))
    write_evaluation(run.path, record, _name(args))


def _remarks(run: LoadedRun, data: Data, elbo: Tensor, record: dict[str, Any], args: Any) -> list[str]:
    """What the numbers of a split mean, in sentences."""
    from vae.evaluation import evaluate_bound
    from vae.evaluation.remarks import on_collapse, on_fit
    from vae.training.run_directory import history

    found = list(on_collapse(record["kl_per_dimension"] or ()))
    if args.split == "train":
        return found
    train, how = data.evaluation_split("train", len(elbo)), {"seed": args.seed, "batch_size": args.batch_size or 1000}
    seen = evaluate_bound(run.model, train, name="train", **how).elbo
    return [*found, *on_fit(elbo, seen, args.split, history(run.path))]


def _questions(args: Any) -> Questions:
    """What the arguments ask for; UsageError, in the words of the command line, if they do not go together."""
    from vae.evaluation.report import Questions

    names = [field.name for field in dataclasses.fields(Questions)]
    try:
        questions = Questions(**{name: getattr(args, name) for name in names})
    except UsageError as error:
        flags = re.sub(rf"\b({'|'.join(names)})\b", lambda name: "--" + name[0].replace("_", "-"), str(error))
        raise UsageError(f"evaluate.py: {flags}") from None
    if args.data is not None or args.split != "test":
        if args.self_check:
            raise UsageError("evaluate.py: --self-check simulates its data; leave --split and --data out")
        if args.representation:
            raise UsageError(
                "evaluate.py: --representation evaluates the codes of the training and test splits; leave --split and "
                "--data out"
            )
    if args.data is not None and args.split != "test":
        raise UsageError("evaluate.py: --data replaces the test split; leave --split out")
    return questions


def _load(args: Any) -> tuple[LoadedRun, Data | None, Split]:
    """The run, the data that it was trained on (unless others are given), and what to evaluate it on."""
    if args.data is None:
        run, data = load_with_data(args.run, args.checkpoint, any_model=True)
        limit = None if args.representation else args.limit  # which limits the labels
        return run, data, data.evaluation_split(args.split, limit)
    from vae.data import kind_of

    run = load_on_device(args.run, args.checkpoint, any_model=True)
    split = run.read(args.data)
    on = "[{:.4g}, {:.4g}]".format(*split.range)
    print(f"{args.data}: {len(split)} data of shape {run.model.data_shape}, {kind_of(split)} on {on}", file=sys.stderr)
    return run, None, split


def _name(args: Any) -> str:
    """The name of an evaluation's file, from the arguments: test, or test_limit-100_seed-3_is-5000.

    Defaults are left out: the whole split, seed 0, one sample per datum, checkpoint best.
    """
    split = args.split
    if args.data is not None:  # the hash of its path tells apart files of the same name
        data = Path(args.data).resolve()
        split = f"data-{re.sub(UNSAFE, '-', data.stem)[:60]}-{hashlib.sha256(str(data).encode()).hexdigest()[:8]}"
    flags = {"representation": args.representation, "self-check": args.self_check, "gaps": args.gaps}
    asked = [word for word, wanted in {**flags, args.log_likelihood: args.log_likelihood}.items() if wanted]
    if args.num_samples and (asked or args.num_samples > 1):  # the ELBO alone has one by default
        asked = [*asked[:-1], f"{asked[-1] if asked else 'samples'}-{args.num_samples}"]
    checkpoint = None if args.checkpoint == "best" else args.checkpoint
    before = {"checkpoint": checkpoint, "limit": args.limit, "seed": args.seed or None}
    after = {"chains": args.chains, "start": args.start}
    first, last = ([f"{key}-{value}" for key, value in part.items() if value is not None] for part in (before, after))
    return "_".join([split, *first, *asked, *last])
