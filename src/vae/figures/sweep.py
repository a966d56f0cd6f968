"""The curves of a sweep: the ELBO against epochs, means over the seeds (after Chen 2020, figures 4.1 and 4.5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from vae.figures.style import LINES, SPLITS, figure, over_epochs, verbatim

History = Sequence[Mapping[str, Any]]
Point = tuple[str, str, Sequence[History]]


def sweep(points: Sequence[Point], name: str, note: str = "") -> Figure:
    """One colour per value of the first key, one panel per combination of the others; train solid, test dashed.

    A point is the value of the first key, such as "beta = 4", those of the others, and the metrics of each seed's run;
    the band is one standard error over the seeds to either side. `name` is the config's, and `note` describes the
    values.
    """
    panels: dict[str, list[tuple[str, Sequence[History]]]] = {}
    for first, others, histories in points:
        panels.setdefault(others, []).append((first, histories))
    colours = _colours(list(dict.fromkeys(first for first, _, _ in points)))
    few = max(line["epoch"] for _, _, histories in points for history in histories for line in history) <= 5
    across = 2 if len(panels) == 4 else min(3, len(panels))
    down = -(-len(panels) // across)
    made = figure(2.0 + (5.2 if across == 1 else 4.0) * across, 0.8 + 3.6 * down, _title(points, name, note))
    grid = list(made.subplots(down, across, squeeze=False).flat)
    for axes, (title, of_panel) in zip(grid, panels.items(), strict=False):
        drawn: list[np.ndarray] = []
        for first, histories in of_panel:
            for split in ("train", "test"):
                drawn += _draw(axes, histories, split, colours[first], few)
        over_epochs(axes, drawn)
        axes.set_title(verbatim(title), fontsize=10)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[::across]:
        axes.set_ylabel("ELBO, nats per datum")
    _share_range(grid[: len(panels)])
    handles = [Line2D([], [], color=colours[key], linewidth=3, label=verbatim(key)) for key in colours if key]
    shade = "#555555" if handles else colours[""]
    for split in ("train", "test"):
        style, marker = SPLITS[split]
        handles.append(Line2D([], [], color=shade, ls=style, marker=marker if few else None, label=split))
    made.legend(handles=handles, ncols=-(-len(handles) // 18), loc="outside right center", fontsize=9, frameon=False)
    return made


def mean_curve(histories: Sequence[History], split: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Epochs that every run has, the mean of the ELBO there, and its standard error over the runs (0 for one run)."""
    curves = [{line["epoch"]: line["elbo"] for line in history if line["split"] == split} for history in histories]
    epochs = sorted(set.intersection(*map(set, curves)))
    values = np.array([[curve[epoch] for epoch in epochs] for curve in curves])  # (seeds, epochs)
    n = len(curves)
    stderr = values.std(0, ddof=1) / n**0.5 if n > 1 else np.zeros(len(epochs))
    return np.array(epochs), values.mean(0), stderr


def _draw(axes: Axes, histories: Sequence[History], split: str, colour: Any, few: bool) -> list[np.ndarray]:
    """Draw a curve with its band; returns the values that must be visible."""
    epochs, mean, stderr = mean_curve(histories, split)
    if not len(epochs):
        return []
    style, marker = SPLITS[split]
    axes.plot(epochs, mean, style, color=colour, linewidth=1.5, marker=marker if few else None)
    if len(histories) > 1 and len(epochs) == 1:
        axes.errorbar(epochs, mean, stderr, color=colour, capsize=4)
    elif len(histories) > 1:
        axes.fill_between(epochs, mean - stderr, mean + stderr, color=colour, alpha=0.2, linewidth=0)
    late = slice(len(epochs) // 8, None)  # the steep beginning is the same for all, and would flatten the rest
    return [(mean - stderr)[late], (mean + stderr)[late]]


def _colours(names: Sequence[str]) -> dict[str, Any]:
    """Colours that everyone can tell apart; for more values than those, a scale from dark to light."""
    if len(names) < len(LINES):  # the last, a yellow, hardly shows as a line
        return dict(zip(names, LINES, strict=False))
    scale = matplotlib.colormaps["viridis"]
    return dict(zip(names, scale(np.linspace(0, 0.92, len(names))), strict=True))


def _share_range(panels: Sequence[Axes]) -> None:
    """One vertical range for all panels, unless that would flatten the curves of one."""
    ranges = [axes.get_ylim() for axes in panels]
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if high - low <= 3 * min(r[1] - r[0] for r in ranges):
        for axes in panels:
            axes.set_ylim(low, high)


def _title(points: Sequence[Point], name: str, note: str) -> str:
    counts = sorted({len(histories) for _, _, histories in points})
    text = f"{name}: training (mean over each epoch) and test"
    if counts[-1] > 1:
        count = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
        text += f"\nmean over {count} seeds, band: one standard error to either side"
    return text + (f"\n{note}" if note else "")
