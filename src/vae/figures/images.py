"""Pictures of data: originals and reconstructions, samples of the prior, the latent manifold."""

from collections.abc import Mapping
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vae.figures.style import LINES, figure, quiet, verbatim

Array = NDArray[np.floating]
Limits = tuple[float, float]  # the values drawn black and white


def tile(images: Array, columns: int, gap: int = 1) -> Array:  # (N, C, H, W) -> (rows, columns, C)
    """Many images as one, row by row; the gaps between them are NaN."""
    n, channels, height, width = images.shape
    if channels not in (1, 3):  # neither grey nor colour: show the mean of the channels
        images, channels = images.mean(1, keepdims=True), 1
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.nan)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet


def _show(axes: Axes, sheet: Array, low: float, high: float) -> None:
    """Draw a sheet of images; NaN (gaps) is left white."""
    scaled = np.clip((sheet - low) / ((high - low) or 1.0), 0, 1)
    colours = np.repeat(scaled, 3, axis=2) if sheet.shape[2] == 1 else scaled
    opaque = np.isfinite(colours).all(2, keepdims=True).astype(float)
    axes.imshow(np.concatenate([np.nan_to_num(colours, nan=1.0), opaque], 2), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _limits(limits: Limits | None, *images: Array) -> Limits:
    """The values that are drawn black and white: those given, else [0, 1] or what the images span."""
    if limits is not None:
        return limits
    low, high = min(float(i.min()) for i in images), max(float(i.max()) for i in images)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def reconstructions(originals: Array, by_run: Mapping[str, Array], title: str, limits: Limits | None = None) -> Figure:
    """A row of originals, then one per run of the decoder's means at the posterior means; vectors as lines."""
    rows = {"original": originals, **by_run}
    if originals.ndim == 2:
        return _lines(rows, title)
    columns = len(originals)
    low, high = _limits(limits, originals)
    cell = min(0.8, 16 / columns)
    made = figure(
        1.8 + cell * columns, 0.5 + len(rows) * max(0.3, cell * originals.shape[-2] / originals.shape[-1] + 0.06)
    )
    panels = np.atleast_1d(made.subplots(len(rows), 1))
    for axes, (name, images) in zip(panels, rows.items(), strict=True):
        _show(axes, tile(images, columns), low, high)
        axes.set_ylabel(verbatim(name), rotation=0, ha="right", va="center", fontsize=9)
    made.suptitle(verbatim(title), fontsize=10)
    return made


def _lines(rows: Mapping[str, Array], title: str) -> Figure:
    """Vectors: one panel per datum, one line per row, against the index of the element."""
    count = len(next(iter(rows.values())))
    columns = min(5, count)
    panels_high = -(-count // columns)
    made = figure(0.6 + 2.4 * columns, 0.9 + 1.6 * panels_high)
    panels = np.atleast_1d(made.subplots(panels_high, columns, sharex=True, sharey=True)).ravel()
    for i, axes in enumerate(panels):
        quiet(axes)
        for colour, (name, values) in zip(cycle((LINES[6], *LINES[:6])), rows.items(), strict=False):
            if i < count:
                axes.plot(np.arange(values.shape[1]), values[i], color=colour, linewidth=1, label=verbatim(name))
    panels[0].legend(fontsize=7, frameon=False)
    made.supxlabel("index of the element", fontsize=9)
    made.supylabel("value", fontsize=9)
    made.suptitle(verbatim(title), fontsize=10)
    return made


def samples(images: Array, title: str, limits: Limits | None = None) -> Figure:
    """A square of the decoder's means at draws from the prior; vectors as overlaid lines."""
    if images.ndim == 2:
        made = figure(6, 4)
        axes = made.subplots()
        axes.plot(images.T, color=LINES[0], alpha=0.3, linewidth=0.8)
        axes.set_xlabel("index of the element")
        axes.set_ylabel("value")
        quiet(axes)
    else:
        columns = int(np.ceil(np.sqrt(len(images))))
        sheet = tile(images, columns)
        made = figure(6, 0.4 + max(1.0, 6 * sheet.shape[0] / sheet.shape[1]))
        _show(made.subplots(), sheet, *_limits(limits, images))
    made.suptitle(verbatim(title), fontsize=10)
    return made


def manifold(
    images: Array, grid: Array, title: str, limits: Limits | None = None, quantiles: Array | None = None
) -> Figure:
    """The decoder's means on a square grid of z: `images` row by row from the top, `grid` the n values of both axes.

    The horizontal axis is z_1; the vertical is z_2, which grows upwards. If the grid holds quantiles of the prior,
    `quantiles` are their positions on the unit interval, and the axes show both.
    """
    n = len(grid)
    low, high = _limits(limits, images)
    edge = np.concatenate([images[..., 0, :].ravel(), images[..., -1, :].ravel(), images[..., 0].ravel()])
    dark = edge.mean() < low + 0.1 * (high - low)
    height, width = images.shape[-2:]
    gap = 0 if dark and width >= 16 else 1  # images that would run together need one
    sheet = tile(images, n, gap)
    made = figure(7, 0.2 + 6.5 * sheet.shape[0] / sheet.shape[1])
    axes = made.subplots()
    _show(axes, sheet, low, high)
    if quantiles is None:
        ticks = MaxNLocator(8).tick_values(grid[0], grid[-1])
        ticks = ticks[(ticks >= grid[0] - 1e-9) & (ticks <= grid[-1] + 1e-9)]
        places, labels, names = np.interp(ticks, grid, np.arange(n)), [f"{t:g}" for t in ticks], ("$z_1$", "$z_2$")
    else:
        shown = np.arange(n // 10, n, max(1, n // 5))
        places, labels = shown.astype(float), [f"{quantiles[i]:.2f}\n({grid[i]:.1f})" for i in shown]
        names = ("quantile of the prior ($z_1$)", "quantile of the prior ($z_2$)")
    axes.set_xticks(places * (width + gap) + (width - 1) / 2, labels)
    axes.set_yticks((n - 1 - places) * (height + gap) + (height - 1) / 2, labels)
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    made.suptitle(verbatim(title), fontsize=10)
    return made
