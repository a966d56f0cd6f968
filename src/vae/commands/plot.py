"""The plot_*.py commands: figures from run directories, as PNG and PDF."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from vae.commands.base import Parser, add, command, load_on_device, load_with_data, natural, positive
from vae.errors import UsageError


def _parser(program: str, description: str, example: str, several: bool = False) -> Parser:
    parser = Parser(program, description, example)
    add(parser, "run", nargs="+" if several else None)
    if program != "plot_curves":
        add(parser, "--checkpoint")
    parser.add_argument(
        "--out", metavar="DIR", help=f"where to write (default: figures/ of the {'first ' if several else ''}run)"
    )
    return parser


@command
def main_curves(argv: Sequence[str] | None = None) -> None:
    """plot_curves.py."""
    parser = _parser(
        "plot_curves", "Draw training and test curves of one or several runs.", "runs/a runs/b", several=True
    )
    args = parser.parse_args(argv)

    from vae.figures.of_runs import draw_curves

    print(*draw_curves([Path(run) for run in args.run], args.out), sep="\n")


@command
def main_reconstructions(argv: Sequence[str] | None = None) -> None:
    """plot_reconstructions.py."""
    about = "Draw data above their reconstructions by one or several runs."
    parser = _parser("plot_reconstructions", about, "runs/a runs/b", several=True)
    add(parser, "--split")
    parser.add_argument("--count", type=positive, default=10, metavar="N", help="how many data (default: 10)")
    args = parser.parse_args(argv)

    from vae.figures.of_runs import draw_reconstructions

    args.run = list(dict.fromkeys(map(Path, args.run)))
    loaded = [load_with_data(run, args.checkpoint) for run in args.run]
    splits = [data.evaluation_split(args.split, args.count) for _, data in loaded]
    for run, split in zip(args.run[1:], splits[1:], strict=True):
        if split.x.shape != splits[0].x.shape or not split.x.equal(splits[0].x):
            raise UsageError(f"{run}: was trained on other data than {args.run[0]}; draw them separately")
    print(*draw_reconstructions([run for run, _ in loaded], splits[0], args.split, args.out), sep="\n")


@command
def main_samples(argv: Sequence[str] | None = None) -> None:
    """plot_samples.py."""
    parser = _parser(
        "plot_samples",
        "Draw the decoder's means at draws of z from the prior; with --prior aggregate also at draws from a mixture\n"
        "of Gaussians fitted to the codes, with a verdict on how far these are from the prior.",
        "runs/digits_d2",
    )
    parser.add_argument(
        "--prior", choices=("standard", "aggregate"), default="standard", help="standard, or both beside each other"
    )
    add(parser, "--label")
    parser.add_argument("--count", type=positive, default=100, metavar="N", help="how many draws (default: 100)")
    parser.add_argument("--seed", type=natural, default=0, help="of the draws (default: 0)")
    args = parser.parse_args(argv)

    from vae.figures.of_runs import draw_aggregate, draw_samples

    if args.prior == "standard":
        run = load_on_device(args.run, args.checkpoint, label=args.label)
        print(*draw_samples(run, args.count, args.seed, args.out), sep="\n")
        return
    from vae.evaluation.aggregate import aggregate_posterior

    run, data = load_with_data(args.run, args.checkpoint)
    held_out = data.evaluation_split("test" if data.validation is None else "validation")
    found = aggregate_posterior(run.model, data.evaluation_split("train"), held_out)
    if args.label is not None:
        run.model = run.given(args.label)
    print(found.verdict)
    print(*draw_aggregate(run, found, args.count, args.seed, args.out), sep="\n")


@command
def main_manifold(argv: Sequence[str] | None = None) -> None:
    """plot_manifold.py."""
    parser = _parser(
        "plot_manifold",
        "Draw the decoder's means over the plane of two latents, on equally spaced z and on quantiles of the prior.",
        "runs/digits_d2 --range 3",
    )
    add(parser, "--label")
    parser.add_argument("--count", type=positive, default=20, metavar="N", help="images per side (default: 20)")
    parser.add_argument(
        "--range", type=_positive_number, default=4.0, metavar="R", help="of each latent, from -R to R (default: 4)"
    )
    args = parser.parse_args(argv)

    from vae.figures.of_runs import draw_manifold

    run = load_on_device(args.run, args.checkpoint, label=args.label)
    print(*draw_manifold(run, args.count, args.range, args.out), sep="\n")


@command
def main_tsne(argv: Sequence[str] | None = None) -> None:
    """plot_tsne.py."""
    parser = _parser(
        "plot_tsne",
        "Draw the codes of a split by class: as they are for up to two latents, by t-SNE for more.",
        "runs/digits_d2",
    )
    add(parser, "--split", "--limit")
    parser.add_argument("--sample", action="store_true", help="a sample from each posterior instead of its mean")
    parser.add_argument(
        "--perplexity", type=_positive_number, default=50, metavar="P", help="of t-SNE (default: %(default)s)"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of t-SNE (default: 0)")
    args = parser.parse_args(argv)

    from vae.figures.of_runs import draw_codes

    run, data = load_with_data(args.run, args.checkpoint)
    split = data.evaluation_split(args.split, args.limit)
    how = {"sampled": args.sample, "perplexity": args.perplexity, "seed": args.seed}
    print(*draw_codes(run, data, split, args.split, args.out, **how), sep="\n")


@command
def main_traversals(argv: Sequence[str] | None = None) -> None:
    """plot_traversals.py."""
    parser = _parser(
        "plot_traversals",
        "Draw the decoder's means as one latent at a time changes, the latents of most KL first; and, with --between,\n"
        "on the straight lines between the codes of two test data.",
        "runs/d20 --count 5 --between 0 3",
    )
    parser.add_argument("--count", type=positive, default=10, metavar="N", help="how many latents (default: 10)")
    parser.add_argument("--datum", type=natural, default=0, metavar="I", help="whose code the others keep (default: 0)")
    parser.add_argument(
        "--range", type=_positive_number, default=3.0, metavar="R", help="of each latent, from -R to R (default: 3)"
    )
    parser.add_argument(
        "--between", nargs=2, type=natural, action="append", default=[], metavar=("I", "J"), help="two test data"
    )
    args = parser.parse_args(argv)

    from vae.figures.of_runs import draw_interpolation, draw_traversals

    run, data = load_with_data(args.run, args.checkpoint)
    split = data.evaluation_split("test")
    for index in (args.datum, *(i for pair in args.between for i in pair)):
        if index >= len(split):
            raise UsageError(f"plot_traversals.py: there is no test datum {index}; there are {len(split)}, from 0")
    print(*draw_traversals(run, data, split.first(1000), args.datum, args.count, args.range, args.out), sep="\n")
    if args.between:
        print(*draw_interpolation(run, data, args.between, args.out), sep="\n")


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number greater than 0")
    return value
