"""Codes of data in a plane, coloured by class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vae.figures.style import CLASSES, figure, quiet, verbatim

Array = NDArray[np.floating]


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
    made = figure(6.4, 6)
    axes = made.subplots()
    groups = (
        {None: np.ones(len(points), bool)} if labels is None else {k: labels == k for k in np.unique(labels).tolist()}
    )
    colours = {k: CLASSES[(k or 0) % len(CLASSES)] for k in groups}  # a class keeps its colour if others are missing
    names = {k: verbatim(classes[k] if k is not None and 0 <= k < len(classes) else str(k)) for k in groups}
    if points.shape[1] == 1:
        values = [points[rows, 0] for rows in groups.values()]
        axes.hist(values, bins=60, stacked=True, color=list(colours.values()), label=list(names.values()))
        axes.set_ylabel("number of data")
        if labels is not None:
            axes.legend(fontsize=8, frameon=False)
    else:
        # All classes in one scatter and in the order of the data, so that no class lies on top of the others.
        of_point = np.empty(len(points), dtype=object)
        for k, rows in groups.items():
            of_point[rows] = colours[k]
        size = float(np.clip(20000 / len(points), 3, 25))
        axes.scatter(points[:, 0], points[:, 1], c=list(of_point), s=size, linewidths=0, alpha=0.7, rasterized=True)
        for k, rows in groups.items():
            if k is not None:
                x, y = _centre(points[rows])
                box = {"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": colours[k], "alpha": 0.9}
                axes.text(x, y, names[k], fontsize=10, weight="bold", ha="center", va="center", bbox=box)
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_ylabel(axes_names[1])
    axes.set_xlabel(axes_names[0])
    quiet(axes)
    made.suptitle(verbatim(title), fontsize=10)
    return made


def _centre(points: Array) -> Array:
    """The point of a class that has most of the class near it, where its name is written."""
    some = points[:: max(1, len(points) // 500)]
    distance = np.sqrt(((some[:, None] - some[None]) ** 2).sum(-1))  # (n, n)
    return some[np.sort(distance, 1)[:, : max(2, len(some) // 4)].mean(1).argmin()]
