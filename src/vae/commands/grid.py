"""The cells of a sweep: the combinations of the grid's values, each with its settings and its run directory."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.config import dump, load_yaml, plain, read, with_values
from vae.errors import ConfigError, UsageError, VaeError
from vae.files import UNSAFE

if TYPE_CHECKING:
    from vae.training import Settings

SEED = "train.seed"


@dataclass(frozen=True)
class Cell:
    """One run of a sweep: its values of the grid's keys, its settings, and its run directory."""

    name: str
    values: Mapping[str, Any]
    settings: Settings
    path: Path

    @property
    def point(self) -> Mapping[str, Any]:
        """The values without the seed."""
        return {key: value for key, value in self.values.items() if key != SEED}


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole key if two share that part."""
    keys = list(keys)
    last = [key.rpartition(".")[2] for key in keys]
    return {key: name if last.count(name) == 1 else key for key, name in zip(keys, last, strict=True)}


def value_text(value: Any) -> str:
    """A value as it is written in names and tables: 10, mlp, 512-256."""
    if isinstance(value, list) and not any(isinstance(inner, list | dict) for inner in value):
        return "-".join(map(value_text, value))
    return value if isinstance(value, str) else json.dumps(value)


def cell_name(values: Mapping[str, Any]) -> str:
    """The name of a cell's directory; it does not depend on the order of the keys or on the rest of the grid."""
    short = short_names(values)
    texts = {key: value_text(values[key]) for key in sorted(values)}
    name = ",".join(f"{short[key]}={re.sub(UNSAFE, '-', text)}" for key, text in texts.items())
    if len(name) <= 150 and not any(re.search(UNSAFE, text) for text in texts.values()):
        return name
    return f"{name[:150]},{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]}"


def read_cells(
    config: str | Path, raw: dict[str, Any], overrides: Sequence[str], grid: Mapping[str, Sequence[Any]], folder: Path
) -> list[Cell]:
    """Every cell of a grid over a raw config; ConfigError names a setting that does not fit."""
    from vae.training import Settings

    cells: dict[str, Cell] = {}
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        settings = read(Settings, with_values(raw, values), str(config), overrides, grid)
        name = cell_name(values)
        if name in cells:
            twice = next(key for key, given in grid.items() if len({value_text(v) for v in given}) < len(given))
            raise ConfigError(f"--grid {twice}: a value is given twice")
        cells[name] = Cell(name, values, settings, folder / name)
    return list(cells.values())


def checked_cells(cells: Sequence[Cell], here: bool) -> list[Cell]:
    """The cells with their likelihoods; ConfigError, before any training, if one cannot be trained.

    Each data set is read once (and downloaded if missing, before several processes would do so), and a model is built
    for each combination apart from the seed. `here`: the cells will be trained on this machine's devices.
    """
    from vae.data import load_data
    from vae.training.build import build_model, choose_device, with_likelihood
    from vae.training.checks import check

    by_data: dict[str, list[int]] = {}
    for i, cell in enumerate(cells):
        by_data.setdefault(dump(plain(cell.settings.data)), []).append(i)
    checked = list(cells)
    for places in by_data.values():
        data, seen = load_data(cells[places[0]].settings.data), set()
        for i in places:
            cell, train = cells[i], cells[i].settings.train
            settings = with_likelihood(cell.settings, data.kind)
            checked[i] = replace(cell, settings=settings)
            point = json.dumps(cell.point)
            if point in seen:
                continue
            seen.add(point)
            try:
                if here:
                    choose_device(train.device, train.precision)
                check(settings, data, build_model(settings.model, data.shape, train.seed))
            except ConfigError as error:
                raise ConfigError(f"{cell.name}: {error}") from None
    return checked


def finished_evaluation(cell: Cell) -> dict[str, Any] | None:
    """The evaluation of a finished cell; None if the cell has yet to be trained or evaluated."""
    from vae.evaluation.report import read_evaluation

    record = read_evaluation(cell.path)
    return record if record and _finished_at(cell.path, cell.settings) == record["step"] else None


def _finished_at(path: Path, settings: Settings) -> int | None:
    """The step of the checkpoint that `load_run` opens, if this is a finished run of these settings; None if it is not
    finished, has other settings (apart from the places of the data and the device), or is not a run."""
    from vae.training.checkpoint import read_values
    from vae.training.loading import checkpoints
    from vae.training.progress import Progress
    from vae.training.run import plan_of
    from vae.training.run_directory import open_config, other_settings
    from vae.training.settings import read_settings

    try:
        theirs = read_settings(open_config(path))
        values: dict[str, Any] = {name: read_values(file) for name, file in checkpoints(path).items()}
        if "last" not in values or other_settings(theirs, settings):
            return None
        done = Progress(**values["last"]["progress"]).finished(plan_of(settings))
        return next(iter(values.values()))["step"] if done else None
    except (VaeError, KeyError, TypeError):
        return None


# ------------------------------------------------------------------------------------- the directory


def check_directory(out: Path, config: str, raw: dict[str, Any], grid: Mapping[str, Sequence[Any]]) -> None:
    """UsageError if a directory holds anything but this sweep, or a sweep to which this grid only adds values."""
    from vae.training import Settings
    from vae.training.run_directory import other_settings

    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: is a file; --out names a directory")
    file = out / "sweep.yaml"
    if not file.exists():
        if out.is_dir() and any(p.name not in (".lock", ".sweep.yaml.partial") for p in out.iterdir()):
            raise UsageError(f"{out}: holds other files and is not a sweep; choose another directory with --out")
        return
    theirs, before = _read(file)
    if before.keys() != grid.keys() or any(_texts(before[key]) - _texts(grid[key]) for key in before):
        given = " ".join(f"{key}={','.join(map(value_text, values))}" for key, values in before.items())
        raise UsageError(
            f"{out}: holds the sweep of --grid {given}; repeat these values (you may add more), or choose "
            "another directory with --out"
        )
    first = {key: values[0] for key, values in before.items()}
    old, new = (read(Settings, with_values(base, first), where) for base, where in ((theirs, str(file)), (raw, config)))
    changed = other_settings(old, new)
    if changed:
        raise UsageError(
            f"{out}: holds a sweep of another config: {', '.join(changed)} differ; choose another directory with --out"
        )


def _read(file: Path) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    record = load_yaml(file)
    config, grid = record.get("config"), record.get("grid")
    whole = (
        isinstance(config, dict) and isinstance(grid, dict) and all(isinstance(v, list) and v for v in grid.values())
    )
    if not whole:
        raise UsageError(f"{file}: is not what sweep.py wrote; restore it, or choose another directory with --out")
    return config, grid  # type: ignore[return-value]


def _texts(values: Iterable[Any]) -> set[str]:
    return {json.dumps(value, sort_keys=True) for value in values}
