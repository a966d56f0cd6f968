"""Li 2021 as a document: figures, tables, and what is read off its pictures beside ours."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture

from vae.evaluation.regression import LEVELS
from vae.figures.regression import bands
from vae.figures.style import LINES, figure, quiet
from vae.reproduce.document import Arrays, Chosen, Document, Experiment, Figure, Number, Quantity, Results, Table, at
from vae.reproduce.li.measures import (
    PANELS,
    SCORES,
    VARIATIONAL,
    aleatoric,
    between,
    both,
    choices,
    coverage,
    diabetes,
    epistemic,
    gradients,
    optimum,
)
from vae.reproduce.li.methods import METHODS
from vae.reproduce.records import arrays, over_seeds
from vae.text import plus_minus

# ------------------------------------------------------------------------------------- figures and tables


def _dots(values: Arrays, axes: Any) -> None:
    axes.plot(values["x"], values["y"], "o", markersize=3, color="0.3", alpha=0.7)
    quiet(axes, xlabel="X", ylabel="Z", ylim=(-4.9, 2.9))


def _bands(records: Chosen, experiment: str, titles: Mapping[str, str], order: tuple[int, int, int]) -> Picture:
    """Panels of a line and its band over the data; `order` says which rows are lower, line and upper."""
    values = arrays(records[experiment])
    made, grid = figure(11, 4.2, ""), np.linspace(-25, 55, 161)
    for axes, (key, title) in zip(made.subplots(1, 2), titles.items(), strict=True):
        lower, line, upper = values[key][list(order)]
        bands(axes, grid, line, {"90 %": (lower, upper)})
        _dots(values, axes)
        axes.set_title(title, fontsize=10)
        axes.legend(fontsize=8, frameon=False)
    return made


def draw_both(records: Chosen) -> Picture:
    """Four panels: no uncertainty, aleatoric, epistemic, both; bands of two standard deviations."""
    values = arrays(records["both"])
    made, grid = figure(12, 8, ""), np.linspace(-45, 75, 161)
    for axes, name in zip(made.subplots(2, 2).flat, PANELS, strict=True):
        mean, total, aleatoric, epistemic = values[name]
        shown = {"aleatoric": (aleatoric,), "epistemic": (epistemic,), "both": (total, epistemic), "none": ()}[name]
        names = {"both": ("both", "of it epistemic")}.get(name, (name,))
        bands(axes, grid, mean, {n: (mean - 2 * s, mean + 2 * s) for n, s in zip(names, shown, strict=False)})
        _dots(values, axes)
        axes.set_title(name, fontsize=10)
        axes.legend(fontsize=8, frameon=False, loc="lower left")
    return made


def draw_coverage(records: Chosen) -> Picture:
    """The PIT histograms of all data sets together, and the share of fresh data in central intervals by their level."""
    found, drawn = records["coverage"], [n for n in METHODS if n != "plain network, noise 0.1"]
    made = figure(14, 6.5, f"PIT of fresh data over {len(records['coverage'])} data sets: flat if the law is right")
    for axes, name in zip(made.subplots(2, 4).flat, drawn, strict=True):
        counts = np.sum([record.results[name]["pit"] for record in found], 0)
        axes.bar(np.arange(20) / 20 + 0.025, counts / counts.sum(), 0.05, color=LINES[5])
        axes.axhline(0.05, color="0.4", linewidth=1)
        axes.set_title(name, fontsize=9)
        quiet(axes, ylim=(0, 0.16))
    return made


def draw_calibration(records: Chosen) -> Picture:
    """The share of fresh data in the central interval of each level, of all data sets together."""
    found, levels = records["coverage"], np.linspace(0, 1, 11)
    made = figure(6.4, 5.5, "")
    axes = made.subplots()
    for i, name in enumerate(METHODS):
        counts = np.sum([record.results[name]["pit"] for record in found], 0)
        inside = np.cumsum(counts[10:] + counts[9::-1]) / counts.sum()  # of the central 2, 4, ... of the 20 bins
        axes.plot(levels, [0, *inside], color=LINES[i % 8], linestyle="-" if i < 8 else ":", label=name, linewidth=1.5)
    quiet(axes, xlabel="level of the central interval", ylabel="share of fresh data inside")
    axes.legend(fontsize=7, frameon=False)
    return made


def _scores(experiment: str) -> Callable[[Chosen], list[list[str]]]:
    def rows(records: Chosen) -> list[list[str]]:
        found = records.get(experiment, ())
        names = found[0].results if found else ()
        columns = _COLUMNS if experiment == "coverage" else _COLUMNS[:-1]
        return [[name, *(_cell(found, name, *keys) for keys in columns)] for name in names]

    return rows


_HEAD = ("method", *SCORES.values(), *(f"in {level:.0%}" for level in LEVELS))
_COLUMNS = (*((key,) for key in SCORES), *(("coverage", f"{level:.0%}") for level in LEVELS), ("outside",))


def _cell(found: Any, *keys: str) -> str:
    """The mean over seeds of a number, with its standard error; - where a method has none."""
    try:
        return plus_minus(*over_seeds(found, *keys), ".3f", ".3f")
    except KeyError:
        return "-"


def _gaps(records: Chosen) -> list[list[str]]:
    found = records.get("between", ())
    return [[n, *(_cell(found, n, k) for k in ("gap", "outside"))] for n in VARIATIONAL] if found else []


# ------------------------------------------------------------------------------------- numbers

READ_OFF = "read off a picture"
FIGURE_1 = {"-24": (-0.75, 0.57, 1.9), "0": (-0.65, 0.3, 1.1), "54": (-2.7, -0.25, 2.0)}  # lower, line, upper
FIGURE_2 = {"-24": (0.9, 1.26, 1.65), "20": (None, -0.3, None), "54": (-0.65, -0.5, -0.35)}
OURS, BEST = "the report's objective", "VariationalRegressor"
Of = Callable[[Results], Number]


def _less(a: tuple[str, ...], b: tuple[str, ...]) -> Of:
    return lambda results: at(*a)(results) - at(*b)(results)


def _below(limit: float, *keys: str) -> Of:
    return lambda results: Number(limit - at(*keys)(results).mean, 0.0)


def _log(*keys: str) -> Of:
    return lambda results: Number(math.log(at(*keys)(results).mean))


def _width(results: Results, place: str) -> float:
    lower, upper = (at(OURS, place, end)(results).mean for end in ("lower", "upper"))
    return upper - lower


def _of_figures() -> Iterator[Quantity]:
    """What is read off the report's two figures."""
    for label, published, experiment, key in (
        ("1", FIGURE_1, "aleatoric", OURS),
        ("2", FIGURE_2, "epistemic", "fixed"),
    ):
        for place, values in published.items():
            for what, value in zip(("lower", "line", "upper"), values, strict=True):
                if value is not None:
                    text, of, given = f"x = {place}: {what}", at(key, place, what), f"{value:g}"
                    yield Quantity(label, text, (experiment,), of, given, 0.3, READ_OFF, headline=False)
    of = at(OURS, "inside")
    yield Quantity("1", "share of the 150 data inside", ("aleatoric",), of, "0.94", 0.02, READ_OFF)


def _measured() -> Iterator[Quantity]:
    """What has no number in the report."""
    balance = "E r^2 / s^2 over E s^2, logarithm: 0 at the optimum of the objective"
    yield Quantity("1", balance, ("aleatoric",), at(OURS, "balance"))
    for name in (OURS, "heteroscedastic, points"):
        for key, where in (("tight", "x < 0"), ("loose", "x > 35")):
            text = f"{name}: what the 90 % interval covers of fresh data with {where}"
            yield Quantity("1", text, ("aleatoric",), at(name, key))
    yield Quantity("2", "share of the 150 data in the band", ("epistemic",), at("fixed", "inside"))
    yield Quantity("2", "noise, if it is learned (0.1 in the report)", ("epistemic",), at("constant", "noise"))
    for x in ("-20", "0", "20", "40", "54"):
        text = f"x = {x}: what the 90 % interval covers at the optimum"
        yield Quantity("optimum", text, ("optimum",), at(x, "covers"))
    for level in LEVELS:
        of = at(BEST, "coverage", f"{level:.0%}")
        yield Quantity("coverage", f"{BEST}: coverage of {level:.0%}", ("coverage",), of)
    of = at("conformal", "coverage", "90%")
    yield Quantity("diabetes", "conformal intervals: coverage of 90%", ("diabetes",), of)


def _claims() -> Iterator[Quantity]:
    """Claims of the report, and of theory."""

    def claim(label: str, text: str, experiment: str, of: Of, why: str = "") -> Quantity:
        return Quantity(label, text, (experiment,), of, claim=True, why=why)

    text = "the interval is narrower where data cluster: width at 54 less width at 0"
    yield claim("1", text, "aleatoric", lambda results: Number(_width(results, "54") - _width(results, "0")))
    for x in ("-20", "0", "20", "40", "54"):
        text = f"x = {x}: s^4 = E r^2 and m = E z / (1 + s^2) at the optimum, to 1e-4"
        yield claim("optimum", text, "optimum", _below(1e-4, x, "error"))
    text = "fairly certain because the noise is fixed: mean width of the band with learned noise, less with 0.1"
    yield claim("2", text, "epistemic", _less(("constant", "width"), ("fixed", "width")))
    text = "the gradient varies less by drawn activations: log of the ratio of the variances"
    yield claim("gradients", text, "gradients", at("log_ratio"))
    for width in ("5", "10", "50", "100"):
        text = f"25 units have a higher bound than {width}"
        why = "some seeds of every width end far below the others: the inputs enter unscaled"
        yield claim("choices", text, "choices", _less(("width", "25"), ("width", width)), why)
    text = "dropout against overfitting: log density of fresh data with, less without"
    yield claim("choices", text, "choices", _less(("dropout", "with"), ("dropout", "without")))
    yield claim("both", "the variances add up to 1e-6", "both", _below(1e-6, "error"))
    for other in ("plain network, noise 0.1", OURS, "the report's Bayesian network, noise 0.1"):
        text = f"log density of {BEST} less that of {other}"
        yield claim("coverage", text, "coverage", _less((BEST, "log_density"), (other, "log_density")))
    for name in VARIATIONAL:
        text = f"{name}: epistemic standard deviation grows outside the data (log of the ratio)"
        yield claim("coverage", text, "coverage", _log(name, "outside"))
        text = f"{name}: it grows in a gap between data, too (log of the ratio)"
        why = "independent weights are known to miss gaps (Foong et al. 2020)"
        yield claim("between", text, "between", _log(name, "gap"), why)


SETS = tuple(range(20))
LI = Document(
    "li",
    "Li 2021: uncertainty by variational auto-encoding",
    (
        Experiment("aleatoric", aleatoric, seeds=(0, 1, 2, 3), minutes=0.2, trained=False),
        Experiment("optimum", optimum, seeds=(0,), minutes=0.1, trained=False),
        Experiment("epistemic", epistemic, seeds=(0, 1, 2, 3), minutes=0.3, trained=False),
        Experiment("gradients", gradients, seeds=(0, 1, 2, 3), minutes=0.2, trained=False),
        Experiment("choices", choices, seeds=(0, 1, 2, 3), minutes=0.4, trained=False),
        Experiment("both", both, seeds=(0,), minutes=0.2, trained=False),
        Experiment("coverage", coverage, seeds=SETS, minutes=0.6, trained=False),
        Experiment("between", between, seeds=SETS[:10], minutes=0.2, trained=False),
        Experiment("diabetes", diabetes, seeds=SETS, minutes=0.2, trained=False),
    ),
    (*_of_figures(), *_measured(), *_claims()),
    (
        Figure("1", "Line and 90 % interval by the report's objective, and by the likelihood with the same networks.",
               ("aleatoric",), partial(_bands, experiment="aleatoric", order=(0, 1, 2), titles={
                   OURS: "the report's objective", "heteroscedastic, points": "the heteroscedastic likelihood"}),
               "Left as in the report, but for its jagged line, a median of draws with dropout: the band is too wide "
               "where the data are tight. Right, it is narrow there and wide where they are not."),
        Figure("2", "Mean and 90 % band of 1,000 sampled networks: noise 0.1 as published, and learned.",
               ("epistemic",), partial(_bands, experiment="epistemic", order=(1, 0, 2), titles={
                   "fixed": "noise 0.1", "constant": "noise learned"}),
               "Left as in the report: a band much narrower than the data. Right, the band says less, and so does the "
               "line: independent weights of all layers underfit 150 data."),
        Figure("both", "None, one or both kinds of uncertainty: two standard deviations.", ("both",), draw_both,
               "The noise widens to the right, as it does in the data; what is epistemic widens where they end."),
        Figure("coverage", "Whether the predicted laws are right: PIT histograms over simulated data sets.",
               ("coverage",), draw_coverage,
               "Flat for the true density; nearly so for the Gaussian process, which knows the noise, and for "
               "VariationalRegressor. With the noise fixed at 0.1, nearly all data lie in the tails."),
        Figure("calibration", "Whether intervals hold: the share of fresh data inside, by their level.",
               ("coverage",), draw_calibration,
               "VariationalRegressor follows the diagonal; above it intervals are too wide, below it too narrow."),
    ),
    (("algorithm 2: x ~ 80 N(0, 1) - 20", "80 U(0, 1) - 25", "as the code; data.reading: text is as printed"),
     ("algorithm 2: b0 within the bracket, (x + 20) / 80", "b0 outside, (x + 25) / 80", "as the code"),
     ("the bound of a VAE", "log N(z; m, s^2) + log N(z'; 0, 1) - log N(z'; m, s^2)",
      "as the code; beside it the likelihood"),
     ("log(1 + e^p) as the variance", "as the standard deviation", "as the code"),
     ("-", "dropout is active while the interval is drawn", "off: it moves the mean width by a hundredth"),
     ("-", "one-sample KL of the weights", "in closed form: the same optimum, less variance"),
     ("-", "likelihood N(y; f, 0.1^2)", "the same; learned beside it")),
    (Table("Fresh data of algorithm 2: means over 20 data sets of 150, with standard errors",
           (*_HEAD, "epistemic outside / inside"), _scores("coverage")),
     Table("Diabetes (scikit-learn), y standardised: means over 20 splits, with standard errors",
           _HEAD, _scores("diabetes")),
     Table("No data on [-5, 25]: epistemic standard deviation over that where data are, 10 data sets",
           ("method", "in the gap", "outside"), _gaps)),
    ("The report has two figures and no numbers; what is read off them stands beside ours.",),
)  # fmt: skip
