"""From a config and a grid to the cells of a sweep, with all checks that can be made before training."""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vae.config import load_yaml, override, plain, read, with_values
from vae.data import load_data
from vae.errors import ConfigError, UsageError
from vae.files import UNSAFE
from vae.sweep.cell import Cell
from vae.training.build import build_for, choose_device, with_likelihood
from vae.training.checks import check
from vae.training.run_directory import other_settings
from vae.training.settings import Settings, read_settings

SEED = "train.seed"
Grid = Mapping[str, Sequence[Any]]


def cells(config: str | Path, grid: Grid, overrides: Sequence[str], folder: Path) -> list[Cell]:
    """Every cell of a grid over a config file; ConfigError if a value is wrong."""
    for key, given in grid.items():
        if any(assignment.partition("=")[0] == key for assignment in overrides):
            raise ConfigError(f"--grid {key}: is also given by --set; leave it out of one")
        if len(set(map(value_text, given))) < len(given):
            raise ConfigError(f"--grid {key}: a value is given twice")
    raw, made = override(load_yaml(config), overrides), list[Cell]()
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        name, settings = cell_name(values), read(Settings, with_values(raw, values), str(config), overrides, grid)
        made.append(Cell(name, plain(settings), folder / "cells" / f"{name}.yaml", folder / "runs" / name, values))
    return made


def check_cells(cells: Iterable[Cell], here: bool = True) -> None:
    """ConfigError if a cell cannot be trained; what its config leaves to defaults and to the data is filled in.

    Each data set is read once (and downloaded if missing, before several processes would do so), and a model is built
    for each config apart from the seed. `here`: the cells will be trained on this machine's devices.
    """
    data, checked = None, list[Settings]()
    for cell in sorted(cells, key=lambda cell: json.dumps(cell.config["data"])):
        settings = read_settings(cell.config)
        if data is None or data.settings != settings.data:
            data = load_data(settings.data)
        settings = with_likelihood(settings, data.kind, data.shape, data.doubt)
        cell.config.update(plain(settings))
        apart_from_seed = replace(settings, train=replace(settings.train, seed=0))
        if apart_from_seed not in checked:
            try:
                if here:
                    choose_device(settings.train.device, settings.train.precision)
                check(settings, data, build_for(settings, data))
            except ConfigError as error:
                raise ConfigError(f"{cell.name}: {error}") from None
            checked.append(apart_from_seed)


def check_directory(folder: Path, cells: Iterable[Cell]) -> None:
    """UsageError if a directory holds anything but these cells, or some of them: a sweep may only be added to."""
    elsewhere = "choose another directory with --out"
    if folder.is_file():
        raise UsageError(f"{folder}: is a file; --out names a directory")
    if folder.exists() and {file.name for file in folder.iterdir()} - {".lock"} and not (folder / "cells").exists():
        raise UsageError(f"{folder}: holds other files and is not a sweep; {elsewhere}")
    ours = {cell.file: cell for cell in cells}
    for file in sorted((folder / "cells").glob("*.yaml")):
        if file not in ours:
            raise UsageError(
                f"{folder}: holds a sweep with {file.stem}, which this --grid leaves out; repeat its values (you may "
                f"add more), or {elsewhere}"
            )
        changed = other_settings(read_settings(file), read_settings(ours[file].config))
        if changed:
            raise UsageError(f"{folder}: holds a sweep of another config: {', '.join(changed)} differ; {elsewhere}")


# ------------------------------------------------------------------------------------- names


def cell_name(values: Mapping[str, Any]) -> str:
    """The name of a cell; it does not depend on the order of the keys or on the rest of the grid."""
    short = short_names(values)
    texts = {short[key]: value_text(values[key]) for key in sorted(values)}
    name = ",".join(f"{key}={re.sub(UNSAFE, '-', text)}" for key, text in texts.items())
    if len(name) <= 150 and not any(re.search(UNSAFE, text) for text in texts.values()):
        return name
    return f"{name[:150]},{hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:8]}"


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key, or the whole key if two share that part."""
    last = {key: key.rpartition(".")[2] for key in keys}
    return {key: part if list(last.values()).count(part) == 1 else key for key, part in last.items()}


def value_text(value: Any) -> str:
    """A value as it is written in names and tables: 10, mlp, 512-256."""
    if isinstance(value, list) and not any(isinstance(inner, list | dict) for inner in value):
        return "-".join(map(value_text, value))
    return value if isinstance(value, str) else json.dumps(value)
