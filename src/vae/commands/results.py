"""What a sweep has come to: means over the seeds with their standard errors, as a table for people and for programs."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.grid import SEED, short_names, value_text
from vae.errors import UsageError

if TYPE_CHECKING:
    from vae.commands.grid import Cell

Record = Mapping[str, Any]
COLUMNS = {"elbo": "test ELBO", "log_p_x_given_z": r"log p(x\|z)", "kl": "KL", "train_elbo": "train ELBO"}


def summary(
    config: str, grid: Mapping[str, Any], cells: Sequence[tuple[Cell, Record | None]], failures: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that sweep.json holds: a row for each combination of the keys that are not the seed."""
    points: dict[str, list[tuple[Cell, Record | None]]] = {}
    for cell, record in cells:
        points.setdefault(json.dumps(cell.point, sort_keys=True), []).append((cell, record))
    rows = [_row(of_point) for of_point in points.values()]
    elbos = [
        {cell.settings.train.seed: record["elbo"]["mean"] for cell, record in of_point if record is not None}
        for of_point in points.values()
    ]
    for row, elbo in zip(rows, elbos, strict=True):
        same = all(row[key] == rows[0][key] for key in grid if key.startswith(("data", "model.likelihood")))
        row["difference"] = paired_difference(elbo, elbos[0]) if same and row is not rows[0] else None
    return {
        "config": config,
        "grid": grid,
        "unit": "nats a datum",
        "runs": len(cells),
        "rows": rows,
        "failed": dict(failures),
    }


def _row(cells: Sequence[tuple[Cell, Record | None]]) -> dict[str, Any]:
    """The means over the seeds of one combination.

    The standard error is over the seeds where two or more of them have finished; that of a single one is over the test
    data (and the mean over an epoch of training has none).
    """
    done = [(cell, {**record, "train_elbo": _train_elbo(cell, record)}) for cell, record in cells if record is not None]
    row: dict[str, Any] = {**cells[0][0].point, "runs": [cell.name for cell, _ in done]}
    row["seeds"] = [cell.settings.train.seed for cell, _ in done]
    for column in COLUMNS:
        row[column] = over_seeds([record[column] for _, record in done]) if done else None
    row["stderr_over"] = None if not done else "seeds" if len(done) > 1 else "data"
    row["density"] = done[0][1]["density"] if done else None
    row["failed"] = [cell.name for cell, record in cells if record is None]
    return row


def over_seeds(values: Sequence[Record]) -> dict[str, Any]:
    """The mean of several runs' means, and its standard error: over the runs, of a single one its own."""
    means = [value["mean"] for value in values]
    stderr = statistics.stdev(means) / len(means) ** 0.5 if len(means) > 1 else values[0]["stderr"]
    return {"mean": statistics.fmean(means), "stderr": stderr}


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> dict[str, Any] | None:
    """The mean of value - other over the seeds of both, its standard error and Student's 95 % interval.

    Runs of one seed share weights, order and noise as far as their settings let them. None for fewer than two seeds.
    """
    from scipy.special import stdtrit

    differences = [value - others[seed] for seed, value in values.items() if seed in others]
    n = len(differences)
    if n < 2:
        return None
    mean, stderr = statistics.fmean(differences), statistics.stdev(differences) / n**0.5
    half = float(stdtrit(n - 1, 0.975)) * stderr
    return {"mean": mean, "stderr": stderr, "interval": [mean - half, mean + half], "seeds": n}


def _train_elbo(cell: Cell, record: Record) -> dict[str, Any]:
    """The mean over the epoch of training that ended at the step which was evaluated, else over the last."""
    from vae.training.run_directory import history

    lines = [line for line in history(cell.path) if line["split"] == "train"]
    line = next((line for line in lines if line["step"] == record["step"]), lines[-1])
    return {"mean": line["elbo"], "stderr": None}


# ------------------------------------------------------------------------------------- files


def write(out: Path, record: dict[str, Any]) -> tuple[list[Path], str]:
    """Write table and figure into the directory of a sweep: the files, and the table as Markdown."""
    from vae.figures import save, sweep
    from vae.files import write_atomically

    markdown = _markdown(record)
    contents = {"sweep.md": markdown, "sweep.json": json.dumps(record, indent=1, allow_nan=False) + "\n"}
    curves = _curves(out, record)
    try:
        for name, text in contents.items():
            write_atomically(out / name, text.encode())
        files = [out / name for name in contents]
        if curves:
            files += save(sweep(curves, Path(record["config"]).stem, _note(record)), out / "figures" / "sweep")
        return files, markdown
    except OSError as error:
        raise UsageError(f"{out}: cannot be written to: {error.strerror}") from None


def _curves(out: Path, record: Record) -> list[tuple[dict[str, str], list[list[dict[str, Any]]]]]:
    """The metrics of the finished runs of each row, under the row's values."""
    from vae.training.run_directory import history

    short = short_names(record["grid"])
    curves = []
    for row in record["rows"]:
        label = {short[key]: value_text(row[key]) for key in record["grid"] if key != SEED}
        if row["runs"]:
            curves.append((label, [history(out / "runs" / name) for name in row["runs"]]))
    return curves


def _note(record: Record) -> str:
    """What is said of values that are no densities."""
    none, some = (of(row["density"] is False for row in record["rows"]) for of in (all, any))
    return "grey cross-entropy, no density" if none else "some are grey cross-entropy, no density" if some else ""


def _markdown(record: Record) -> str:
    """The table for people, which reads well unrendered too."""
    short = short_names(record["grid"])
    keys = [key for key in record["grid"] if key != SEED]
    rows = record["rows"]
    head = [short[key] for key in keys] + list(COLUMNS.values()) + ["seeds", "± over"]
    body = [[value_text(row[key]) for key in keys] + [_cell(row[c]) for c in COLUMNS] for row in rows]
    for row, line in zip(rows, body, strict=True):
        line += [str(len(row["seeds"])), row["stderr_over"] or "-"]
    differ = any(row["difference"] for row in rows)
    if differ:
        head.append("minus the first")
        body = [[*line, _difference_cell(row["difference"])] for row, line in zip(rows, body, strict=True)]
    if any(row["density"] is False for row in rows):
        head.append("density")
        body = [
            [*line, {True: "yes", False: "no", None: "-"}[row["density"]]] for row, line in zip(rows, body, strict=True)
        ]
    if record["failed"]:
        head.append("failed")
        body = [[*line, str(len(row["failed"]))] for row, line in zip(rows, body, strict=True)]
    text = f"# {Path(record['config']).stem}: {record['runs']} runs\n\n"
    text += "Nats a datum, ± standard error: over the seeds, or over the test data of a single run.\n\n"
    text += _aligned([head, ["---"] * len(head), *body])
    if differ:
        text += "\nMinus the first: test ELBO less the first row's, over the seeds of both, with the 95 % interval.\n"
    if any(row["density"] is False for row in rows):
        text += "\nGrey cross-entropy is no density of x: compare these values with one another only.\n"
    for name, reason in record["failed"].items():
        text += f"\nFailed: {name}: {reason}\n"
    return text


def _cell(value: Record | None) -> str:
    if value is None:
        return "-"
    return f"{value['mean']:.2f}" + (f" ± {value['stderr']:.2f}" if value["stderr"] is not None else "")


def _difference_cell(value: Record | None) -> str:
    return "-" if value is None else "{:.2f} [{:.2f}, {:.2f}]".format(value["mean"], *value["interval"])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = (" | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(f"| {line} |\n" for line in lines)
