"""Training and test curves of one or several runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vae.figures.style import LINES, figure, quiet, verbatim

_PANELS = {"elbo": "ELBO", "log_p_x_given_z": "E$_q$ log p(x|z)", "kl": "KL(q(z|x) || p(z))"}
_STYLES = {"train": "-", "test": "--", "validation": ":"}


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], note: str = "") -> Figure:
    """ELBO and its two terms against epochs; a colour a run, a line style a split.

    `histories` holds the lines of each run's metrics under the run's name; `note` says what the values are.
    """
    made = figure(11.5, 3.6)
    panels = made.subplots(1, len(_PANELS))
    for axes, (key, title) in zip(panels, _PANELS.items(), strict=True):
        seen: list[np.ndarray] = []
        for (name, history), colour in zip(histories.items(), _cycle(len(histories)), strict=True):
            for split, style in _STYLES.items():
                lines = [line for line in history if line["split"] == split and key in line]
                if not lines:
                    continue
                epochs, values = [line["epoch"] for line in lines], np.array([line[key] for line in lines])
                several = len(histories) > 1
                label = f"{verbatim(name)}, {split}" if several else split
                shade = colour if several else LINES[list(_STYLES).index(split)]
                marker = "o" if len(lines) == 1 else None
                axes.plot(epochs, values, style, color=shade, label=label, linewidth=1.5, marker=marker)
                seen.append(values)
        _zoom(axes, seen)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        quiet(axes)
    panels[0].set_ylabel("nats a datum")
    if panels[0].has_data():
        panels[0].legend(fontsize=8, frameon=False)
    made.suptitle(f"Training (means over each epoch) and evaluation curves{note}", fontsize=10)
    return made


def _cycle(n: int) -> list[str]:
    return [LINES[i % len(LINES)] for i in range(n)]


def _zoom(axes: Axes, seen: list[np.ndarray]) -> None:
    """Leave the first few epochs of a long run out of the vertical range: they would flatten all the rest."""
    late = [values[max(1, len(values) // 20) :] if len(values) > 10 else values for values in seen]
    late = [values for values in late if len(values)]
    if late:
        low, high = min(v.min() for v in late), max(v.max() for v in late)
        pad = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - pad, high + pad)
