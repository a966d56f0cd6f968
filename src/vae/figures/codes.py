"""Codes of data in a plane, coloured by class."""

from collections.abc import Sequence

import numpy as np
from matplotlib import patheffects
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
    """Points in a plane, a colour a class, its name at the class's median; one dimension is drawn as histograms."""
    made = figure(6.4, 6)
    axes = made.subplots()
    groups = {"": np.ones(len(points), bool)} if labels is None else _groups(labels, classes)
    colours = [CLASSES[i % len(CLASSES)] for i in range(len(groups))]
    if points.shape[1] == 1:
        values = [points[rows, 0] for rows in groups.values()]
        axes.hist(values, bins=60, stacked=True, color=colours, label=list(groups))
        axes.set_ylabel("data")
        if labels is not None:
            axes.legend(fontsize=8, frameon=False)
    else:
        # All classes in one scatter and in the order of the data, so that no class lies on top of the others.
        of_point = np.empty(len(points), dtype=object)
        for colour, rows in zip(colours, groups.values(), strict=True):
            of_point[rows] = colour
        size = float(np.clip(20000 / len(points), 3, 25))
        axes.scatter(points[:, 0], points[:, 1], c=list(of_point), s=size, linewidths=0, alpha=0.7, rasterized=True)
        outline: list[patheffects.AbstractPathEffect] = [patheffects.withStroke(linewidth=3, foreground="white")]
        for (name, rows), colour in zip(groups.items(), colours, strict=True):
            x, y = np.median(points[rows], 0)
            text = axes.text(x, y, name, color=colour, fontsize=13, weight="bold", ha="center", va="center")
            text.set_path_effects(outline)
        axes.set_ylabel(axes_names[1])
    axes.set_xlabel(axes_names[0])
    quiet(axes)
    made.suptitle(verbatim(title), fontsize=10)
    return made


def _groups(labels: NDArray[np.integer], classes: Sequence[str]) -> dict[str, NDArray[np.bool_]]:
    """The rows of each class under its name."""
    return {verbatim(classes[k] if 0 <= k < len(classes) else str(k)): labels == k for k in np.unique(labels).tolist()}
