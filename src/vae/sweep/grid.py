"""From a config and a grid to the cells of a sweep, with all checks that can be made before training."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vae.config import dump, load_yaml, override, plain, read, with_values
from vae.data import load_data
from vae.errors import ConfigError, UsageError, VaeError
from vae.evaluation.report import read_evaluation
from vae.sweep.cell import Cell, cell_name, value_text
from vae.training.build import build_model, choose_device, with_likelihood
from vae.training.checkpoint import read_values
from vae.training.checks import check
from vae.training.loading import checkpoints
from vae.training.progress import Progress
from vae.training.run import plan_of
from vae.training.run_directory import open_config, other_settings
from vae.training.settings import Settings, read_settings

Grid = Mapping[str, Sequence[Any]]


def cells(config: str | Path, grid: Grid, overrides: Sequence[str], folder: Path, *, here: bool = True) -> list[Cell]:
    """Every cell of a grid over a config file; ConfigError if one cannot be trained.

    Each data set is read once (and downloaded if missing, before several processes would do so), and a model is built
    for each combination apart from the seed. `here`: the cells will be trained on this machine's devices.
    """
    twice = grid.keys() & {assignment.partition("=")[0] for assignment in overrides}
    if twice:
        raise ConfigError(f"--grid {min(twice)}: is also given by --set; leave it out of one")
    raw, found = override(load_yaml(config), overrides), dict[str, tuple[dict[str, Any], Settings]]()
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        name = cell_name(values)
        if name in found:
            same = next(key for key, given in grid.items() if len({value_text(v) for v in given}) < len(given))
            raise ConfigError(f"--grid {same}: a value is given twice")
        found[name] = values, read(Settings, with_values(raw, values), str(config), overrides, grid)
    texts = {name: dump(plain(settings.data)) for name, (_, settings) in found.items()}
    made = dict[str, Cell]()
    for _, names in itertools.groupby(sorted(found, key=texts.__getitem__), texts.__getitem__):
        data, seen = None, list[dict[str, Any]]()
        for name in names:
            values, settings = found[name]
            data = data or load_data(settings.data)
            settings = with_likelihood(settings, data.kind)
            files = folder / "cells" / f"{name}.yaml", folder / "runs" / name
            cell = made[name] = Cell(name, values, plain(settings), *files)
            if cell.point in seen:
                continue
            seen.append(cell.point)
            try:
                if here:
                    choose_device(settings.train.device, settings.train.precision)
                check(settings, data, build_model(settings.model, data.shape, settings.train.seed))
            except ConfigError as error:
                raise ConfigError(f"{name}: {error}") from None
    return [made[name] for name in found]


def finished_evaluation(cell: Cell) -> dict[str, Any] | None:
    """The test evaluation of a finished cell; None if the cell has yet to be trained or evaluated."""
    record, settings = read_evaluation(cell.run), read_settings(cell.config)
    try:
        values: dict[str, Any] = {name: read_values(file) for name, file in checkpoints(cell.run).items()}
        finished = Progress(**values["last"]["progress"]).finished(plan_of(settings))
        opened = next(iter(values.values()))  # best, if there is one
        same = not other_settings(read_settings(open_config(cell.run)), settings)
        return record if record and finished and same and record["step"] == opened["step"] else None
    except (VaeError, KeyError, TypeError):
        return None


def check_directory(folder: Path, made: Sequence[Cell]) -> None:
    """UsageError if a directory holds anything but these cells, or some of them: a sweep may only be added to."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: is a file; --out names a directory")
    elsewhere = "choose another directory with --out"
    files = {p.name for p in folder.iterdir()} - {".lock", ".sweep.yaml.partial"} if folder.exists() else set()
    if files and "sweep.yaml" not in files:
        raise UsageError(f"{folder}: holds other files and is not a sweep; {elsewhere}")
    left = sorted({file.stem for file in (folder / "cells").glob("*.yaml")} - {cell.name for cell in made})
    if left:
        raise UsageError(
            f"{folder}: holds a sweep with {left[0]}, which this --grid leaves out; repeat its values (you may add "
            f"more), or {elsewhere}"
        )
    for cell in made:
        if cell.file.exists() and (changed := other_settings(read_settings(cell.file), read_settings(cell.config))):
            raise UsageError(f"{folder}: holds a sweep of another config: {', '.join(changed)} differ; {elsewhere}")
