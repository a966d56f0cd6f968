"""A document's numbers beside ours: the difference with its 95 % interval, and a verdict."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from scipy.special import stdtrit

from vae.errors import UsageError
from vae.reproduce.document import Document, Number, Quantity
from vae.reproduce.records import Record, Records

Row = dict[str, Any]
INFINITE = 1e6  # degrees of freedom of a standard error over the test data


def table(document: Document, records: Records) -> list[Row]:
    """A row for each quantity of a document, from its records, in the order of its figures."""
    labels = document.labels()
    ordered = sorted(document.quantities, key=lambda quantity: labels.index(quantity.figure))
    return [row(document, quantity, records) for quantity in ordered]


def of_figure(document: Document, rows: Sequence[Row], figure: str | None) -> list[Row]:
    """The rows of a figure, or all. UsageError if the document has no such figure."""
    if figure is not None and figure not in document.labels():
        known = ", ".join(document.labels())
        raise UsageError(f"--figure {figure}: {document.name} has none of that name, only {known}")
    return [row for row in rows if figure in (None, row["figure"])]


def row(document: Document, quantity: Quantity, records: Records) -> Row:
    """One quantity: the mean of ours over the seeds, its standard error, the 95 % interval, the verdict and why.

    Where the document has a number, the interval is of ours less the published one, else that of ours. The standard
    error is over the seeds, of a single seed over the test data; where the tests differ from the document's (the first
    1,000 images), over both.
    """
    found = _by_seed(document, quantity, records)
    values = [_number(quantity.of(*(record.results for record in of_seed))) for of_seed in found.values()]
    quick = any(record.profile == "quick" for of_seed in found.values() for record in of_seed)
    ours, stderr, half = _summary(values, quantity.part)
    shift = float(quantity.published) if quantity.published is not None else 0.0
    interval = None if ours is None or half is None else [ours - shift - half, ours - shift + half]
    verdict, reason = _verdict(quantity, ours, interval, quick)
    return {
        "figure": quantity.figure,
        "quantity": quantity.text,
        "published": None if quantity.published is None else shift,
        "ours": ours,
        "stderr": stderr,
        "interval": interval,
        "n": len(found),
        "seeds": list(found),
        "verdict": verdict,
        "reason": reason,
        "profile": "quick" if quick else "paper" if found else None,
        "command": f"python scripts/reproduce.py {document.name} --figure '{quantity.figure}' --profile paper",
    }


def _by_seed(document: Document, quantity: Quantity, records: Records) -> dict[int, list[Record]]:
    """The records of a quantity's experiments for each seed that all have."""
    single = {e.name: e.seeds[0] for e in document.experiments if len(e.seeds) == 1}  # their record serves every seed
    found = {name: {record.seed: record for record in records.get(name, ())} for name in quantity.experiments}
    rows = {
        seed: [record for name, of in found.items() if (record := of.get(seed) or of.get(single.get(name, seed)))]
        for seed in sorted(set().union(*found.values()))
    }
    return {seed: row for seed, row in rows.items() if len(row) == len(found)}


def _number(value: Number | float) -> Number:
    return value if isinstance(value, Number) else Number(float(value))


def _summary(values: Sequence[Number], part: bool) -> tuple[float | None, float | None, float | None]:
    """The mean over the seeds, its standard error, and half the width of its 95 % interval (Student's t)."""
    if not values:
        return None, None, None
    means, over_data = [v.mean for v in values], values[0].stderr
    n, mean = len(means), statistics.fmean(means)
    stderr = statistics.stdev(means) / math.sqrt(n) if n > 1 else over_data
    half = None if stderr is None else float(stdtrit(n - 1 if n > 1 else INFINITE, 0.975)) * stderr
    if part and n > 1 and stderr is not None and half is not None and over_data is not None:
        stderr, half = math.hypot(stderr, over_data), math.hypot(half, 1.96 * over_data)
    return mean, stderr, half


def _verdict(quantity: Quantity, ours: float | None, interval: Sequence[float] | None, quick: bool) -> tuple[str, str]:
    """Whether ours agrees with the document, and why."""
    if ours is None or quick or quantity.short:
        missing = "no record yet" if ours is None else "only the quick profile was run"
        return "not replicated", quantity.short or missing
    if quantity.claim:
        if interval is None:
            return "mixed", "a single seed has no interval"
        if interval[0] > 0:
            return "holds", ""
        verdict, found = ("does not hold", "lies below") if interval[1] < 0 else ("mixed", "holds")
        return verdict, quantity.why or f"the interval {found} 0"
    if quantity.published is None:
        return "measured", "no number in the document"
    decimals = len(quantity.published.partition(".")[2])
    if interval is not None and interval[0] <= 0 <= interval[1]:
        return "agrees", "the interval of the difference holds 0"
    if round(ours, decimals) == float(quantity.published):
        return "agrees", "ours rounds to the published number"
    if abs(ours - float(quantity.published)) <= quantity.tolerance:
        return "agrees", f"within {quantity.tolerance:g}: {quantity.why}"
    return "differs", quantity.why or "unexplained"
