"""The study as a whole: it trains a VAE, makes the tables, and writes them as Markdown, JSON and a figure."""

import json
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tqdm import tqdm

from vae.errors import UsageError
from vae.figures import save
from vae.files import write_atomically
from vae.reproduce.estimators.figure import draw
from vae.reproduce.estimators.gradients import Row, compare_against_data, compare_against_samples, compare_known
from vae.reproduce.estimators.signal_to_noise import compare_signal_to_noise, fitted_slopes
from vae.text import markdown_table, plus_minus
from vae.training import read_settings
from vae.training.run import train

T = TypeVar("T")
Tables = dict[str, list[Row]]  # by the keys of HEADINGS
HEADINGS = {
    "known": "E[x^2] over the mean theta of x ~ N(theta, 1): the gradient is 2 theta",
    "vae_noise": "The VAE, over the noise on one minibatch: variance is the trace of the covariance, bias is relative "
    "to the length of the gradient (of the ELBO; of L_K for iwae, dreg, stl)",
    "vae_minibatches": "The VAE, over noise and minibatches",
    "signal_to_noise": "A linear-Gaussian model: |exact mean| / deviation of the gradient of L_K",
    "slopes": "Slopes of the signal-to-noise ratio in K, and their limits in theory",
}

THETAS, NUM_SAMPLES, BATCH_SIZES = (0.0, 0.5, 1.0, 1.5, 2.0), (1, 2, 4, 8, 16), (1, 4, 16, 64)
KNOWN_SAMPLES, KNOWN_THETA = 4, 1.0  # each is fixed while the other varies
IMPORTANCE_SAMPLES = (16, 64, 256, 1024)
SAMPLES_OF = {
    **dict.fromkeys(("score_function", "score_function, running", "sgvb_a", "sgvb_b", "stl"), 1),
    **dict.fromkeys(("score_function, leave_one_out", "iwae", "dreg"), 5),
}


@dataclass(frozen=True)
class Study:
    """What is asked: the config of the VAE, the epochs of its training, and how many gradients to measure.

    `samples` is the number of gradients per estimator of E[x^2]: a fifth of these for the linear-Gaussian model, a
    hundredth for the VAE, on minibatches of `batch_size`.
    """

    config: str
    epochs: int
    samples: int
    batch_size: int
    seed: int


def compare(study: Study) -> Tables:
    """Train the VAE and measure every table; progress goes to stderr."""
    given = [f"train.epochs={study.epochs}", "train.samples=null", f"train.seed={study.seed}"]
    settings = read_settings(study.config, given)
    print(f"training {study.config}", file=sys.stderr)
    run = train(settings, None)
    n, seed = study.samples, study.seed
    cases = [(theta, KNOWN_SAMPLES) for theta in THETAS]
    cases += [(KNOWN_THETA, L) for L in NUM_SAMPLES if L != KNOWN_SAMPLES]
    known = [row for theta, L in _progress(cases, "E[x^2]") for row in compare_known(theta, L, n, seed)]
    counts = _progress(IMPORTANCE_SAMPLES, "linear-Gaussian model")
    ratios = [row for K in counts for row in compare_signal_to_noise(K, n // 5, seed)]
    split = run.data.evaluation_split("train")  # whose dynamic pixels are drawn once
    size = min(study.batch_size, len(split))
    noise = compare_against_samples(run.model, split, NUM_SAMPLES, size, n // 100, seed)
    sizes = [M for M in BATCH_SIZES if len(split) >= M]
    batches = compare_against_data(run.model, split, sizes, SAMPLES_OF, n // 100, seed)
    return {
        "known": known,
        "vae_noise": list(_progress(noise, "VAE, noise")),
        "vae_minibatches": list(_progress(batches, "VAE, minibatches")),
        "signal_to_noise": ratios,
        "slopes": fitted_slopes(ratios),
    }


def _progress(items: Iterable[T], name: str) -> Iterable[T]:
    return tqdm(items, desc=name, leave=True, file=sys.stderr, mininterval=1, dynamic_ncols=True)


def write(out: Path, study: Study, tables: Tables) -> list[Path]:
    """Write tables and figure into a directory; UsageError if it cannot be written to."""
    made = draw(tables, Path(study.config).stem)
    contents = {
        "estimators.md": _markdown(study, tables),
        "estimators.json": json.dumps({**vars(study), **tables}, indent=1, allow_nan=False) + "\n",
    }
    try:
        for name, text in contents.items():
            write_atomically(out / name, text.encode())
        return [*(out / name for name in contents), *save(made, out / "estimators")]
    except OSError as error:
        raise UsageError(f"{out}: cannot be written to: {error.strerror}") from None


def _markdown(study: Study, tables: Tables) -> str:
    """The tables for people: value ± standard error."""
    lines = ["# Estimators of gradients", "", ", ".join(f"{key} {value}" for key, value in vars(study).items()), ""]
    for key, rows in tables.items():
        columns = [c for c in rows[0] if not c.endswith("_stderr") and any(row[c] is not None for row in rows)]
        cells = [[_cell(row, column) for column in columns] for row in rows]
        lines += [f"## {HEADINGS[key]}", "", markdown_table(columns, cells)]
    return "\n".join(lines)


def _cell(row: Row, column: str) -> str:
    value = row[column]
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return plus_minus(value, row.get(f"{column}_stderr"), ".5g", ".2g")
