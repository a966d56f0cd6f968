"""The figures of runs, drawn from their models, data and metrics into their directories, as PNG and PDF.

`out` is another directory to write to, or None. UsageError if a figure does not suit the run or cannot be written.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy.special import ndtri
from torch import Tensor

from vae.data import Data, Split
from vae.errors import UsageError
from vae.evaluation import evaluate_bound, evaluate_regression, posterior_codes
from vae.evaluation.aggregate import AggregatePosterior
from vae.evaluation.regression import NETWORKS
from vae.figures.codes import codes, tsne
from vae.figures.curves import curves
from vae.figures.images import in_rows, labelled, manifold, reconstructions, samples, samples_of
from vae.figures.regression import calibration
from vae.figures.style import Array, save
from vae.models import Predictive, Regression
from vae.training import read_settings
from vae.training.loading import LoadedRun
from vae.training.run_directory import FIGURES, history, open_config


def suitable_figures(run: LoadedRun, data: Data) -> dict[str, Callable[[], list[Path]]]:
    """The figures that suit a run: their names, and functions that draw them."""
    model, split = run.model, data.evaluation_split("test")
    if isinstance(model, Regression):
        return {"curves": lambda: draw_curves([run.path]), "prediction": lambda: draw_prediction(run, data)}
    figures = {
        "curves": lambda: draw_curves([run.path]),
        "reconstructions": lambda: draw_reconstructions([run], split.first(10), "test"),
        "samples": lambda: draw_samples(run, 100, 0),
    }
    if model.latent_dim <= 2 and len(model.data_shape) == 3 and not model.classes:
        figures["manifold"] = lambda: draw_manifold(run, 20, 4.0)
    if model.latent_dim <= 2:
        figures["codes"] = lambda: draw_codes(run, data, split, "test")
    elif len(split) > 3 and len(posterior_codes(model, split.first(100), name="test").unique(dim=0)) > 1:
        # Else all codes are equal. t-SNE of more data could take longer than training; plot_tsne.py takes all data.
        figures["tsne"] = lambda: draw_codes(run, data, split.first(2000), "test")
    return figures


def draw_curves(runs: Sequence[Path], out: str | None = None) -> list[Path]:
    """Training and test curves of one or several runs."""
    runs = list(dict.fromkeys(runs))  # a run that is given twice is drawn once
    histories, densities = dict[str, list[dict[str, Any]]](), set[bool]()
    for name, run in zip(_names(runs), runs, strict=True):
        likelihood = getattr(read_settings(open_config(run), where=run).model, "likelihood", None)
        density = likelihood is None or likelihood.name != "grey_cross_entropy"
        densities.add(density)
        lines = histories[name if density else f"{name} (no density)"] = history(run)
        if not lines:
            raise UsageError(f"{run}: has no metrics yet; its first epoch is not over")
    if len(densities) == 2:
        print("grey cross-entropy (no density) and densities are not comparable: see the labels", file=sys.stderr)
    return _save(curves(histories), runs[0], "curves", out)


def _names(runs: Sequence[Path]) -> list[str]:
    """The last parts of the paths, or the whole path if two share that part."""
    short = [run.resolve().name for run in runs]
    return [name if short.count(name) == 1 else str(run) for name, run in zip(short, runs, strict=True)]


def _save(figure: Figure, run: Path, name: str, out: str | None) -> list[Path]:
    assert name in FIGURES, f"--overwrite would leave {name}"
    return save(figure, Path(out or run / "figures") / name)


def draw_reconstructions(
    runs: Sequence[LoadedRun], split: Split, split_name: str, out: str | None = None
) -> list[Path]:
    """Data above their reconstructions by each run."""
    x, by_run = split.images(), dict[str, Array]()
    for name, run in zip(_names([run.path for run in runs]), runs, strict=True):
        given = run.model.with_labels(split.labels)
        by_run[f"{name}\n(d = {given.latent_dim})"] = _array(given.reconstruct(x), given)
    title = f"The first {len(split)} {split_name} data, and the decoder's means at their posterior means{_unit(given)}"
    figure = reconstructions(_array(x, given), by_run, title, runs[0].data_range, runs[0].columns)
    return _save(figure, runs[0].path, "reconstructions", out)


def _array(images: Tensor, model: Any = None) -> Array:
    """As an array; of a model of tables, whose likelihood is standardised, in standard deviations from the mean."""
    if model is not None and _unit(model):
        images = (images - model.likelihood_head.location) / model.likelihood_head.scale
    return images.detach().cpu().double().numpy()


def _unit(model: Any) -> str:
    """What a title says of the values that are drawn."""
    standardised = getattr(model.likelihood_head, "standardise", False) and len(model.data_shape) == 1
    return ", in standard deviations of the training data" if standardised else ""


def draw_samples(run: LoadedRun, count: int, seed: int, out: str | None = None) -> list[Path]:
    """The decoder's means at draws from the prior; of a conditional model, for each label at the same ten draws."""
    model = run.model
    if model.classes and model.label is None:
        labels = range(min(model.classes, 20))
        rows = {run.name_of(y): _array(model.given(y).sample(10, seed=seed), model) for y in labels}
        title = f"{run.path.name}: decoder means by label at 10 draws of z from the prior (seed {seed}){_unit(model)}"
        return _save(in_rows(rows, title, run.data_range, run.columns), run.path, "samples", out)
    title = f"{run.path.name}: decoder means at {count} draws of z from the prior (seed {seed}){_unit(model)}"
    figure = samples(_array(model.sample(count, seed=seed), model), title, run.data_range, run.columns)
    return _save(figure, run.path, "samples", out)


def draw_aggregate(run: LoadedRun, fitted: AggregatePosterior, count: int, seed: int, out: str | None) -> list[Path]:
    """The decoder's means at draws from the prior, and at draws from a mixture fitted to the codes."""
    model = run.model
    if model.classes and model.label is None:
        model = model.given(model.drawn_labels(count, seed))
    name = f"mixture of {fitted.mixture.n_components} Gaussians fitted to the codes"
    drawn = {"prior N(0, I)": model.sample(count, seed=seed), name: model.decode(fitted.sample(count, seed))}
    title = f"{run.path.name}: decoder means at {count} draws of z (seed {seed}){_unit(model)}"
    figure = samples_of({name: _array(images, model) for name, images in drawn.items()}, title, run.data_range)
    return _save(figure, run.path, "samples_aggregate", out)


def draw_strangest(run: LoadedRun, x: Tensor, words: Sequence[str], title: str, out: str | None = None) -> list[Path]:
    """Data, each with its words above."""
    return _save(labelled(_array(x), words, f"{run.path.name}: {title}", run.data_range), run.path, "strangest", out)


def draw_traversals(
    run: LoadedRun, data: Data, split: Split, index: int, count: int, limit: float, out: str | None = None
) -> list[Path]:
    """The decoder's means as one latent at a time goes from -limit to limit, the others as in the code of a datum; the
    latents of most KL on the split. UsageError if the KL is not a sum over latents."""
    kl = evaluate_bound(run.model, split, name="test").kl_per_dimension
    if kl is None:
        raise UsageError(
            f"{run.path}: its posterior couples the latents, which have no KL of their own to be ordered by"
        )
    datum = data.evaluation_split("test").part(slice(index, index + 1))
    model = run.model.with_labels(datum.labels)
    code, steps = model.encode(datum.images()), torch.linspace(-1, 1, 11)
    rows = {}
    for j in kl.argsort(descending=True)[:count].tolist():
        z = code.repeat(len(steps), 1)
        z[:, j] = limit * steps
        rows[f"z{j + 1}, {kl[j]:.2f}"] = _array(model.decode(z), model)
    title = (
        f"{run.path.name}: one latent (and its KL, nats) from {-limit:g} to {limit:g}, the others of test datum {index}"
        f"{_unit(model)}"
    )
    return _save(in_rows(rows, title, run.data_range, run.columns), run.path, "traversals", out)


def draw_interpolation(
    run: LoadedRun, data: Data, pairs: Sequence[tuple[int, int]], out: str | None = None
) -> list[Path]:
    """The decoder's means on straight lines between the codes of pairs of test data, whose places are given; of a
    conditional model, with the label of the first."""
    split, share = data.evaluation_split("test"), torch.linspace(0, 1, 11)[:, None]
    rows = {}
    for first, last in pairs:
        start, end = (
            run.model.with_labels(datum.labels).encode(datum.images())
            for datum in (split.part(slice(i, i + 1)) for i in (first, last))
        )
        model = run.model.with_labels(split.part(slice(first, first + 1)).labels)
        rows[f"{first} to {last}"] = _array(model.decode((1 - share) * start + share * end), model)
    title = f"{run.path.name}: between two test data{_unit(run.model)}"
    return _save(in_rows(rows, title, run.data_range, run.columns), run.path, "interpolation", out)


def draw_manifold(run: LoadedRun, count: int, limit: float, out: str | None = None) -> list[Path]:
    """The decoder's means over the latent plane, or line: equally spaced z, and quantiles of the prior."""
    shape, latents = run.model.data_shape, run.model.latent_dim
    if len(shape) != 3 or latents > 2:
        raise UsageError(
            f"{run.path}: a manifold is of images over one or two latents, and this model is of shape {shape} over "
            f"{latents}; use plot_samples.py or plot_tsne.py"
        )
    if run.model.classes and run.model.label is None:
        raise UsageError(f"{run.path}: the model is conditional on labels, and has a manifold for each: give --label")
    name, places = run.path.name, (np.arange(count) + 0.5) / count
    grids = {
        "manifold": (np.linspace(-limit, limit, count), f"{name}: decoder means, z equally spaced", None),
        "manifold_quantiles": (ndtri(places), f"{name}: decoder means, z at the quantiles of the prior", places),
    }
    files = []
    for stem, (grid, title, quantiles) in grids.items():
        axes = (grid, grid[::-1])[:latents]  # row by row from the top, where z_2 is largest
        z = np.stack(np.meshgrid(*axes), -1).reshape(-1, latents)
        images = _array(run.model.decode(torch.from_numpy(z)))
        files += _save(manifold(images, grid, title, run.data_range, quantiles), run.path, stem, out)
    return files


def draw_prediction(run: LoadedRun, data: Data, out: str | None = None) -> list[Path]:
    """What a regression predicts beside the test data, and whether its intervals hold."""
    model, split = run.model, data.evaluation_split("test")
    columns, y = evaluate_regression(model, split, name="test"), _array(model.as_targets(split.y))
    x, predicted = split.images(), Predictive.of(model, split.images(), NETWORKS, 0)
    line, seen = None, (_array(predicted.mean[:, 0]), y[:, 0])
    if model.data_shape == (1,):
        grid = torch.linspace(x.min().item(), x.max().item(), 400)[:, None]
        on_grid = Predictive.of(model, grid, NETWORKS, 0)
        lower, upper = on_grid.quantile([0.05, 0.95])[..., 0]
        curves = {"mean": _array(on_grid.mean[:, 0]), "lower": _array(lower), "upper": _array(upper)}
        line, seen = (_array(grid[:, 0]), curves), (_array(x[:, 0]), y[:, 0])
    title = f"{run.path.name}: {len(split)} test data" + (", target 0" if model.targets > 1 else "")
    return _save(calibration(_array(columns["pit"][:, 0]), title, line, seen), run.path, "prediction", out)


def draw_codes(
    run: LoadedRun,
    data: Data,
    split: Split,
    split_name: str,
    out: str | None = None,
    *,
    sampled: bool = False,
    perplexity: float = 50,
    seed: int = 0,
) -> list[Path]:
    """The codes of a split by class: as they are for up to two latents, by t-SNE for more."""
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
    labels = None if split.labels is None else split.labels.numpy()
    return _save(codes(z, labels, data.classes, axes, title), run.path, stem, out)
