"""A document as data: the experiments behind its figures and numbers, what it published, and what it leaves unsaid."""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from matplotlib.figure import Figure as Picture
from numpy.typing import NDArray

from vae.data import Data, load_data
from vae.training.loading import LoadedRun
from vae.training.run_directory import history
from vae.training.settings import Settings

Profile = Literal["quick", "paper"]
Results = dict[str, Any]  # numbers for JSON; a number with a standard error over the test data is a `Number`
Arrays = dict[str, NDArray[Any]]  # what a figure needs that is no number


class Number(NamedTuple):
    """The value of one seed, and its standard error over the test data if it has one.

    A difference has the standard error of independent values, which is too large for those of the same data; a plain
    number is exact.
    """

    mean: float
    stderr: float | None = None

    def __radd__(self, other: float) -> "Number":
        return Number(other + self.mean, self.stderr)

    def __sub__(self, other: "Number | float") -> "Number":
        mean, stderr = other if isinstance(other, Number) else (other, 0.0)
        unknown = self.stderr is None or stderr is None
        return Number(self.mean - mean, None if unknown else math.hypot(self.stderr or 0.0, stderr or 0.0))

    def __rsub__(self, other: float) -> "Number":
        return Number(other - self.mean, self.stderr)

    def __abs__(self) -> "Number":
        return Number(abs(self.mean), self.stderr)


def at(*keys: str) -> Callable[[Results], Number]:
    """What reads a number of a record by its keys: a plain one, or {mean, stderr} over the test data."""

    def read(results: Results) -> Number:
        value = functools.reduce(lambda inner, key: inner[key], keys, results)
        return Number(value["mean"], value["stderr"]) if isinstance(value, Mapping) else Number(value)

    return read


def below(limit: float, *keys: str) -> Callable[[Results], Number]:
    """By how much an exact number of a record stays below a limit."""
    return lambda results: Number(limit - at(*keys)(results).mean, 0.0)


def less(of: Callable[[Results], Number]) -> Callable[[Results, Results], Number]:
    """The value of the first experiment less that of the second."""
    return lambda first, second: of(first) - of(second)


@dataclass(frozen=True)
class Made:
    """What the results of a seed of an experiment are measured on: its settings and its trained run, if it has them."""

    seed: int
    quick: bool
    pictures: bool  # whether arrays are wanted: for one seed of a setting
    given: Settings | None = None
    trained: LoadedRun | None = None
    folder: Path = Path()  # for what it trains itself
    say: Callable[[str], None] = print  # how far it is

    @property
    def settings(self) -> Settings:
        """The settings of an experiment with a config."""
        assert self.given is not None, "the experiment has no config"
        return self.given

    @property
    def run(self) -> LoadedRun:
        """The run of an experiment that is trained."""
        assert self.trained is not None, "the experiment is not trained"
        return self.trained

    @functools.cached_property
    def data(self) -> Data:
        """The data of the settings."""
        return load_data(self.settings.data)

    @functools.cached_property
    def curve(self) -> list[dict[str, Any]]:
        """The training metrics of the run, a line per epoch."""
        return [line for line in history(self.run.path) if line["split"] == "train"]


@dataclass(frozen=True)
class Experiment:
    """A setting whose results, by `measure`, are a record for each seed.

    It is trained by train.py from a config unless `trained` is false. `seeds` are those of the paper profile, which
    takes `minutes` per seed on one thread; the quick profile trains the first for one epoch. The
    record of an experiment with a single seed serves all seeds of others.
    """

    name: str
    measure: Callable[[Made], tuple[Results, Arrays]]
    config: str = ""  # a file of configs/
    settings: Mapping[str, Any] = field(default_factory=dict)  # which replace those of the file
    seeds: tuple[int, ...] = (0, 1, 2)
    minutes: float = 1.0
    trained: bool = True

    def of(self, profile: Profile, seed: int) -> dict[str, Any]:
        """The settings of a seed that replace those of the config file."""
        return {
            **self.settings,
            **({"train.epochs": 1, "train.samples": None} if profile == "quick" else {}),
            "train.seed": seed,
        }


Of = Callable[..., Number | float]  # the results of a seed, of each experiment in turn


@dataclass(frozen=True)
class Quantity:
    """A number of the document, or a claim, which holds if the value is greater than 0.

    `published` is as it stands in the document, so that its digits are known. `tolerance` is how far ours may lie from
    it because of how it was read off or rounded, as `why` says; `why` also explains a difference. `short` says why what
    was run is no replication. `part`: our test data are a part of the document's, whose error over the data counts too.
    `headline`: whether README.md shows it, if it is published.
    """

    figure: str
    text: str
    experiments: tuple[str, ...]
    of: Of
    published: str | None = None
    tolerance: float = 0.0
    why: str = ""
    claim: bool = False
    short: str = ""
    part: bool = False
    headline: bool = True


Chosen = Mapping[str, Any]  # the records of each experiment by its name, a list over seeds


@dataclass(frozen=True)
class Figure:
    """A figure of the document, drawn from records alone, with the document's axes and order."""

    name: str  # as in the document: 4.1
    caption: str
    experiments: tuple[str, ...]
    draw: Callable[[Chosen], Picture]
    seen: str = ""  # what the eye finds beside the document's description
    partial: bool = False  # drawn also while records are missing


@dataclass(frozen=True)
class Table:
    """A table of the report that is not of single numbers: its columns, and its rows from the records."""

    title: str
    columns: tuple[str, ...]
    rows: Callable[[Chosen], list[list[str]]]


@dataclass(frozen=True)
class Document:
    """A document that `reproduce.py NAME` reproduces."""

    name: str
    title: str
    experiments: tuple[Experiment, ...]
    quantities: tuple[Quantity, ...]
    figures: tuple[Figure, ...]
    details: tuple[tuple[str, str, str], ...] = ()  # where text and code disagree: the text, the code, ours
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()  # what is replicated, what is not, and why

    def needed(self, figure: str | None) -> tuple[Experiment, ...]:
        """The experiments behind a figure, or all."""
        if figure is None:
            return self.experiments
        behind = [f.experiments for f in self.figures if f.name == figure]
        behind += [q.experiments for q in self.quantities if q.figure == figure]
        return tuple(e for e in self.experiments if any(e.name in names for names in behind))

    def labels(self) -> list[str]:
        """What `--figure` may name, in the order of the document."""
        return list(dict.fromkeys([*(f.name for f in self.figures), *(q.figure for q in self.quantities)]))
