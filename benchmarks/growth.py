"""step.py --growth: the time of a step, of an epoch, and memory, against the sizes that they grow with."""

import math
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from typing import Any

import torch
from inputs import in_whole_batches
from loops import plain_step
from timing import median_seconds, peak_memory_mb, seconds_per_call

from vae.data import Data, Split
from vae.errors import ConfigError
from vae.schema import Part
from vae.training import Settings
from vae.training.build import choose_device

FACTORS = (1 / 4, 1 / 2, 1, 2, 4)  # of widths and batch size
FRACTIONS = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)  # of the training data
LATENTS, SAMPLES = (2, 8, 32, 128, 512), (1, 2, 4, 8, 16)
ROUND_SECONDS = 0.15

Cases = Iterable[tuple[int, Settings]]  # sizes, and the settings of each


def _latents(settings: Settings) -> Cases:
    return ((n, replace(settings, model=replace(settings.model, latent_dim=n))) for n in LATENTS)


def _widths(settings: Settings) -> Cases:
    """All hidden layers and channels by the factors; the widest of the encoder names the case."""

    def scaled(part: Part, factor: float) -> Part:
        options = dict(part.options)
        for key in options.keys() & {"hidden", "channels"}:
            options[key] = tuple(max(1, round(factor * n)) for n in options[key])
        return replace(part, options=options)

    for factor in FACTORS:
        encoder, decoder = (scaled(part, factor) for part in (settings.model.encoder, settings.model.decoder))
        widths = [*encoder.options.get("hidden", ()), *encoder.options.get("channels", ())]
        if widths:
            yield max(widths), replace(settings, model=replace(settings.model, encoder=encoder, decoder=decoder))


def _samples(settings: Settings) -> Cases:
    objective = settings.objective
    parts = (replace(objective, options={**objective.options, "num_samples": n}) for n in SAMPLES)
    return ((n, replace(settings, objective=part)) for n, part in zip(SAMPLES, parts, strict=True))


def _batch_sizes(settings: Settings) -> Cases:
    sizes = (max(2, round(factor * settings.train.batch_size)) for factor in FACTORS)
    return ((n, replace(settings, train=replace(settings.train, batch_size=n))) for n in sizes)


# What the time of a step is measured against, the other sizes as the config has them.
AXES: dict[str, Callable[[Settings], Cases]] = {
    "latents": _latents,
    "hidden width": _widths,
    "samples L": _samples,
    "batch size": _batch_sizes,
}


def growth(settings: Settings, data: Data) -> dict[str, dict[str, Any]]:
    """For each axis the sizes, what was measured at each, and its slope on logarithmic axes: 1 where it is linear."""
    found = {}
    for name, cases in AXES.items():
        print(f"time of a step against {name}", file=sys.stderr)
        found[name] = _against(cases(settings), data)
    print("time of an epoch, and memory, against training data", file=sys.stderr)
    return {**found, "training data": _against_data(settings, data)}


def _against(cases: Cases, data: Data) -> dict[str, Any]:
    sizes, times = [], []
    for size, settings in cases:
        if settings.train.batch_size > len(data.train):
            continue
        try:
            step = plain_step(*in_whole_batches(settings, data))[0]
        except ConfigError:  # a size that the objective cannot have: one sample, where its baseline needs others
            continue
        sizes.append(size)
        times.append(1000 * median_seconds(step, choose_device(settings.train.device), ROUND_SECONDS))
    return _columns(sizes, step_ms=times)


def _against_data(settings: Settings, data: Data) -> dict[str, Any]:
    """The time of an epoch, and the peak memory of a process that trains on this many data."""
    size = settings.train.batch_size
    counts = sorted({max(1, round(fraction * len(data.train) / size)) * size for fraction in FRACTIONS})
    times = [_epoch_seconds(settings, replace(data, train=data.train.first(count))) for count in counts]
    return _columns(counts, epoch_s=times, memory_mb=_peaks(settings, data, counts))


def _epoch_seconds(settings: Settings, data: Data) -> float:
    device, (step, _) = choose_device(settings.train.device), plain_step(settings, data)
    seconds_per_call(step, 2, device)  # warm
    batches = len(data.train) // settings.train.batch_size
    return batches * seconds_per_call(step, batches, device)


def _peaks(settings: Settings, data: Data, counts: Sequence[int]) -> list[float | None]:
    """Peak memory, 10^6 bytes, of training on this many data: in a new process each, since a peak never falls."""
    one = Split(data.train.x[:1].clone(), None, torch.arange(1), data.train.scale, data.train.dynamic)
    small = replace(data, train=one, test=one, validation=None)  # what travels to the processes
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as processes:
        return list(processes.map(_peak, *zip(*((settings, small, count) for count in counts), strict=True)))


def _peak(settings: Settings, data: Data, count: int) -> float | None:
    """Peak memory of this process after a few steps on this many copies of a datum."""
    x = data.train.x.expand(count, *data.shape).contiguous()
    step, _ = plain_step(settings, replace(data, train=replace(data.train, x=x, index=torch.arange(count))))
    for _ in range(3):
        step()
    return peak_memory_mb(choose_device(settings.train.device))


def _columns(sizes: list[int], **measured: Sequence[float | None]) -> dict[str, Any]:
    slopes = {f"{name}_slope": slope(sizes, values) for name, values in measured.items()}
    return {"sizes": sizes, **measured, **slopes}


def slope(sizes: Sequence[int], values: Sequence[float | None]) -> float | None:
    """The exponent b of the power law a n^b nearest to the values, by least squares on logarithms; None for a point."""
    known = [(math.log(n), math.log(v)) for n, v in zip(sizes, values, strict=True) if v]
    return statistics.linear_regression(*zip(*known, strict=True)).slope if len(known) > 1 else None


NAMES = {"step_ms": "step, ms", "epoch_s": "epoch, s", "memory_mb": "peak memory, MB"}


def growth_table(found: dict[str, dict[str, Any]]) -> str:
    """The measurements for people: a line of sizes, and below it one for each thing measured."""
    lines = []
    for axis, columns in found.items():
        lines += ["", f"{axis:18}" + "".join(f"{n:>10,}" for n in columns["sizes"]) + "     slope"]
        for key in filter(columns.__contains__, NAMES):
            cells = "".join("         -" if value is None else f"{value:10.4g}" for value in columns[key])
            exponent = columns[f"{key}_slope"]
            lines.append(f"{NAMES[key]:18}{cells}" + (f"{exponent:10.2f}" if exponent is not None else ""))
    return "\n".join([*lines, "", "a slope of b: the cost grows as size^b"])
