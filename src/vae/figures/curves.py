"""Training and test curves of one or several runs."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from vae.figures.style import LINES, SPLITS, figure, over_epochs, verbatim

_PANELS = {
    "elbo": "ELBO",
    "objective": "objective (what was maximised)",
    "log_p_x_given_z": "E$_q$ log p(x|z)",
    "log_p_y_given_x": "E$_q$ log p(y|x, w)",
    "kl": "KL(q || p)",
    "log_density": "log p(y|x)",
}


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """ELBO, its two terms, and the objective if it is another, by epoch; one colour per run, one line style per split.

    `histories` holds the lines of each run's metrics under the run's name.
    """
    keys = [key for key in _PANELS if any(key in line for history in histories.values() for line in history)]
    several = len(histories) > 1
    title = "means over each epoch of training, and evaluations"
    made = figure(0.8 + 3.6 * len(keys), 3.6, title if several else f"{next(iter(histories))}: {title}")
    panels = made.subplots(1, len(keys), squeeze=False)[0]
    for axes, key in zip(panels, keys, strict=True):
        seen: list[np.ndarray] = []
        for (name, history), of_run in zip(histories.items(), cycle(LINES), strict=False):
            for (split, (style, marker)), of_split in zip(SPLITS.items(), LINES, strict=False):
                lines = [line for line in history if line["split"] == split and key in line]
                if lines:
                    label = f"{verbatim(name)}, {split}" if several else split
                    look = {"color": of_run if several else of_split, "marker": marker if len(lines) == 1 else None}
                    seen.append(np.array([line[key] for line in lines]))
                    axes.plot([line["epoch"] for line in lines], seen[-1], style, label=label, linewidth=1.5, **look)
        over_epochs(axes, seen, title=_PANELS[key])
    panels[0].set_ylabel("nats per datum")
    panels[0].legend(fontsize=8, frameon=False)
    return made
