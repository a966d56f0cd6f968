"""The look of the figures, and how they are saved."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from vae.errors import UsageError

Array = NDArray[np.floating]
# Okabe & Ito 2008: eight colours that people with any colour vision tell apart; for lines.
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
# Tol 2021, "muted", with black as the tenth: for classes of points, which also carry their names.
CLASSES = (
    "#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE", "#882255", "#44AA99", "#999933", "#AA4499", "#000000",
)  # fmt: skip
# The line of each split, and the marker of its points if there are few.
SPLITS = {"train": ("-", "o"), "test": ("--", "s"), "validation": (":", "^")}


def figure(width: float, height: float, title: str, size: float = 10) -> Figure:
    """A figure with a title, inches and points; made without pyplot, so that nothing global is touched."""
    made = Figure(figsize=(width, height), layout="constrained")
    made.suptitle(verbatim(title), fontsize=size)
    return made


def verbatim(name: str) -> str:
    """A name as matplotlib draws it: not as mathematics, not left out of a legend, bytes that are no text as �."""
    name = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def quiet(axes: Axes, **settings: Any) -> None:
    """Labels and limits, a light grid, no frame on top and right."""
    axes.set(**settings)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def over_epochs(axes: Axes, seen: Sequence[np.ndarray], **settings: Any) -> None:
    """Axes of curves over epochs; the vertical range leaves out the first of a long run, which would flatten the rest.

    `seen` are the values of each curve.
    """
    late = [values[max(1, len(values) // 20) :] if len(values) > 10 else values for values in seen]
    if late:
        low, high = min(v.min() for v in late), max(v.max() for v in late)
        pad = 0.05 * (high - low) or 1.0
        axes.set_ylim(low - pad, high + pad)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    quiet(axes, xlabel="epoch", **settings)


def save(made: Figure, stem: Path) -> list[Path]:
    """Write stem.png and stem.pdf; equal figures give equal files. UsageError if they cannot be written."""
    png, pdf = stem.with_name(stem.name + ".png"), stem.with_name(stem.name + ".pdf")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # of names in scripts that the font does not have
            made.savefig(png, dpi=150)
            made.savefig(pdf, dpi=150, metadata={"CreationDate": None})
    except OSError as error:
        raise UsageError(f"{stem.parent}: cannot write figures there: {error.strerror}") from None
    return [png, pdf]
