"""The kinds of pictures that the documents have, with their axes, order and colours."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtri
from torch import Tensor

from vae.figures.style import figure

Array = NDArray[np.generic]
QUANTILES = ndtri((np.arange(20) + 0.5) / 20)  # of the prior, evenly spaced on the unit interval


def as_bytes(images: Tensor) -> Array:  # (N, C, H, W) in [0, 1] -> (N, H, W, C), uint8
    """Pictures as they are kept in a record."""
    pixels = (images.detach().double().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))


def sharpness(x: Tensor) -> Tensor:  # (N, C, H, W) -> (N,)
    """The total variation: the mean absolute difference of neighbouring pixels."""
    return (x.diff(dim=-1).abs().flatten(1).mean(1) + x.diff(dim=-2).abs().flatten(1).mean(1)).double()


def columns(pictures: Sequence[Array], titles: Sequence[str], black_on_white: bool) -> Figure:
    """Data in the first column, their reconstructions in the others; each (N, H, W, C), uint8."""
    count, width = len(pictures[0]), len(pictures)
    made = figure(0.9 * width, 0.75 * count + 0.3, "")
    panels = made.subplots(count, width)
    for column, (images, title) in enumerate(zip(pictures, titles, strict=True)):
        panels[0, column].set_title(title, fontsize=9)
        for row, image in enumerate(images):
            _show(panels[row, column], image, black_on_white)
            panels[row, column].set_axis_off()
    return made


def sheet(images: Array, black_on_white: bool) -> tuple[Figure, Axes]:  # (rows, columns, H, W, C)
    """A figure of tiles; its axes have ticks for the caller to set."""
    made = figure(7.5, 7.5, "")
    axes = made.subplots()
    tiles(axes, images, black_on_white)
    return made, axes


def tiles(axes: Axes, images: Array, black_on_white: bool) -> None:  # (rows, columns, H, W, C)
    """Pictures without gaps, row by row from the top."""
    rows, across, height, width, _ = images.shape
    _show(axes, images.transpose(0, 2, 1, 3, 4).reshape(rows * height, across * width, -1), black_on_white)


def _show(axes: Axes, image: Array, black_on_white: bool) -> None:
    if image.shape[-1] == 1:
        axes.imshow(image[..., 0], cmap="gray_r" if black_on_white else "gray", vmin=0, vmax=255)
    else:
        axes.imshow(image)


def plane(panels: Mapping[str, tuple[Array, Array]]) -> Figure:
    """Points (N, 2) coloured by label, side by side under their titles, with one bar of colours."""
    made = figure(7 * len(panels), 6, "")
    grid = np.atleast_1d(made.subplots(1, len(panels)))
    for axes, (title, (points, labels)) in zip(grid, panels.items(), strict=True):
        drawn = axes.scatter(points[:, 0], points[:, 1], c=labels, s=6, linewidths=0, cmap="viridis")
        axes.set_title(title, fontsize=10)
        axes.set(xlabel="z_1", ylabel="z_2")
        made.colorbar(drawn, ax=axes)
    return made
