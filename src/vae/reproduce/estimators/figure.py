"""Comparison of gradient estimators: measured points with their standard errors, theory as lines."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, NullLocator

from vae.figures.style import LINES, figure, quiet, verbatim

Row = Mapping[str, Any]
_BLUE, _VERMILION, _GREEN, _PURPLE, _ORANGE, _SKY, _BLACK, _ = LINES
_LOOKS = {  # estimator: label, colour, marker
    "no baseline": ("score function", _VERMILION, "o"),
    "b = E f": ("b = E f", _PURPLE, "v"),
    "running b": ("running b", _ORANGE, "s"),
    "leave one out": ("leave one out", _GREEN, "D"),
    "optimal b": ("optimal b", _SKY, "^"),
    "reparameterized": ("reparameterized", _BLUE, "P"),
    "score_function": ("score function", _VERMILION, "o"),
    "score_function, running": ("  running b", _ORANGE, "s"),
    "score_function, leave_one_out": ("  leave one out", _GREEN, "D"),
    "sgvb_a": ("sgvb_a", _PURPLE, "v"),
    "sgvb_b": ("sgvb_b", _BLUE, "P"),
    "iwae": ("iwae", _BLACK, "X"),
    "dreg": ("dreg", _SKY, "^"),
    "stl": ("stl", "#999999", "*"),
}


def draw(tables: Mapping[str, Sequence[Row]], name: str) -> Figure:
    """Six panels of the tables of a study (its rows by the keys of `HEADINGS`); `name` is that of the VAE."""
    known, noise, data = tables["known"], tables["vae_noise"], tables["vae_minibatches"]
    title = "Gradient estimators: measured points (bars: 2 standard errors); lines: theory; dotted: guides"
    made = figure(16, 9, title, size=12)
    panels = made.subplots(2, 3)
    theta, L = max(row["theta"] for row in known), min(row["num_samples"] for row in known if row["theta"] == 0)
    by_theta = [row for row in known if row["num_samples"] == L]
    theta = min((row["theta"] for row in known if row["num_samples"] != L), default=theta)
    by_samples = [row for row in known if row["theta"] == theta]
    _lines(panels[0, 0], by_theta, "theta", "variance", "exact_variance")
    _lines(panels[0, 1], by_samples, "num_samples", "variance", "exact_variance")
    _ratios(panels[0, 2], tables["signal_to_noise"], tables["slopes"])
    of_encoder = [row for row in noise if row["network"] == "encoder"]
    _lines(panels[1, 0], of_encoder, "num_samples", "variance")
    _lines(panels[1, 1], [row for row in data if row["network"] == "encoder"], "batch_size", "variance", samples=True)
    _bias(panels[1, 2], of_encoder)
    size = noise[0]["batch_size"]
    titles = [
        (rf"d E[$x^2$]/d$\theta$, x ~ N($\theta$, 1), L = {L}", r"$\theta$", "variance"),
        (rf"d E[$x^2$]/d$\theta$ at $\theta$ = {theta:g}", "samples L", "variance"),
        ("Linear-Gaussian model", "samples K", "signal to noise, |mean| / deviation"),
        (f"{verbatim(name)}: over the noise (M = {size})", "samples L (K of a bound)", "variance, encoder (trace)"),
        (f"{verbatim(name)}: over data and noise", "minibatch M", "variance, encoder (trace)"),
        (f"{verbatim(name)}: over the noise (M = {size})", "samples L (K of a bound)", "bias / length of the gradient"),
    ]
    for axes, (title, x, y) in zip(panels.flat, titles, strict=True):
        axes.set_title(title, fontsize=11)
        axes.set_xlabel(x)
        axes.set_ylabel(y)
        quiet(axes)
    return made


def _lines(axes: Axes, rows: Sequence[Row], x: str, y: str, exact: str | None = None, samples: bool = False) -> None:
    """One series per estimator on logarithmic axes, named at its right end."""
    ends = []
    for name, chosen in _by(rows, lambda row: row["estimator"]).items():
        label, colour, marker = _LOOKS[name]
        places, values = [row[x] for row in chosen], [row[y] for row in chosen]
        if exact is not None:
            axes.plot(places, [row[exact] for row in chosen], color=colour, linewidth=1.2)
        else:
            axes.plot(places, values, ":", color=colour, linewidth=1)
        errors = [2 * row[f"{y}_stderr"] for row in chosen]
        axes.errorbar(places, values, errors, fmt=marker, color=colour, markersize=5, linewidth=1)
        count = f" (L = {chosen[0]['num_samples']})" if samples and chosen[0]["num_samples"] > 1 else ""
        ends.append((values[-1], label.strip() + count, colour))
    axes.set_yscale("log")
    _ticks(axes, sorted({row[x] for row in rows}), logarithmic=x != "theta")
    _name(axes, ends)


def _ratios(axes: Axes, rows: Sequence[Row], slopes: Sequence[Row]) -> None:
    """Signal-to-noise ratios against K, and the power laws that they approach."""
    shown = {
        ("dreg", "encoder mean"): ("encoder, dreg", _LOOKS["dreg"]),
        ("iwae", "decoder bias"): ("decoder", ("", _GREEN, "D")),
        ("iwae", "encoder mean"): ("encoder, iwae", _LOOKS["iwae"]),
    }
    ends = []
    for key, (label, (_, colour, marker)) in shown.items():
        chosen = [row for row in rows if (row["estimator"], row["parameter"]) == key]
        slope = next(row for row in slopes if (row["estimator"], row["parameter"]) == key)
        K = np.array([row["num_samples"] for row in chosen])
        values = [row["signal_to_noise"] for row in chosen]
        errors = [2 * row["signal_to_noise_stderr"] for row in chosen]
        axes.plot(K, slope["exact_constant"] * K ** slope["exact_slope"], color=colour, linewidth=1.2)
        axes.errorbar(K, values, errors, fmt=marker, color=colour, markersize=5, linewidth=1)
        text = f"{label}\nslope {slope['slope']:+.3f} ± {slope['slope_stderr']:.3f}"
        ends.append((values[-1], text, colour))
    axes.set_yscale("log")
    _ticks(axes, sorted({row["num_samples"] for row in rows}), logarithmic=True)
    _name(axes, ends)


def _bias(axes: Axes, rows: Sequence[Row]) -> None:
    """Relative biases with their errors, side by side at each number of samples; a dashed zero."""
    series = _by(rows, lambda row: row["estimator"])
    places = sorted({row["num_samples"] for row in rows})
    ends = []
    for i, (name, chosen) in enumerate(series.items()):
        label, colour, marker = _LOOKS[name]
        shift = 2 ** (0.5 * (i / max(1, len(series) - 1) - 0.5))
        x = [row["num_samples"] * shift for row in chosen]
        values = [row["relative_bias"] for row in chosen]
        errors = [2 * row["relative_bias_stderr"] for row in chosen]
        axes.errorbar(x, values, errors, fmt=marker, color=colour, markersize=5, linewidth=1)
        ends.append((values[-1], label.strip(), colour))
    axes.plot([places[0] / 1.25, places[-1] * 1.25], [0, 0], "--", color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.1)
    _ticks(axes, places, logarithmic=True)
    _name(axes, ends, beyond=2**0.25)


def _by(rows: Sequence[Row], key: Callable[[Row], str]) -> dict[str, list[Row]]:
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(key(row), []).append(row)
    return series


def _ticks(axes: Axes, places: Sequence[float], logarithmic: bool) -> None:
    """A tick at each place that was measured, and room for the names on the right."""
    low, high = places[0], places[-1]
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(low / 1.3, high * (high / low) ** 0.5 * 1.3)
    else:
        axes.set_xlim(low - 0.05 * (high - low), high + 0.5 * (high - low))
    axes.set_xticks(places)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _name(axes: Axes, ends: Sequence[tuple[float, str, str]], beyond: float = 1.0) -> None:
    """Names right of the last points, moved apart if they would overlap."""
    last = axes.get_xticks()[-1] * beyond
    to_axes = axes.transAxes.inverted()
    place = to_axes.transform(axes.transData.transform((last, 1)))[0] + 0.04
    axes.get_ylim()  # fixes the scale
    heights = [float(to_axes.transform(axes.transData.transform((last, y)))[1]) for y, _, _ in ends]
    order = np.argsort(heights)
    lines = [ends[i][1].count("\n") + 1 for i in order]
    spread = _apart([heights[i] for i in order], [0.052 * n for n in lines])
    for i, height in zip(order, spread, strict=True):
        _, text, colour = ends[i]
        axes.text(place, height, text, color=colour, fontsize=9, va="center", transform=axes.transAxes)


def _apart(heights: Sequence[float], sizes: Sequence[float]) -> list[float]:
    """Sorted positions close to `heights`, each a label's size from the next, within [0, 1]."""
    spread = list(heights)
    for _ in range(200):
        for i in range(1, len(spread)):
            lack = (sizes[i - 1] + sizes[i]) / 2 - (spread[i] - spread[i - 1])
            if lack > 1e-9:
                spread[i - 1] -= lack / 2
                spread[i] += lack / 2
        spread = [min(max(h, s / 2), 1 - s / 2) for h, s in zip(spread, sizes, strict=True)]
    return spread
