"""Training and test curves of one or several runs."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from vae.figures.style import LINES, figure, quiet, verbatim, zoom

_PANELS = {
    "elbo": "ELBO",
    "objective": "objective (what was maximised)",
    "log_p_x_given_z": "E$_q$ log p(x|z)",
    "kl": "KL(q(z|x) || p(z))",
}
_STYLES = {"train": "-", "test": "--", "validation": ":"}


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]], note: str = "") -> Figure:
    """ELBO, its two terms, and the objective if it is another, by epoch; one colour per run, one line style per split.

    `histories` holds the lines of each run's metrics under the run's name; `note` describes the values.
    """
    keys = [key for key in _PANELS if any(key in line for history in histories.values() for line in history)]
    made = figure(0.8 + 3.6 * len(keys), 3.6)
    panels = made.subplots(1, len(keys), squeeze=False)[0]
    several = len(histories) > 1
    for axes, key in zip(panels, keys, strict=True):
        seen: list[np.ndarray] = []
        for (name, history), colour in zip(histories.items(), _cycle(len(histories)), strict=True):
            for (split, style), marker in zip(_STYLES.items(), "os^", strict=True):
                lines = [line for line in history if line["split"] == split and key in line]
                if lines:
                    epochs, values = [line["epoch"] for line in lines], np.array([line[key] for line in lines])
                    label = f"{verbatim(name)}, {split}" if several else split
                    shade = colour if several else LINES[list(_STYLES).index(split)]
                    dot = marker if len(lines) == 1 else None
                    axes.plot(epochs, values, style, color=shade, label=label, linewidth=1.5, marker=dot)
                    seen.append(values)
        zoom(axes, seen)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(_PANELS[key])
        axes.set_xlabel("epoch")
        quiet(axes)
    panels[0].set_ylabel("nats per datum")
    panels[0].legend(fontsize=8, frameon=False)
    of = "" if several else f"{verbatim(next(iter(histories)))}: "
    made.suptitle(f"{of}means over each epoch of training, and evaluations{verbatim(note)}", fontsize=10)
    return made


def _cycle(n: int) -> list[str]:
    return [LINES[i % len(LINES)] for i in range(n)]
