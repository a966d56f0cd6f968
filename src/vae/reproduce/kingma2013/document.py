"""Kingma & Welling 2013, "Auto-Encoding Variational Bayes", section 5 and appendices D to F."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from vae.reproduce.document import Chosen, Document, Figure, Number, Of, Quantity, Results, Table, at, below, less
from vae.reproduce.kingma2013 import figures as draw
from vae.reproduce.kingma2013.figures import AT_0_02, BY_256, PRELOADED, SIZES, WORDS, published
from vae.reproduce.kingma2013.measures import RATES
from vae.reproduce.kingma2013.settings import ALL, BOTH, EXPERIMENTS, FIGURE_3, READINGS, STEPS
from vae.text import plus_minus

NAMES = {"mnist": "MNIST", "frey": "Frey Face"}
SPLITS = ("train", "test")
HOW = {"": "", BY_256: " (x/256)", AT_0_02: " (step 0.02)"}

# ------------------------------------------------------------------------------------- numbers


def _log_interpolated(samples: list[float], values: list[float], x: float) -> float:
    """A curve at x, linear in log x between its points."""
    return float(np.interp(np.log(x), np.log(samples), values))


Curves = Callable[[Results, str], draw.Curve]


def _after(curves: Curves, ways: tuple[str, ...], split: str, x: float) -> Callable[[Results], Number]:
    """A curve after x samples, with the standard error over the data that it has at the end."""
    end = at("end", split, *ways)
    return lambda results: Number(_log_interpolated(*curves(results, split), x), end(results).stderr)


_bound_at, _log_p_at = partial(_after, draw.bound, ()), partial(_after, draw.log_p, ("hmc",))


# How far ours may lie from the paper's, stated before the runs. At 10^6 its curves on MNIST lie where a step of 0.01
# ends up, and 0.02 is 6 nats ahead; at 10^7 the two are 3 nats apart. Another split of the faces is +- 7 nats.
TOLERANCE = {("mnist", 1e6): 8.0, ("mnist", 1e7): 2.0, ("frey", 1e6): 25.0, ("frey", 1e7): 20.0}
OPEN = "the paper leaves the step size, the start of Adagrad and the scale of pixels open"
WHY = {"mnist": OPEN, "frey": f"another random split is worth 7 nats, the reading 1.5; {OPEN}"}
TIME = "time: 10^7 training samples were run"
SLOW = "the paper's updates of MCEM are a reading of its counter: 5 of the whole training set in a sweep"


def _values_of_figure_2() -> Iterator[Quantity]:
    for (panel, algorithm, split), (samples, values) in published().items():
        data, d = panel.split("_")
        if int(d) not in SIZES[data]:
            continue  # figure 3
        words = f"{NAMES[data]}, {WORDS[algorithm]}, N_z = {d}: {split} bound at"
        for x in (1e6, 1e7):
            theirs = f"{_log_interpolated(samples, values, x):.1f}"
            yield Quantity(
                "2", f"{words} 10^{int(np.log10(x))}", (f"{data}_{d}_{algorithm}",), _bound_at(split, x), theirs,
                TOLERANCE[data, x], WHY[data], headline=False,
            )  # fmt: skip
        text = f"{words} the end of the curve, {samples[-1]:.2g}"
        yield Quantity("2", text, (), _bound_at(split, 1e8), f"{values[-1]:.1f}", short=TIME)


def _values_of_figure_3() -> Iterator[Quantity]:
    for (run, (n, algorithm, how)), split in itertools.product(FIGURE_3.items(), SPLITS):
        words = f"MNIST, {WORDS[algorithm]}, N = {n:,}{HOW[how]}: {split} log p(x) at"
        samples, values = published()[f"mnist_{n}", algorithm, split]
        tolerance, reason = (10.0, SLOW) if (algorithm, n) == ("mcem", 50000) else (2.0, OPEN)
        for x, power in ((1e6, "10^6"), (1e7, "10^7"), (6e7, "6 10^7")):
            if x >= samples[0]:  # where the paper's curve has begun
                theirs = f"{_log_interpolated(samples, values, x):.1f}"
                yield Quantity(
                    "3", f"{words} {power}", (run,), _log_p_at(split, x), theirs, tolerance, reason,
                    headline=split == "test" and x == 6e7 and not how,
                )  # fmt: skip


def _within(limit: float, of: Callable[..., Number]) -> Of:
    """How far a number stays below a limit in size."""
    return lambda *results: limit - abs(of(*results))


END = at("end", "test")
claim = partial(Quantity, "claims", claim=True)


def _of_both_algorithms() -> Iterator[Quantity]:
    """AEVB beside wake-sleep, and both beside MCEM."""
    for data, sizes in SIZES.items():
        for d in sizes:
            pair, words = (f"{data}_{d}_aevb", f"{data}_{d}_wake_sleep"), f"{NAMES[data]}, N_z = {d}: AEVB"
            faster = f"{words} converges faster than wake-sleep (test bound at 10^6)"
            yield claim(faster, pair, less(_bound_at("test", 1e6)))
            yield claim(f"{words} reaches a better bound than wake-sleep (test, 10^7)", pair, less(END))
    yield claim(
        "MCEM is no on-line algorithm: for N = 50,000 AEVB is ahead after 6 10^7 samples (test log p(x))",
        ("n50000_aevb", "n50000_mcem"), less(_log_p_at("test", 6e7)),
    )  # fmt: skip
    yield Quantity(
        "claims", "N = 1,000: MCEM less AEVB after 6 10^7 samples (test log p(x))", ("n1000_mcem", "n1000_aevb"),
        less(_log_p_at("test", 6e7)), "1.6", 1.0, OPEN, headline=False,
    )  # fmt: skip


def _of_sizes() -> Iterator[Quantity]:
    """What latents, samples per datum and hidden units matter, on MNIST; and of what size the estimates' noise is."""
    yield claim(
        "superfluous latents do not overfit: N_z = 200 loses less than 1 nat to N_z = 20 (MNIST, test, 10^7)",
        ("mnist_20_aevb", "mnist_200_aevb"), lambda *found: 1.0 - less(END)(*found),
    )  # fmt: skip
    units = "little sensitivity to the hidden units: {} for 500 change less than 2 nats"
    l5 = "one sample per datum suffices with M = 100: five change less than 1 nat"
    for name, text, limit in ("l5", l5, 1.0), ("h250", units.format(250), 2.0), ("h1000", units.format(1000), 2.0):
        yield claim(
            f"{text} (MNIST, N_z = 20, test, 2 10^6)", ("mnist_20_aevb", f"mnist_20_{name}"),
            _within(limit, less(_bound_at("test", 2e6))),
            why="Adagrad's first steps overshoot with 1,000 units" if name == "h1000" else "",
        )  # fmt: skip
    yield claim(
        "the variance of the estimated mean bound is below 1 (MNIST, N_z = 20, test)", ("mnist_20_aevb",),
        below(1.0, "variance", "of_the_mean"),
    )  # fmt: skip
    yield Quantity(
        "claims", "variance of a single datum's estimated bound (MNIST, N_z = 20, L = 1)", ("mnist_20_aevb",),
        at("variance", "of_a_datum"),
    )  # fmt: skip


def _of_estimates_of_log_p() -> Iterator[Quantity]:
    """Appendix D and importance sampling beside what is exact."""
    ways = ("hmc", "appendix D", ""), ("is", "importance sampling", "the proposal misses parts of p(z|x)")
    for n in (1000, 50000):
        for method, words, why in ways:
            for algorithm in ALL:
                yield claim(
                    f"{words} is within .5 nats of quadrature ({WORDS[algorithm]}, N = {n:,}, test)",
                    (f"n{n}_{algorithm}",), _within(0.5, at("end", "test", f"{method}_less_quadrature")), why=why,
                )  # fmt: skip
    off = at("appendix_d_less_ais")
    for d in (2, 3, 5, 10, 20):
        within = "within .5 nats of" if d < 5 else "more than .5 nats off"
        yield claim(
            f"appendix D is for fewer than 5 latents: at {d} it is {within} annealed importance sampling (AEVB)",
            (f"mnist_{d}_aevb",), _within(0.5, off) if d < 5 else lambda results: abs(off(results)) - 0.5,
            why="with chains begun at q(z|x), it is as near at 5 and 10",
        )  # fmt: skip


def _of_few_data_and_faces() -> Iterator[Quantity]:
    """Full variational Bayes beside MAP; what a split, a step, and a model that ignores z are worth on the faces."""
    few, gap = ("few_map", "few_full_vb"), less(lambda results: at("end", "train")(results) - END(results))
    yield claim("N = 1,000: full VB overfits less than MAP (train less test bound)", few, gap)
    better = "N = 1,000: full VB has the better test bound"
    yield claim(better, few[::-1], less(END), why="that of full VB still rises at 10^7 samples")
    run, pixels = ("frey_10_wake_sleep",), "independent Gaussian pixels"
    for x, power in ((1e6, "10^6"), (1e7, "10^7")):
        yield claim(
            f"Frey Face: wake-sleep learns what ignores z: within 10 nats of {pixels} (N_z = 10, test, {power})", run,
            _within(10.0, lambda found, x=x: Number(  # both on the same data
                _log_interpolated(*draw.bound(found, "test"), x) - found["factorial"]["test"], 0.0)),
            why="after 2.5 10^6 samples it learns more; not explained",
        )  # fmt: skip
    ignored = f"Frey Face: {pixels} beside the paper's wake-sleep (train)"
    yield Quantity("claims", ignored, run, at("factorial", "train"), "578", 10.0, WHY["frey"], headline=False)
    yield Quantity(
        "claims", "Frey Face, N_z = 10: test bound of the random split less that of blocks of frames",
        ("frey_10_aevb", "frey_10_aevb_block"), less(END),
    )  # fmt: skip


def _of_readings() -> Iterator[Quantity]:
    """Figure 2 at other steps and with another start of Adagrad; whether the steps of the search are best at first."""
    for name, (data, d, algorithm, rate, start) in READINGS.items():
        theirs = _log_interpolated(*published()[f"{data}_{d}", algorithm, "test"], 1e7)
        how = (", Adagrad begun by ten minibatches" if start else "") + (", x/256" if BY_256 in start else "")
        yield Quantity(
            "2", f"{NAMES[data]}, {WORDS[algorithm]}, N_z = {d} (step {rate}{how}): test bound at 10^7",
            (name,), _bound_at("test", 1e7), f"{theirs:.1f}", TOLERANCE[data, 1e7],
            WHY[data], headline=start == PRELOADED and data == "mnist" and d in (3, 20),
        )  # fmt: skip
    for name, rate in STEPS.items():
        lead = partial(_lead, chosen=str(rate))
        why = "it is best for 20 latents, and taken for all"
        yield claim(f"the step {rate} is the best at first ({name})", (f"search_{name}",), lead, why=why)


def _lead(results: Results, chosen: str) -> Number:
    """The training bound of the chosen rate less the best of the others, of those that do not explode."""
    found = {rate: value for rate, value in results["bound"].items() if value is not None}
    return Number(found.pop(chosen, -np.inf) - max(found.values(), default=-1e9), 0.0)


PARTS = (
    _values_of_figure_2, _of_readings, _values_of_figure_3,
    _of_both_algorithms, _of_sizes, _of_estimates_of_log_p, _of_few_data_and_faces,
)  # fmt: skip

# ------------------------------------------------------------------------------------- tables of the report


def _search(records: Chosen) -> list[list[str]]:
    """The training bound by step size."""
    return [
        [name, *("explodes" if (value := record.results["bound"][str(rate)]) is None else f"{value:.1f}"
                 for rate in RATES), f"{taken}"]
        for name, taken in STEPS.items() for record in records.get(f"search_{name}", ())
    ]  # fmt: skip


def _times(records: Chosen) -> list[list[str]]:
    """Minutes per million training samples."""
    return [
        [name, f"{np.mean([record.results['minutes_per_million'] for record in of]):.2f}", of[0].processor]
        for name, of in records.items() if "minutes_per_million" in of[0].results
    ]  # fmt: skip


def _ways(records: Chosen) -> list[list[str]]:
    """log p(x) at the end by three ways."""
    rows = []
    for name in FIGURE_3:
        for record in records.get(name, ()):
            for split in SPLITS:
                of, text = record.results["end"][split], [name, str(record.seed), split]
                keys = ("hmc", "is", "quadrature", "hmc_less_quadrature", "is_less_quadrature")
                rows.append(text + [plus_minus(of[key]["mean"], of[key]["stderr"], ".2f", ".2f") for key in keys])
    return rows


TABLES = (
    Table("log p(x) at the end, by three ways (± over the data; quadrature and the differences: the first 100)",
          ("setting", "seed", "split", "appendix D", "importance sampling, K = 5,000", "quadrature",
           "appendix D - quadrature", "importance sampling - quadrature"), _ways),
    Table("The search of the step size: training bound after 300,000 samples (MCEM: log p(x), by appendix D)",
          ("setting", *map(str, RATES), "taken"), _search),
    Table("Minutes per million training samples on one thread (the paper: 20 to 40)",
          ("setting", "minutes", "processor"), _times),
)  # fmt: skip

DETAILS = (
    ("MNIST", "grey levels under cross-entropy, as far as the published bounds tell", "likelihood: grey_cross_entropy"),
    ("nothing on the scale of pixels", "k / 256 in the file of MNIST that came with Theano (pylearn2, issue 93)",
     "k / 255; figures 2 and 3 also with k / 256 (faces: not run; it would add 2.2 nats)"),
    ("parameters from N(0, 0.01)", "standard deviation 0.01: so the untrained bounds say", "init: normal"),
    ("minibatches of M = 100", "the counter of the Frey curves advances by 500", "batch_size: 500 (MNIST: 100)"),
    ("nothing on the split of the faces", "random: test values of blocks would be lower",
     "split: random, 1,500 and 465; a block split beside it"),
    ("MAP with prior N(0, I)", "the early code has it on weight matrices only", "on all parameters, as the text says"),
    ("Adagrad, step from {0.01, 0.02, 0.1}", "not told which; others' early code begins its sums by ten minibatches",
     "the search, at one size for all, sums from 0; MNIST also as that code, at 0.02; Frey Face at 0.02, as it seems"),
    ("training curves", "means since the last entry of the log, from before the updates", "the same"),
    ("MCEM: 10 leapfrog steps, 5 weight updates", "the counter advances by 15 N in a sweep",
     "one trajectory for each datum, 5 updates of the whole training set; samples are counted 15 times"),
    ("nothing on MCEM's chains", "one trajectory in a sweep leaves no burn-in", "chains: persistent"),
    ("nothing on the order of wake and sleep", "-", "both in one step, one dream for each datum"),
    ("appendix D: a density fitted to samples", "not told which, nor where the chains begin",
     "a Gaussian, fitted to the first half of four chains begun by importance resampling, evaluated on the second "
     "(2 to 20 latents: begun at q(z|x), fitted to two chains, evaluated on two)"),
)  # fmt: skip

_F2 = tuple(f"{data}_{d}_{a}" for data, sizes in SIZES.items() for d in sizes for a in BOTH)
_BEGUN = tuple(name for name in READINGS if name.endswith(BY_256))
FIGURES = (
    Figure("2", "The bound per datum against training samples; thick and pale: the paper's curves.", _F2 + _BEGUN,
           draw.draw_figure_2,
           "At the steps of the search, Adagrad's first updates overshoot, and wake-sleep on MNIST ends 3 to 5 nats "
           "below the paper. With Adagrad begun by ten minibatches (step 0.02), both algorithms follow the paper up to "
           "20 latents, AEVB up to 200; on grey levels over 256 (dotted) too, six of ten .3 to .8 nats lower. But one "
           "seed of wake-sleep overshoots and loses 6 nats, and with 200 latents it loses 8. Not explained: on the "
           "faces it leaves what ignores z, which the paper's never does.", partial=True),
    Figure("2 beyond", "Beyond the paper's frame: the test bound on Frey faces falls after 10^8 samples.",
           tuple(f"frey_{d}_aevb" for d in SIZES["frey"]), draw.draw_beyond, partial=True),
    Figure("3", "log p(x), estimated as in appendix D, against training samples evaluated (MCEM: 15 a datum a sweep).",
           tuple(FIGURE_3), draw.draw_figure_3,
           "All three algorithms lie as in the paper, at N = 1,000 each 2 (train) and 1 to 3 nats (test) above it. On "
           "grey levels over 256 (one seed, dotted) AEVB's training values are 1.5 nats lower, the others stay. At N = "
           "50,000 AEVB is 7 (train) and 9 nats (test) above it at the search's step, 0.1. At a step of 0.02 its "
           "training values agree, and its test values are 4 to 5 nats better. The rest is unexplained.", partial=True),
    Figure("4", "Learned manifolds of two latents.", ("frey_2_aevb", "mnist_2_aevb"), draw.draw_figure_4, partial=True),
    Figure("5", "Samples of models of MNIST.", tuple(f"mnist_{d}_aevb" for d in (2, 5, 10, 20)), draw.draw_figure_5,
           partial=True),
)  # fmt: skip

KINGMA2013 = Document(
    "kingma2013", "Kingma & Welling 2013: Auto-Encoding Variational Bayes", EXPERIMENTS,
    tuple(quantity for part in PARTS for quantity in part()), FIGURES, DETAILS, TABLES,
    notes=(
        "a claim with a limit shows its margin, the limit less the size of what was measured: it holds above 0",
        "figure 2 goes to 10^7 training samples; rows at 10^8 were not run, for time; n is the number of seeds",
    ),
)  # fmt: skip
