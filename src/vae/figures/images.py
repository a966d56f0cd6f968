"""Pictures of data: originals beside reconstructions, samples of the prior, the latent manifold."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vae.figures.style import figure, verbatim

Array = NDArray[np.floating]


def tile(images: Array, columns: int, gap: int = 1) -> Array:  # (N, C, H, W) -> (rows, columns, C)
    """Many images as one, row by row, with gaps of the brightest value; vectors (N, D) become strips one pixel high."""
    if images.ndim == 2:
        images = images[:, None, None, :]
    n, channels, height, width = images.shape
    if channels not in (1, 3):  # no picture has that many channels: show their mean
        images, channels = images.mean(1, keepdims=True), 1
    rows = -(-n // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), np.nan)
    for i, image in enumerate(images):
        top, left = (i // columns) * (height + gap), (i % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return sheet


def _show(axes: Axes, sheet: Array, low: float, high: float) -> None:
    """Draw a sheet of images; what is NaN (gaps) is left white."""
    scaled = np.clip((sheet - low) / ((high - low) or 1.0), 0, 1)
    colours = np.repeat(scaled, 3, axis=2) if sheet.shape[2] == 1 else scaled
    opaque = np.isfinite(colours).all(2, keepdims=True).astype(float)
    axes.imshow(np.concatenate([np.nan_to_num(colours, nan=1.0), opaque], 2), interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)


def _range(*images: Array) -> tuple[float, float]:
    """[0, 1] where the values lie there, else their own range."""
    low, high = min(float(i.min()) for i in images), max(float(i.max()) for i in images)
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def reconstructions(originals: Array, by_run: Mapping[str, Array], title: str) -> Figure:
    """A row of originals over a row a run of the decoder's means at the posterior means."""
    rows = {"original": originals, **by_run}
    columns = len(originals)
    low, high = _range(originals)
    height, width = (1, originals.shape[-1]) if originals.ndim == 2 else originals.shape[-2:]
    cell = 0.8 if originals.ndim > 2 else 2.0
    made = figure(1.8 + cell * columns, 0.5 + len(rows) * max(0.3, cell * height / width + 0.06))
    panels = np.atleast_1d(made.subplots(len(rows), 1))
    for axes, (name, images) in zip(panels, rows.items(), strict=True):
        _show(axes, tile(images, columns), low, high)
        axes.set_ylabel(verbatim(name), rotation=0, ha="right", va="center", fontsize=9)
    made.suptitle(verbatim(title), fontsize=10)
    return made


def samples(images: Array, title: str) -> Figure:
    """A square of the decoder's means at draws from the prior."""
    columns = int(np.ceil(np.sqrt(len(images))))
    sheet = tile(images, columns)
    made = figure(6, 0.4 + max(1.0, 6 * sheet.shape[0] / sheet.shape[1]))
    _show(made.subplots(), sheet, *_range(images))
    made.suptitle(verbatim(title), fontsize=10)
    return made


def manifold(images: Array, grid: Array, title: str) -> Figure:
    """The decoder's means on a square grid of z: `images` row by row from the top, `grid` the n values of both axes.

    The horizontal axis is z_1; the vertical is z_2, which grows upwards.
    """
    n = len(grid)
    sheet = tile(images, n, gap=1 if images.shape[-1] < 16 else 0)  # tiny ones fill their frame
    made = figure(7, 0.2 + 6.5 * sheet.shape[0] / sheet.shape[1])
    axes = made.subplots()
    _show(axes, sheet, *_range(images))
    shown = np.arange(0, n, -(-n // 10))
    width, height = sheet.shape[1] / n, sheet.shape[0] / n
    axes.set_xticks((shown + 0.5) * width - 0.5, [f"{grid[i]:.1f}" for i in shown])
    axes.set_yticks((n - shown - 0.5) * height - 0.5, [f"{grid[i]:.1f}" for i in shown])
    axes.set_xlabel("$z_1$")
    axes.set_ylabel("$z_2$")
    made.suptitle(verbatim(title), fontsize=10)
    return made
