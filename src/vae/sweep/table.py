"""The results of a sweep: means over the seeds with their standard errors, as a table, as JSON, and as a figure."""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scipy.special import stdtrit

from vae.figures import save, sweep
from vae.files import write_atomically
from vae.sweep.cell import SEED, Cell, short_names, value_text
from vae.text import NO_DENSITY, NOT_A_DENSITY, markdown_table, plus_minus
from vae.training.run_directory import history

Record = Mapping[str, Any]
Result = tuple[Cell, Record | None]  # a cell, and its evaluation if it is finished
COLUMNS = {"elbo": "test ELBO", "log_p_x_given_z": r"log p(x\|z)", "kl": "KL", "train_elbo": "train ELBO"}


def summary(
    config: str, grid: Mapping[str, Any], cells: Sequence[Result], failures: Mapping[str, str]
) -> dict[str, Any]:
    """The content of sweep.json: a row for each combination of the values, with means over the seeds."""
    points: dict[str, list[Result]] = {}
    for cell, record in cells:
        points.setdefault(json.dumps(cell.point, sort_keys=True), []).append((cell, record))
    rows = [_row(of_point) for of_point in points.values()]
    elbos = [
        {cell.config["train"]["seed"]: record["elbo"]["mean"] for cell, record in of_point if record is not None}
        for of_point in points.values()
    ]
    for row, elbo in zip(rows, elbos, strict=True):
        same = all(row[key] == rows[0][key] for key in grid if key.startswith(("data", "model.likelihood")))
        row["difference"] = paired_difference(elbo, elbos[0]) if same and row is not rows[0] else None
    return {
        "config": config,
        "grid": grid,
        "unit": "nats per datum",
        "runs": len(cells),
        "rows": rows,
        "failed": dict(failures),
    }


def _row(cells: Sequence[Result]) -> dict[str, Any]:
    """The means over the seeds of one combination.

    The standard errors are over the seeds if at least two have finished. Those of a single seed are over the test data,
    and the training ELBO, a mean over an epoch, has none.
    """
    done = [(cell, {**record, "train_elbo": _train_elbo(cell, record)}) for cell, record in cells if record is not None]
    row: dict[str, Any] = {**cells[0][0].point, "runs": [cell.name for cell, _ in done]}
    row["seeds"] = [cell.config["train"]["seed"] for cell, _ in done]
    for column in COLUMNS:
        row[column] = mean_over_seeds([record[column] for _, record in done]) if done else None
    row["stderr_over"] = None if not done else "seeds" if len(done) > 1 else "data"
    row["density"] = done[0][1]["density"] if done else None
    row["failed"] = [cell.name for cell, record in cells if record is None]
    return row


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
    differences = [value - others[seed] for seed, value in values.items() if seed in others]
    n = len(differences)
    if n < 2:
        return None
    mean, stderr = statistics.fmean(differences), statistics.stdev(differences) / n**0.5
    half = float(stdtrit(n - 1, 0.975)) * stderr
    return {"mean": mean, "stderr": stderr, "interval": [mean - half, mean + half], "seeds": n}


def _train_elbo(cell: Cell, record: Record) -> dict[str, Any]:
    """The mean over the training epoch that ended at the evaluated step, else over the last epoch."""
    lines = [line for line in history(cell.run) if line["split"] == "train"]
    line = next((line for line in lines if line["step"] == record["step"]), lines[-1])
    return {"mean": line["elbo"], "stderr": None}


# ------------------------------------------------------------------------------------- files


def write(out: Path, record: dict[str, Any]) -> list[Path]:
    """Write tables and figure into the directory of a sweep; return the files."""
    contents = {"sweep.md": markdown(record), "sweep.json": json.dumps(record, indent=1, allow_nan=False) + "\n"}
    for name, text in contents.items():
        write_atomically(out / name, text.encode())
    files, curves = [out / name for name in contents], _curves(out, record)
    if curves:
        files += save(sweep(curves, Path(record["config"]).stem, _note(record)), out / "figures" / "sweep")
    return files


def _curves(out: Path, record: Record) -> list[tuple[str, str, list[list[dict[str, Any]]]]]:
    """The value of the first key and those of the others for each row, and the metrics of its finished runs."""
    short = short_names(record["grid"])
    curves = []
    for row in record["rows"]:
        first, *others = [f"{short[key]} = {value_text(row[key])}" for key in short if key != SEED] or [""]
        if row["runs"]:
            curves.append((first, ", ".join(others), [history(out / "runs" / name) for name in row["runs"]]))
    return curves


def _note(record: Record) -> str:
    """A note in the figure's title, if some values are not densities."""
    grey = [row["density"] is False for row in record["rows"]]
    return NO_DENSITY if all(grey) else f"some are {NO_DENSITY}" if any(grey) else ""


def markdown(record: Record) -> str:
    """The content of sweep.md."""
    short, rows = short_names(record["grid"]), record["rows"]
    differ = any(row["difference"] for row in rows)
    grey = any(row["density"] is False for row in rows)
    columns = {short[key]: [value_text(row[key]) for row in rows] for key in record["grid"] if key != SEED}
    columns |= {head: [_cell(row[key]) for row in rows] for key, head in COLUMNS.items()}
    columns |= {
        "seeds": [str(len(row["seeds"])) for row in rows],
        "± over": [row["stderr_over"] or "-" for row in rows],
    }
    if differ:
        columns["minus the first"] = [_difference_cell(row["difference"]) for row in rows]
    if grey:
        columns["density"] = [{True: "yes", False: "no", None: "-"}[row["density"]] for row in rows]
    if record["failed"]:
        columns["failed"] = [str(len(row["failed"])) for row in rows]
    text = f"# {Path(record['config']).stem}: {record['runs']} runs\n\n"
    text += "Nats per datum, ± standard error: over the seeds, or over the test data if there is a single seed.\n\n"
    text += markdown_table(list(columns), list(zip(*columns.values(), strict=True)))
    if differ:
        text += "\nMinus the first: the difference of the test ELBO, over the seeds of both, with its 95 % interval.\n"
    if grey:
        text += f"\n{NOT_A_DENSITY[0].upper()}{NOT_A_DENSITY[1:]}.\n"
    for name, reason in record["failed"].items():
        text += f"\nFailed: {name}: {reason}\n"
    return text


def _cell(value: Record | None) -> str:
    return "-" if value is None else plus_minus(value["mean"], value["stderr"])


def _difference_cell(value: Record | None) -> str:
    return "-" if value is None else "{:.2f} [{:.2f}, {:.2f}]".format(value["mean"], *value["interval"])
