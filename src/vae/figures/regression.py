"""A regression: its mean and intervals beside the data, and whether the intervals hold."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.figures.style import LINES, Array, figure, quiet


def bands(axes: Axes, x: Array, mean: Array, between: Mapping[str, tuple[Array, Array]]) -> None:
    """A line, and named bands between a lower and an upper line, each (N,), the widest first."""
    for (name, (lower, upper)), colour in zip(between.items(), (LINES[4], LINES[5], LINES[3]), strict=False):
        axes.fill_between(x, lower, upper, color=colour, alpha=0.35, linewidth=0, label=name)
    axes.plot(x, mean, color=LINES[0], linewidth=1.8, label="mean")


def calibration(
    pit: Array, title: str, line: tuple[Array, Mapping[str, Array]] | None, seen: tuple[Array, Array]
) -> Figure:
    """The prediction beside the data, the PIT histogram, and the coverage of central intervals against their level.

    `line` are the inputs (N,) of a curve with its mean, lower and upper 90 % line, if there is one input; else `seen`,
    means and observed y, are drawn against each other. `pit` (N,) are the probability integral transforms of the data,
    which are uniform where the predicted law is that of the data.
    """
    made = figure(12, 3.8, title)
    left, middle, right = made.subplots(1, 3)
    left.plot(*seen, "o", markersize=2.5, color="0.35", alpha=0.6, label="test data")
    if line is None:
        ends = [min(seen[0].min(), seen[1].min()), max(seen[0].max(), seen[1].max())]
        left.plot(ends, ends, color=LINES[0], linewidth=1, label="equal")
        quiet(left, xlabel="mean of p(y|x)", ylabel="y")
    else:
        x, curves = line
        bands(left, x, curves["mean"], {"90 % interval": (curves["lower"], curves["upper"])})
        quiet(left, xlabel="x", ylabel="y")
    left.legend(fontsize=8, frameon=False)
    n, bins = len(pit), 20
    low, high = (1 / bins + s * 1.645 * np.sqrt(1 / bins * (1 - 1 / bins) / n) for s in (-1, 1))
    middle.hist(pit, np.linspace(0, 1, bins + 1), weights=np.full(n, 1 / n), color=LINES[5], alpha=0.8)
    middle.axhspan(low, high, color="0.5", alpha=0.25, linewidth=0, label="where 90 % of bars lie if calibrated")
    middle.legend(fontsize=8, frameon=False)
    quiet(middle, xlabel="PIT, P(Y ≤ y)", ylabel="share of the data")
    levels = np.linspace(0, 1, 101)
    share = (np.abs(pit - 0.5)[:, None] <= levels / 2).mean(0)
    right.plot(levels, levels, color="0.6", linewidth=1, label="calibrated")
    right.plot(levels, share, color=LINES[1], linewidth=1.8, label="test data")
    right.legend(fontsize=8, frameon=False)
    quiet(right, xlabel="level of the central interval", ylabel="share of the data inside")
    return made
