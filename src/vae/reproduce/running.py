"""From a document to its records: what is missing is trained, measured and written."""

import contextlib
import json
import platform
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy
import sklearn
import torch

from vae.config import load_yaml, plain, read, with_values
from vae.errors import TrainingFailed, UsageError
from vae.files import read_log
from vae.reproduce import records, report
from vae.reproduce.document import Document, Experiment, Made, Profile
from vae.reproduce.records import COMMITTED
from vae.reproduce.table import Row, of_figure, table
from vae.sweep.cell import Cell
from vae.sweep.grid import check_cells
from vae.sweep.run import run as train
from vae.training.loading import load_run
from vae.training.run_directory import commit, lock
from vae.training.settings import Settings

CONFIGS = Path("configs")
Say = Callable[[str], None]


@dataclass(frozen=True)
class Task:
    """A record to be made: of a seed of an experiment."""

    experiment: Experiment
    seed: int
    profile: Profile
    out: Path

    @property
    def name(self) -> str:
        """Where its files lie below records/, cells/ and runs/."""
        return f"{self.profile}/{self.experiment.name}/seed_{self.seed}"

    @property
    def record(self) -> Path:
        """The file of its record."""
        return records.path_of(self.out, self.profile, self.experiment.name, self.seed)

    @property
    def minutes(self) -> float:
        """What it takes, about, on one thread."""
        return self.experiment.minutes if self.profile == "paper" else 0.3

    @property
    def settings(self) -> Settings | None:
        """Its settings, if it has a config."""
        if not self.experiment.config:
            return None
        file, values = CONFIGS / f"{self.experiment.config}.yaml", self.experiment.of(self.profile, self.seed)
        return read(Settings, with_values(load_yaml(file), values), str(file))

    def cell(self) -> Cell:
        """What trains it: a config file, a command and a run directory."""
        config = plain(self.settings)
        return Cell(self.name, config, self.out / "cells" / f"{self.name}.yaml", self.out / "runs" / self.name)


def folders(document: Document, out: str | Path | None) -> list[Path]:
    """Where records are looked for: in OUT, then among those that the repository holds."""
    return [Path(out or f"runs/reproduce/{document.name}"), COMMITTED / document.name]


def command(document: Document, name: str, profile: Profile) -> list[str]:
    """The command that trains the first seed of an experiment; UsageError if there is none."""
    experiment = next((e for e in document.experiments if e.name == name), None)
    if experiment is None or not experiment.trained:
        trained = ", ".join(e.name for e in document.experiments if e.trained)
        raise UsageError(f"--show {name}: {document.name} trains no such experiment, only {trained}")
    settings = [f"{key}={json.dumps(value)}" for key, value in experiment.of(profile, experiment.seeds[0]).items()]
    return ["python", "scripts/train.py", "--config", str(CONFIGS / f"{experiment.config}.yaml"), "--set", *settings]


def missing(document: Document, profile: Profile, out: Path, figure: str | None, *, again: bool) -> list[Task]:
    """The records to be made, every setting with one seed first: not those that OUT or the repository holds.

    `again`: those of the repository count for nothing. What the paper profile has answered is not made again for the
    quick one.
    """
    where, tasks = [out] if again else folders(document, out), list[Task]()
    for experiment in document.needed(figure):
        seeds = experiment.seeds if profile == "paper" else experiment.seeds[:1]
        held = [records.path_of(f, p, experiment.name, s) for f in where for p in {profile, "paper"} for s in seeds]
        found = {file.name for file in held if file.exists()}
        tasks += [Task(experiment, s, profile, out) for s in seeds if f"seed_{s}.json" not in found]
    return sorted(tasks, key=lambda task: task.experiment.seeds.index(task.seed))


def reproduce(
    document: Document,
    *,
    profile: Profile,
    out: Path,
    figure: str | None = None,
    processes: int | None = None,
    again: bool = False,
    say: Say = print,
) -> tuple[list[Row], list[Path]]:
    """Make the missing records of a document, draw its figures and write its report; its rows, and the files.

    What was stopped goes on. `again`: committed records do not count. UsageError if the figure does not exist or the
    directory cannot be used, TrainingFailed if a run fails.
    """
    if out.is_file():
        raise UsageError(f"{out}: is a file; --out names a directory")
    if again and out.resolve() == (COMMITTED / document.name).resolve():
        raise UsageError(f"--retrain: {out} holds the committed records; name another directory with --out")
    of_figure(document, (), figure)
    with lock(out):
        make(missing(document, profile, out, figure, again=again), processes, say)
        found = records.chosen(document, [out] if again else folders(document, out))
        rows = table(document, found)
        files = report.draw(document, found, out, figure) + report.write(document, found, rows, out)
    return of_figure(document, rows, figure), files


def make(tasks: Sequence[Task], processes: int | None, say: Say) -> None:
    """Make records, each as soon as its run is trained."""
    trained = {task.name: task for task in tasks if task.experiment.trained}
    say(f"{len(tasks)} records to make, about {sum(t.minutes for t in tasks):.0f} minutes of one thread"
        if tasks else "every record is there")  # fmt: skip
    made = [task.cell() for task in trained.values()]
    check_cells(made)
    if trained:
        with _time_left(list(zip(trained.values(), made, strict=True)), say):
            failed = train(
                made, processes=processes, say=say, done=lambda cell: measure(trained[cell.name], cell.run, say)
            )
        if failed:
            name, reason = next(iter(failed.items()))
            raise TrainingFailed(f"{len(failed)} of {len(trained)} runs failed; {name}: {reason}")
    for task in tasks:
        if not task.experiment.trained:
            measure(task, None, say)


def measure(task: Task, path: Path | None, say: Say) -> None:
    """Measure the results of a trained run, or of none, and write the record."""
    say(f"{task.name}: measuring")
    began, run = time.monotonic(), None if path is None else load_run(path)
    pictures, folder = task.seed == task.experiment.seeds[0], task.out / "runs" / task.name
    made = Made(task.seed, task.profile == "quick", pictures, task.settings, run, folder, say)
    results, arrays = task.experiment.measure(made)
    about = json.loads((path / "environment.json").read_text()) if path else {}
    record = records.Record(
        config={} if task.settings is None else plain(task.settings),
        seed=task.seed,
        profile=task.profile,
        versions={"torch": torch.__version__, "numpy": numpy.__version__, "scikit-learn": sklearn.__version__},
        processor=_processor(),
        threads=about.get("threads", torch.get_num_threads()),
        commit=about["commit"] if about else commit(),
        seconds=round(time.monotonic() - began + (made.curve[-1]["seconds"] if path else 0), 1),
        results=results,
        arrays=arrays,
    )
    records.write(task.record, record)


def _processor() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/cpuinfo") as lines:
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _part_trained(cell: Cell) -> float:
    """The part of a cell's training that is over, by its metrics."""
    lines = [line for line in read_log(cell.run / "metrics.jsonl") if line["split"] == "train"]
    if not lines:
        return 0.0
    plan, last = cell.config["train"], lines[-1]
    return last["samples"] / plan["samples"] if plan["samples"] else last["epoch"] / plan["epochs"]


@contextlib.contextmanager
def _time_left(plan: Sequence[tuple[Task, Cell]], say: Say) -> Iterator[None]:
    """While runs are trained: say every minute how far they are together, and the time left at their pace so far."""
    over, began = threading.Event(), time.monotonic()

    def done() -> float:  # minutes of one thread, by the estimates
        return sum(task.minutes * (1.0 if task.record.exists() else _part_trained(cell)) for task, cell in plan)

    def tell() -> None:
        whole, before = sum(task.minutes for task, _ in plan), done()
        while not over.wait(60.0):
            now = done()
            if now > before:
                left = (time.monotonic() - began) * (whole - now) / (now - before) / 60
                say(f"{now / whole:.0%} of the plan, about {left:.0f} minutes left")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
