"""The results of a sweep: means over the seeds with their standard errors, as a table, as JSON, and as a figure."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from vae.figures import save, sweep
from vae.files import write_atomically
from vae.sweep.cell import Cell
from vae.sweep.grid import SEED, Grid, short_names, value_text
from vae.text import NO_DENSITY, NOT_A_DENSITY, markdown_table, plus_minus
from vae.training.run_directory import history

Record = Mapping[str, Any]
Result = tuple[Cell, Record | None]  # a cell, and its evaluation if it is finished
MEANS = {"elbo": "test ELBO", "log_p_x_given_z": "log p(x|z)", "kl": "KL", "train_elbo": "train ELBO"}
MEANS |= {"log_density": "log p(y|x)"}  # of regressions
DIFFERENCE = {"difference": "minus the first"}


def summary(config: str, grid: Grid, results: Sequence[Result], failures: Mapping[str, str]) -> dict[str, Any]:
    """The content of sweep.json: a row for each combination of the values, with means over the seeds."""
    points: dict[str, list[Result]] = {}
    for cell, record in results:
        point = {key: value for key, value in cell.values.items() if key != SEED}
        points.setdefault(json.dumps(point), []).append((cell, record))
    rows = [{**json.loads(point), **_means(alike)} for point, alike in points.items()]
    elbos = [
        {cell.config["train"]["seed"]: record["elbo"]["mean"] for cell, record in alike if record}
        for alike in points.values()
    ]
    for row, elbo in zip(rows, elbos, strict=True):
        same = all(row[key] == rows[0][key] for key in grid if key.startswith(("data", "model.likelihood")))
        row["difference"] = paired_difference(elbo, elbos[0]) if same and row is not rows[0] else None
    about = {"config": config, "grid": grid, "unit": "nats per datum", "runs": len(results)}
    return {**about, "rows": rows, "failed": failures}


def _means(results: Sequence[Result]) -> dict[str, Any]:
    """The means over the seeds of one combination; the standard errors of a single seed are over the test data."""
    done = [(cell, {**record, "train_elbo": _train_elbo(cell, record)}) for cell, record in results if record]
    return {
        "runs": [cell.name for cell, _ in done],
        "seeds": [cell.config["train"]["seed"] for cell, _ in done],
        **{key: mean_over_seeds([r[key] for _, r in done]) if done and key in done[0][1] else None for key in MEANS},
        "stderr_over": None if not done else "seeds" if len(done) > 1 else "data",
        "density": done[0][1]["density"] if done else None,
        "failed": [cell.name for cell, record in results if not record],
    }


def _train_elbo(cell: Cell, record: Record) -> dict[str, Any]:
    """The mean over the last training epoch up to the evaluated step; over an epoch, it has no standard error."""
    lines = [line for line in history(cell.run) if line["split"] == "train" and line["step"] <= record["step"]]
    return {"mean": lines[-1]["elbo"], "stderr": None}


def mean_over_seeds(values: Sequence[Record]) -> dict[str, Any]:
    """The mean of the runs' means, and its standard error over the runs; that of a single run is its own."""
    means = [value["mean"] for value in values]
    stderr = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else values[0]["stderr"]
    return {"mean": statistics.fmean(means), "stderr": stderr}


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> dict[str, Any] | None:
    """The mean of value - other over the seeds that both have, its standard error and Student's 95 % interval.

    Runs with the same seed share initial weights, order and noise as far as their settings allow. None if they share
    fewer than two seeds.
    """
    differences = [{"mean": value - others[seed]} for seed, value in values.items() if seed in others]
    n = len(differences)
    if n < 2:
        return None
    found = mean_over_seeds(differences)
    half = float(stdtrit(n - 1, 0.975)) * found["stderr"]
    return {**found, "interval": [found["mean"] - half, found["mean"] + half], "seeds": n}


# ------------------------------------------------------------------------------------- files


def write(folder: Path, record: Record) -> list[Path]:
    """Write tables and figure into the directory of a sweep; return the files."""
    contents = {"sweep.md": markdown(record), "sweep.json": json.dumps(record, indent=1, allow_nan=False) + "\n"}
    for name, text in contents.items():
        write_atomically(folder / name, text.encode())
    files, done, points = [folder / name for name in contents], [row for row in record["rows"] if row["runs"]], []
    for row in done:
        first, *others = [f"{name} = {value_text(row[key])}" for key, name in _names(record).items()] or [""]
        points.append((first, ", ".join(others), [history(folder / "runs" / name) for name in row["runs"]]))
    if points:
        grey = [row["density"] is False for row in done]
        note = ("" if all(grey) else "some are ") + NO_DENSITY if any(grey) else ""
        files += save(sweep(points, Path(record["config"]).stem, note), folder / "figures" / "sweep")
    return files


def _names(record: Record) -> dict[str, str]:
    """The short name of each key but the seed's."""
    return {key: name for key, name in short_names(record["grid"]).items() if key != SEED}


def markdown(record: Record) -> str:
    """The content of sweep.md."""
    rows = record["rows"]
    columns = {name: [value_text(row[key]) for row in rows] for key, name in _names(record).items()}
    columns["seeds"] = [str(len(row["seeds"])) for row in rows]
    heads = {key: head for key, head in MEANS.items() if any(row[key] for row in rows)} | DIFFERENCE
    columns |= {head: [_text(row[key]) for row in rows] for key, head in heads.items()}
    text = f"# {Path(record['config']).stem}: {record['runs']} runs\n\n"
    text += "Nats per datum, ± standard error: over the seeds, or over the test data if there is a single seed.\n"
    text += "Minus the first: the difference of the test ELBO, over the seeds of both, with its 95 % interval.\n\n"
    text += markdown_table(list(columns), list(zip(*columns.values(), strict=True)))
    if any(row["density"] is False for row in rows):
        text += f"\n{NOT_A_DENSITY.capitalize()}.\n"
    for name, reason in record["failed"].items():
        text += f"\nFailed: {name}: {reason}\n"
    return text


def _text(value: Record | None) -> str:
    if value is None:
        return "-"
    if "interval" in value:
        return "{:.2f} [{:.2f}, {:.2f}]".format(value["mean"], *value["interval"])
    return plus_minus(value["mean"], value["stderr"])
