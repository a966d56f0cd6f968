"""Records of experiments: one JSON file a seed, and beside it an .npz of what a figure needs that is no number."""

import io
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from vae.errors import DataError
from vae.files import write_atomically
from vae.reproduce.document import Arrays, Document, Number, Profile, Results, at

COMMITTED = Path("notebooks")  # the records that the repository holds


@dataclass(frozen=True)
class Record:
    """The results of one seed of an experiment, and how they were made."""

    config: dict[str, Any]  # resolved; empty if nothing was trained by train.py
    seed: int
    profile: Profile
    versions: dict[str, str]
    processor: str
    threads: int
    commit: str | None
    seconds: float
    results: Results
    arrays: Arrays = field(default_factory=dict)


Records = Mapping[str, Sequence[Record]]  # of each experiment by its name, over its seeds


def path_of(out: Path, profile: str, experiment: str, seed: int) -> Path:
    """Where a record lies."""
    return out / "records" / profile / experiment / f"seed_{seed}.json"


def write(file: Path, record: Record) -> None:
    """Write a record, its arrays first, so that a record is whole once its JSON is there."""
    values = asdict(record)
    if arrays := values.pop("arrays"):
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        write_atomically(file.with_suffix(".npz"), buffer.getvalue())
    write_atomically(file, (json.dumps(values, indent=1, allow_nan=False) + "\n").encode())


def read(file: Path) -> Record:
    """A record and its arrays; DataError if the file is none."""
    try:
        values, stored = json.loads(file.read_text()), file.with_suffix(".npz")
        arrays = dict(np.load(stored, allow_pickle=False)) if stored.exists() else {}
        return Record(**values, arrays=arrays)
    except (OSError, ValueError, TypeError, BadZipFile) as error:
        raise DataError(f"{file}: is not a record ({error}); delete it, and it is made again") from None


def chosen(document: Document, folders: Iterable[Path]) -> dict[str, list[Record]]:
    """The records of each experiment that has any, by seed: those of the paper profile if there are any, else quick.

    A record in an earlier folder comes before one of the same seed in a later one.
    """
    folders, found = list(folders), dict[str, list[Record]]()
    for experiment in document.experiments:
        for profile in ("paper", "quick"):
            files = [path_of(f, profile, experiment.name, seed) for seed in experiment.seeds for f in folders]
            by_seed = {file.name: file for file in reversed(files) if file.exists()}
            if by_seed:
                found[experiment.name] = sorted((read(file) for file in by_seed.values()), key=lambda r: r.seed)
                break
    return found


def over_seeds(found: Sequence[Record], *keys: str) -> Number:
    """The mean of a number over the seeds of an experiment, with its standard error if there are several."""
    values = [at(*keys)(record.results).mean for record in found]
    stderr = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return Number(statistics.fmean(values), stderr)


def arrays(found: Sequence[Record]) -> Arrays:
    """The arrays of the seed of an experiment that has them."""
    return next(record.arrays for record in found if record.arrays)
