"""Pictures of data: originals and reconstructions, samples of the prior, the latent manifold."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae.figures.style import LINES, Array, figure, quiet, verbatim

Limits = tuple[float, float]  # the values drawn black and white; by default [0, 1], wider if the images are


def tile(images: Array, columns: int, gap: int = 1) -> Array:  # (N, C, H, W) -> (rows, columns, C)
    """Many images as one, row by row; the gaps between them are NaN."""
    n, channels, height, width = images.shape
    if channels not in (1, 3):  # neither grey nor colour: show the mean of the channels
        images, channels = images.mean(1, keepdims=True), 1
    rows = -(-n // columns)
    sheet = np.full((rows, height + gap, columns, width + gap, channels), np.nan)
    for i, image in enumerate(images):
        sheet[i // columns, :height, i % columns, :width] = image.transpose(1, 2, 0)
    sheet = sheet.reshape(rows * (height + gap), columns * (width + gap), channels)
    return sheet[: len(sheet) - gap, : sheet.shape[1] - gap]


def _show(axes: Axes, sheet: Array, limits: Limits) -> None:
    """Draw a sheet of images; NaN (gaps) is white."""
    low, high = limits
    scaled = np.nan_to_num(np.clip((sheet - low) / ((high - low) or 1.0), 0, 1), nan=1.0)
    axes.imshow(np.broadcast_to(scaled, (*sheet.shape[:2], 3)), interpolation="nearest")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)


def _limits(images: Array) -> Limits:
    return min(0.0, float(images.min())), max(1.0, float(images.max()))


def reconstructions(originals: Array, by_run: Mapping[str, Array], title: str, *more: Any) -> Figure:
    """A row of originals, then one per run of the decoder's means at the posterior means; vectors as lines."""
    return in_rows({"original": originals, **by_run}, title, *more)


def in_rows(rows: Mapping[str, Array], title: str, limits: Limits | None = None, columns: Sequence[str] = ()) -> Figure:
    """Rows of as many data each, under their names; vectors as lines."""
    first = next(iter(rows.values()))
    if first.ndim == 2:
        return _lines(rows, title, columns)
    across, height, width = len(first), *first.shape[-2:]
    cell = min(0.8, 16 / across)
    made = figure(1.8 + cell * across, 0.5 + len(rows) * max(0.3, cell * height / width + 0.06), title)
    panels = made.subplots(len(rows), 1, squeeze=False).flat
    for axes, (name, images) in zip(panels, rows.items(), strict=True):
        _show(axes, tile(images, across), limits or _limits(first))
        axes.set_ylabel(verbatim(name), rotation=0, ha="right", va="center", fontsize=9)
    return made


def _lines(rows: Mapping[str, Array], title: str, columns: Sequence[str]) -> Figure:
    """Vectors: one panel per datum, one line per row, against the element."""
    count = len(next(iter(rows.values())))
    across, panels_high = min(5, count), -(-count // 5)
    made = figure(0.6 + 2.4 * across, 0.9 + 1.6 * panels_high, title)
    panels = made.subplots(panels_high, across, sharex=True, sharey=True, squeeze=False).flat
    for i, axes in enumerate(panels):
        quiet(axes)
        axes.set_visible(i < count)
        for colour, (name, values) in zip(cycle((LINES[6], *LINES[:6])), rows.items(), strict=False):
            if i < count:
                axes.plot(values[i], color=colour, linewidth=1, label=verbatim(name))
        _name_elements(axes, columns)
    panels[0].legend(fontsize=7, frameon=False)
    made.supxlabel("index of the element", fontsize=9)
    made.supylabel("value", fontsize=9)
    return made


def _name_elements(axes: Axes, columns: Sequence[str]) -> None:
    """The names of the elements of a vector below it, if there are not too many."""
    if 0 < len(columns) <= 40:
        axes.set_xticks(range(len(columns)), [verbatim(name) for name in columns], rotation=90, fontsize=6)


def samples(images: Array, title: str, limits: Limits | None = None, columns: Sequence[str] = ()) -> Figure:
    """A square of the decoder's means at draws from the prior; vectors as overlaid lines."""
    if images.ndim == 2:
        made = figure(6, 4, title)
        axes = made.subplots()
        axes.plot(images.T, color=LINES[0], alpha=0.3, linewidth=0.8)
        quiet(axes, xlabel="index of the element", ylabel="value")
        _name_elements(axes, columns)
        return made
    sheet = tile(images, int(np.ceil(np.sqrt(len(images)))))
    made = figure(6, 0.4 + max(1.0, 6 * sheet.shape[0] / sheet.shape[1]), title)
    _show(made.subplots(), sheet, limits or _limits(images))
    return made


def samples_of(images: Mapping[str, Array], title: str, limits: Limits | None = None) -> Figure:
    """Squares of pictures beside each other, under their names; vectors as overlaid lines."""
    made = figure(1 + 5 * len(images), 5.6, title)
    panels = made.subplots(1, len(images), sharex=True, sharey=True)
    for axes, (name, drawn) in zip(panels, images.items(), strict=True):
        if drawn.ndim == 2:
            axes.plot(drawn.T, color=LINES[0], alpha=0.3, linewidth=0.8)
            quiet(axes, xlabel="index of the element")
        else:
            _show(axes, tile(drawn, int(np.ceil(np.sqrt(len(drawn))))), limits or _limits(drawn))
        axes.set_title(verbatim(name), fontsize=9)
    return made


def labelled(images: Array, words: Sequence[str], title: str, limits: Limits | None = None) -> Figure:
    """Data with words above each, ten in a row; vectors as lines."""
    rows = -(-len(images) // 10)
    made = figure(12, 0.4 + 1.45 * rows, title)
    panels = made.subplots(rows, 10, squeeze=False).flat
    for axes in panels:
        axes.set_axis_off()
    for axes, image, text in zip(made.axes, images, words, strict=False):
        axes.set_title(verbatim(text), fontsize=7)
        if images.ndim == 2:
            axes.plot(image, color=LINES[0], linewidth=0.8)
        else:
            _show(axes, tile(image[None], 1), limits or _limits(images))
    return made


def manifold(
    images: Array, grid: Array, title: str, limits: Limits | None = None, quantiles: Array | None = None
) -> Figure:
    """The decoder's means on a grid of z: `images` row by row from the top, `grid` the n values of the axes.

    The horizontal axis is z_1; the vertical, unless there is a single row, is z_2 and grows upwards. If the grid holds
    quantiles of the prior, `quantiles` are their positions on the unit interval, and the axes show both.
    """
    n, height, width = len(grid), *images.shape[-2:]
    low, high = limits = limits or _limits(images)
    edge = np.concatenate([images[..., 0, :].ravel(), images[..., -1, :].ravel(), images[..., 0].ravel()])
    dark = edge.mean() < low + 0.1 * (high - low)
    gap = 0 if dark and width >= 16 else 1  # images that would run together need one
    sheet = tile(images, n, gap)
    made = figure(7, (0.2 if len(images) > n else 1.2) + 6.5 * sheet.shape[0] / sheet.shape[1], title)
    axes = made.subplots()
    _show(axes, sheet, limits)
    if quantiles is None:
        ticks = MaxNLocator(8).tick_values(grid[0], grid[-1])
        ticks = ticks[(ticks >= grid[0] - 1e-9) & (ticks <= grid[-1] + 1e-9)]
        places, labels, name = np.interp(ticks, grid, np.arange(n)), [f"{t:g}" for t in ticks], "{}"
    else:
        shown = np.arange(n // 10, n, max(1, n // 5))
        places, labels = shown.astype(float), [f"{quantiles[i]:.2f}\n({grid[i]:.1f})" for i in shown]
        name = "quantile of the prior ({})"
    axes.set_xticks(places * (width + gap) + (width - 1) / 2, labels)
    axes.set_xlabel(name.format("$z_1$"))
    if len(images) > n:
        axes.set_yticks((n - 1 - places) * (height + gap) + (height - 1) / 2, labels)
        axes.set_ylabel(name.format("$z_2$"))
    return made
