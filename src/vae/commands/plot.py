"""The plot_*.py commands: figures from run directories, as PNG and PDF."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
)
from vae.errors import UsageError
from vae.text import NO_DENSITY

if TYPE_CHECKING:
    from vae.data import Data, Split
    from vae.training.loading import LoadedRun

PERPLEXITY = 50


def suitable_figures(run: LoadedRun, data: Data) -> dict[str, Callable[[], list[Path]]]:
    """The figures that suit a run: their names, and functions that draw them."""
    model, split = run.model, data.evaluation_split("test")
    figures = {
        "curves": lambda: draw_curves([run.path], None),
        "reconstructions": lambda: draw_reconstructions([run], split, "test", 10, None),
        "samples": lambda: draw_samples(run, 100, 0, None),
    }
    if model.latent_dim == 2 and len(model.data_shape) == 3:
        figures["manifold"] = lambda: draw_manifold(run, 20, 4.0, None)
    if model.latent_dim <= 2:
        figures["codes"] = lambda: draw_codes(run, data, split, "test", None)
    elif len(split) > 3 and _codes_differ(run, split):
        # t-SNE of more data could take longer than the training; plot_tsne.py takes all by default
        figures["tsne"] = lambda: draw_codes(run, data, split.first(2000), "test", None)
    return figures


def _codes_differ(run: LoadedRun, split: Split) -> bool:
    """Whether the codes of a split differ; if they are all equal, t-SNE has nothing to show."""
    codes = run.model.encode(split.first(100).images())
    return bool((codes != codes[0]).any())


def _save(figure: Any, run_path: Path, name: str, out: str | None) -> list[Path]:
    from vae.figures import save

    folder = Path(out or run_path / "figures")
    try:
        return save(figure, folder / name)
    except OSError as error:
        raise UsageError(f"{folder}: cannot write figures there: {error.strerror}") from None


# ------------------------------------------------------------------------------------- each figure


def draw_curves(runs: Sequence[Path], out: str | None) -> list[Path]:
    """Training and test curves of one or several runs."""
    from vae.figures import curves
    from vae.training import read_settings
    from vae.training.run_directory import history, open_config

    runs = list(dict.fromkeys(runs))  # a run that is given twice is drawn once
    densities = []
    histories = {}
    for name, run in zip(_names(runs), runs, strict=True):
        likelihood = read_settings(open_config(run), where=run).model.likelihood
        densities.append(likelihood is None or likelihood.name != "grey_cross_entropy")
        lines = history(run)
        if not lines:
            raise UsageError(f"{run}: has no metrics yet; its first epoch is not over")
        histories[name + ("" if densities[-1] or len(runs) == 1 else " (no density)")] = lines
    if len(set(densities)) == 2:
        print("grey cross-entropy (no density) and densities are not comparable: see the labels", file=sys.stderr)
    note = f" ({NO_DENSITY})" if densities == [False] else ""
    return _save(curves(histories, note), runs[0], "curves", out)


def _names(runs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, or the whole path if two share that part."""
    short = [run.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]


def draw_reconstructions(
    runs: Sequence[LoadedRun], split: Split, split_name: str, count: int, out: str | None
) -> list[Path]:
    """Data above their reconstructions by each run."""
    from vae.figures import reconstructions

    shown = split.first(count)
    by_run = {}
    for name, run in zip(_names([run.path for run in runs]), runs, strict=True):
        by_run[f"{name}\n(d = {run.model.latent_dim})"] = _array(run.model.reconstruct(shown.images()))
    title = f"The first {len(shown)} {split_name} data, and the decoder's means at their posterior means"
    figure = reconstructions(_array(shown.images()), by_run, title, runs[0].data_range)
    return _save(figure, runs[0].path, "reconstructions", out)


def _array(images: Any) -> Any:
    return images.detach().cpu().double().numpy()


def draw_samples(run: LoadedRun, count: int, seed: int, out: str | None) -> list[Path]:
    """The decoder's means at draws from the prior."""
    from vae.figures import samples

    title = f"{run.path.name}: decoder means at {count} draws of z from the prior (seed {seed})"
    figure = samples(_array(run.model.sample(count, seed=seed)), title, run.data_range)
    return _save(figure, run.path, "samples", out)


def draw_manifold(run: LoadedRun, count: int, limit: float, out: str | None) -> list[Path]:
    """The decoder's means over the latent plane: equally spaced z, and quantiles of the prior on the unit square."""
    import numpy as np
    import torch
    from scipy.stats import norm

    from vae.figures import manifold

    if len(run.model.data_shape) != 3:
        raise UsageError(f"{run.path}: a manifold is drawn for images, and these data are vectors")
    if run.model.latent_dim != 2:
        raise UsageError(
            f"{run.path}: a manifold is drawn over 2 latents, and this model has {run.model.latent_dim}; "
            "use plot_samples.py or plot_tsne.py"
        )
    name, places = run.path.name, (np.arange(count) + 0.5) / count
    grids = {
        "manifold": (np.linspace(-limit, limit, count), f"{name}: decoder means, z equally spaced", None),
        "manifold_quantiles": (norm.ppf(places), f"{name}: decoder means, z at the quantiles of the prior", places),
    }
    files = []
    for stem, (grid, title, quantiles) in grids.items():
        z = np.stack(np.meshgrid(grid, grid[::-1]), -1).reshape(-1, 2)  # row by row from the top, where z_2 is largest
        images = _array(run.model.decode(torch.from_numpy(z)))
        files += _save(manifold(images, grid, title, run.data_range, quantiles), run.path, stem, out)
    return files


def draw_codes(
    run: LoadedRun,
    data: Data,
    split: Split,
    split_name: str,
    out: str | None,
    *,
    sampled: bool = False,
    perplexity: float = PERPLEXITY,
    seed: int = 0,
) -> list[Path]:
    """The codes of a split by class: as they are for up to two latents, by t-SNE for more."""
    from vae.evaluation import posterior_codes
    from vae.figures import codes, tsne

    model = run.model
    z = posterior_codes(model, split, name=split_name, sampled=sampled).double().numpy()
    kind = "posterior samples" if sampled else "posterior means"
    title = f"{run.path.name}: {kind} of {len(split)} {split_name} data"
    stem, axes = "codes", ("$z_1$", "$z_2$")
    if model.latent_dim > 2:
        if len(z) < 4:
            raise UsageError(f"t-SNE needs at least 4 data, and there are {len(z)}")
        if (z == z[0]).all():
            raise UsageError(f"{run.path}: all codes are equal (a collapsed posterior), so there is nothing to draw")
        fitting = min(perplexity, (len(z) - 1) / 3)
        if fitting < perplexity:
            print(f"perplexity lowered from {perplexity:g} to {fitting:.3g} for {len(z)} data", file=sys.stderr)
        if len(z) > 3000:
            print(f"t-SNE of {len(z)} codes takes a minute or so; for fewer, use --limit N", file=sys.stderr)
        z, stem, axes = tsne(z, fitting, seed), "tsne", ("t-SNE 1", "t-SNE 2")
        title += f"\n{model.latent_dim} latents by t-SNE (perplexity {fitting:.3g})"
    labels = None if split.y is None else split.y.numpy()
    return _save(codes(z, labels, data.classes, axes, title), run.path, stem, out)


# ------------------------------------------------------------------------------------- command lines


def _parser(program: str, description: str, example: str, several: bool = False) -> Parser:
    parser = Parser(program, description, example)
    add_runs(parser, several)
    if program != "plot_curves":
        add_checkpoint(parser)
    parser.add_argument(
        "--out", metavar="DIR", help=f"where to write (default: figures/ of the {'first ' if several else ''}run)"
    )
    return parser


def _print_files(files: Sequence[Path]) -> None:
    for file in files:
        print(file)


@command
def main_curves(argv: Sequence[str] | None = None) -> None:
    """plot_curves.py."""
    parser = _parser(
        "plot_curves", "Draw training and test curves of one or several runs.", "runs/a runs/b", several=True
    )
    args = parser.parse_args(argv)
    _print_files(draw_curves([Path(run) for run in args.run], args.out))


@command
def main_reconstructions(argv: Sequence[str] | None = None) -> None:
    """plot_reconstructions.py."""
    parser = _parser(
        "plot_reconstructions",
        "Draw data above their reconstructions by one or several runs.",
        "runs/a runs/b",
        several=True,
    )
    add_split(parser)
    parser.add_argument("--count", type=positive, default=10, metavar="N", help="how many data (default: 10)")
    args = parser.parse_args(argv)
    args.run = list(dict.fromkeys(map(Path, args.run)))
    loaded = [load_with_data(run, args.checkpoint) for run in args.run]
    splits = [data.evaluation_split(args.split, args.count) for _, data in loaded]
    for run, split in zip(args.run[1:], splits[1:], strict=True):
        if split.x.shape != splits[0].x.shape or not split.x.equal(splits[0].x):
            raise UsageError(f"{run}: was trained on other data than {args.run[0]}; draw them separately")
    _print_files(draw_reconstructions([run for run, _ in loaded], splits[0], args.split, args.count, args.out))


@command
def main_samples(argv: Sequence[str] | None = None) -> None:
    """plot_samples.py."""
    parser = _parser("plot_samples", "Draw the decoder's means at draws of z from the prior.", "runs/digits_d2")
    parser.add_argument("--count", type=positive, default=100, metavar="N", help="how many draws (default: 100)")
    parser.add_argument("--seed", type=natural, default=0, help="of the draws (default: 0)")
    args = parser.parse_args(argv)
    _print_files(draw_samples(load_on_device(args.run, args.checkpoint), args.count, args.seed, args.out))


@command
def main_manifold(argv: Sequence[str] | None = None) -> None:
    """plot_manifold.py."""
    parser = _parser(
        "plot_manifold",
        "Draw the decoder's means over the plane of two latents, on equally spaced z and on quantiles of the prior.",
        "runs/digits_d2 --range 3",
    )
    parser.add_argument("--count", type=positive, default=20, metavar="N", help="images per side (default: 20)")
    parser.add_argument(
        "--range", type=_positive_number, default=4.0, metavar="R", help="of each latent, from -R to R (default: 4)"
    )
    args = parser.parse_args(argv)
    _print_files(draw_manifold(load_on_device(args.run, args.checkpoint), args.count, args.range, args.out))


@command
def main_tsne(argv: Sequence[str] | None = None) -> None:
    """plot_tsne.py."""
    parser = _parser(
        "plot_tsne",
        "Draw the codes of a split by class: as they are for up to two latents, by t-SNE for more.",
        "runs/digits_d2",
    )
    add_split(parser)
    add_limit(parser)
    parser.add_argument("--sample", action="store_true", help="a sample from each posterior instead of its mean")
    parser.add_argument(
        "--perplexity", type=_positive_number, default=PERPLEXITY, metavar="P", help=f"of t-SNE (default: {PERPLEXITY})"
    )
    parser.add_argument("--seed", type=natural, default=0, help="of t-SNE (default: 0)")
    args = parser.parse_args(argv)
    run, data = load_with_data(args.run, args.checkpoint)
    split = data.evaluation_split(args.split, args.limit)
    how = {"sampled": args.sample, "perplexity": args.perplexity, "seed": args.seed}
    _print_files(draw_codes(run, data, split, args.split, args.out, **how))


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number greater than 0")
    return value
