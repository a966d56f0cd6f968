"""The look of the figures, and how they are saved."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe & Ito 2008: eight colours that people with any colour vision tell apart; for lines.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# Tol 2021, "muted", with black as the tenth: for classes of points, which also carry their names.
CLASSES = (
    "#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip


def figure(width: float, height: float) -> Figure:
    """An empty figure, inches; made without pyplot, so that nothing global is touched."""
    made = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(made)
    return made


def verbatim(name: str) -> str:
    """A name that matplotlib draws literally: not as mathematics, and not left out of a legend."""
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def quiet(axes: Axes) -> None:
    """A light grid, no frame on top and right."""
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def zoom(axes: Axes, seen: Sequence[np.ndarray]) -> None:
    """Leave the first few epochs of a long run out of the vertical range: they would flatten the rest."""
    late = [values[max(1, len(values) // 20) :] if len(values) > 10 else values for values in seen]
    late = [values for values in late if len(values)]
    if late:
        low, high = min(v.min() for v in late), max(v.max() for v in late)
        pad = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - pad, high + pad)


def save(made: Figure, stem: Path) -> list[Path]:
    """Write stem.png and stem.pdf; equal figures give equal files."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    png, pdf = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".pdf")
    made.savefig(png, dpi=150)
    made.savefig(pdf, dpi=150, metadata={"CreationDate": None})
    return [png, pdf]
