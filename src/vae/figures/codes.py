"""Codes of data in a plane, coloured by class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vae.figures.style import CLASSES, Array, figure, quiet, verbatim


def tsne(codes: Array, perplexity: float, seed: int) -> Array:  # (N, J) -> (N, 2)
    """t-SNE (van der Maaten & Hinton 2008) by scikit-learn, from the principal plane."""
    from sklearn.manifold import TSNE

    return TSNE(n_components=2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(codes)


def codes(
    points: Array,  # (N, 2), or (N, 1)
    labels: NDArray[np.integer] | None,
    classes: Sequence[str],
    axes_names: tuple[str, str],
    title: str,
) -> Figure:
    """Points in a plane, one colour per class, with the class names; one dimension is drawn as histograms."""
    made = figure(6.4, 6, title)
    axes = made.subplots()
    of_point = np.zeros(len(points), int) if labels is None else labels
    present = np.unique(of_point).tolist()
    colours = {k: CLASSES[k % len(CLASSES)] for k in present}  # a class keeps its colour if others are missing
    names = {k: verbatim(dict(enumerate(classes)).get(k, str(k))) for k in present}
    if points.shape[1] == 1:
        values = [points[of_point == k, 0] for k in present]
        axes.hist(values, bins=60, stacked=True, color=list(colours.values()), label=list(names.values()))
        quiet(axes, xlabel=axes_names[0], ylabel="number of data")
        if labels is not None:
            axes.legend(fontsize=8, frameon=False)
        return made
    # All classes in one scatter and in the order of the data, so that no class lies on top of the others.
    size, shade = float(np.clip(20000 / len(points), 3, 25)), [colours[k] for k in of_point.tolist()]
    axes.scatter(points[:, 0], points[:, 1], c=shade, s=size, linewidths=0, alpha=0.7, rasterized=True)
    for k in present if labels is not None else []:
        x, y = _centre(points[of_point == k])
        box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colours[k], "alpha": 0.9}
        axes.text(x, y, names[k], fontsize=10, weight="bold", ha="center", va="center", bbox=box)
    axes.set_aspect("equal", adjustable="datalim")
    quiet(axes, xlabel=axes_names[0], ylabel=axes_names[1])
    return made


def _centre(points: Array) -> Array:
    """The point of a class that has most of the class near it, where its name is written."""
    some = points[:: max(1, len(points) // 500)]
    distance = np.linalg.norm(some[:, None] - some[None], axis=-1)  # (n, n)
    return some[np.sort(distance, 1)[:, : max(2, len(some) // 4)].mean(1).argmin()]
