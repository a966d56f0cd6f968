"""Comparison of gradient estimators: measured points with their standard errors, theory as lines."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

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
    series(panels[0, 0], by_theta, "theta", "variance", "exact_variance")
    series(panels[0, 1], by_samples, "num_samples", "variance", "exact_variance")
    _ratios(panels[0, 2], tables["signal_to_noise"], tables["slopes"])
    of_encoder = [row for row in noise if row["network"] == "encoder"]
    series(panels[1, 0], of_encoder, "num_samples", "variance")
    series(panels[1, 1], [row for row in data if row["network"] == "encoder"], "batch_size", "variance", samples=True)
    _bias(panels[1, 2], of_encoder)
    size = noise[0]["batch_size"]
    titles = [
        (rf"d E[$x^2$]/d$\theta$, x ~ N($\theta$, 1), L = {L}", r"$\theta$", "variance"),
        (rf"d E[$x^2$]/d$\theta$ at $\theta$ = {theta:g}", "samples L", "variance"),
        ("Linear-Gaussian model", "samples K", "signal to noise, |mean| / deviation"),
        (f"{verbatim(name)}: over the noise (M = {size})", "samples L (K of a bound)", "variance, encoder (trace)"),
        (f"{verbatim(name)}: over data and noise", "minibatch M", "variance, encoder (trace)"),
        ("Their bias (symbols as on the left)", "samples L (K of a bound)", "bias / length of the gradient"),
    ]
    for axes, (title, x, y) in zip(panels.flat, titles, strict=True):
        axes.set_title(title, fontsize=11)
        quiet(axes, xlabel=x, ylabel=y)
        if axes is not panels[1, 2]:  # full of bars; its series are those of the first panel in its row
            axes.legend(fontsize=8, frameon=False)
    return made


def series(axes: Axes, rows: Sequence[Row], x: str, y: str, exact: str | None = None, samples: bool = False) -> None:
    """One series per estimator on logarithmic axes."""
    for name, chosen in _by_estimator(rows).items():
        label, colour, marker = _LOOKS[name]
        places, values = [row[x] for row in chosen], [row[y] for row in chosen]
        if exact is not None:
            axes.plot(places, [row[exact] for row in chosen], color=colour, linewidth=1.2)
        else:
            axes.plot(places, values, ":", color=colour, linewidth=1)
        count = f" (L = {chosen[0]['num_samples']})" if samples and chosen[0]["num_samples"] > 1 else ""
        _points(axes, places, values, [row[f"{y}_stderr"] for row in chosen], label.strip() + count, colour, marker)
    axes.set_yscale("log")
    _ticks(axes, rows, x)


def _ratios(axes: Axes, rows: Sequence[Row], slopes: Sequence[Row]) -> None:
    """Signal-to-noise ratios against K, and the power laws that they approach."""
    shown = {
        ("dreg", "encoder mean"): ("encoder, dreg", _LOOKS["dreg"]),
        ("iwae", "decoder bias"): ("decoder", ("", _GREEN, "D")),
        ("iwae", "encoder mean"): ("encoder, iwae", _LOOKS["iwae"]),
    }
    for key, (label, (_, colour, marker)) in shown.items():
        chosen = [row for row in rows if (row["estimator"], row["parameter"]) == key]
        slope = next(row for row in slopes if (row["estimator"], row["parameter"]) == key)
        K = np.array([row["num_samples"] for row in chosen])
        axes.plot(K, slope["exact_constant"] * K ** slope["exact_slope"], color=colour, linewidth=1.2)
        text = f"{label}: slope {slope['slope']:+.3f} ± {slope['slope_stderr']:.3f}"
        values, errors = ([row[name] for row in chosen] for name in ("signal_to_noise", "signal_to_noise_stderr"))
        _points(axes, K, values, errors, text, colour, marker)
    axes.set_yscale("log")
    _ticks(axes, rows, "num_samples")


def _bias(axes: Axes, rows: Sequence[Row]) -> None:
    """Relative biases with their errors, side by side at each number of samples; a dashed zero."""
    series = _by_estimator(rows)
    for i, (name, chosen) in enumerate(series.items()):
        label, colour, marker = _LOOKS[name]
        shift = 2 ** (0.5 * (i / max(1, len(series) - 1) - 0.5))
        values, errors = ([row[name] for row in chosen] for name in ("relative_bias", "relative_bias_stderr"))
        _points(axes, [row["num_samples"] * shift for row in chosen], values, errors, label.strip(), colour, marker)
    axes.axhline(0, ls="--", color="black", linewidth=0.8)
    axes.set_yscale("symlog", linthresh=0.1)
    _ticks(axes, rows, "num_samples")


def _by_estimator(rows: Sequence[Row]) -> dict[str, list[Row]]:
    series: dict[str, list[Row]] = {}
    for row in rows:
        series.setdefault(row["estimator"], []).append(row)
    return series


def _points(axes: Axes, x: Any, y: Any, stderr: Any, label: str, colour: str, marker: str) -> None:
    bars = 2 * np.array(stderr)
    axes.errorbar(x, y, bars, fmt=marker, color=colour, markersize=5, linewidth=1, label=label)


def _ticks(axes: Axes, rows: Sequence[Row], x: str) -> None:
    """A tick at each place that was measured."""
    if x != "theta":
        axes.set_xscale("log")
    axes.set_xticks(sorted({row[x] for row in rows}))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
