"""Sweeps: every cell a run, stopped ones gone on with, killed ones taken up again, and a table that adds up."""

import contextlib
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import vae.commands.train
from tests.processes import Fork, run_command
from vae.commands.evaluate import main as evaluate
from vae.commands.sweep import main
from vae.commands.train import main as train
from vae.config import read_grid
from vae.errors import ConfigError, Interrupted
from vae.sweep import run, table
from vae.sweep.cell import END_WITH_PARENT, Cell
from vae.sweep.grid import SEED, cell_name, cells, check_cells, short_names
from vae.sweep.run import own_gpu
from vae.sweep.table import mean_over_seeds, paired_difference, summary
from vae.training import checkpoint

CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 150},
    "model": {"latent_dim": 2, "encoder": {"hidden": [12]}, "decoder": {"hidden": [12]}},
    "train": {"epochs": 2, "batch_size": 50, "device": "cpu", "checkpoint_seconds": 0},
}
GRID = ["--grid", "model.latent_dim=2,3", "train.seed=0,1"]
LAST = "checkpoints/last.safetensors"
NAMES = [f"latent_dim={dim},seed={seed}" for dim in (2, 3) for seed in (0, 1)]


class Ended:
    """A process that has ended."""

    def __init__(self, status):
        self.status = status

    def poll(self):
        return self.status


def start_here(cell, threads, environment):
    """The command of a cell in this process, which has imported torch already."""
    module, name, *arguments = cell.command()
    assert (module, name) == ("-m", "vae.commands.train")
    with cell.log.open("w") as log, contextlib.redirect_stderr(log), contextlib.redirect_stdout(None):
        return Ended(train(arguments))


@pytest.fixture
def here(monkeypatch):
    """Sweeps start no process; the tests of stops and crashes do."""
    monkeypatch.setattr(run, "start", start_here)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a config, and the sweep of two latent sizes and two seeds."""
    path = tmp_path_factory.mktemp("sweep")
    (path / "tiny.yaml").write_text(yaml.dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setattr(run, "start", start_here)
        assert main(["--config", "tiny.yaml", *GRID, "--out", "s"]) == 0
    return path


@pytest.fixture
def copied(swept, tmp_path, monkeypatch, here):
    """A copy of that sweep, and the command that made it."""
    shutil.copytree(swept, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "s", ["--config", "tiny.yaml", "--out", "s"]


def record(out):
    return json.loads((out / "sweep.json").read_text())


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def states(out):
    """The bytes of every finished run, by name."""
    return {run.name: (run / LAST).read_bytes() for run in (out / "runs").iterdir()}


# ------------------------------------------------------------------------------------- the grid


def test_values_of_a_grid_are_yaml_with_commas_between():
    grid = read_grid(["model.encoder.hidden=[512, 256],[128]", "train.optimizer.lr=1e-3,.5", "model.likelihood=null,x"])
    assert grid == {
        "model.encoder.hidden": [[512, 256], [128]],
        "train.optimizer.lr": [1e-3, 0.5],
        "model.likelihood": [None, "x"],
    }


@pytest.mark.parametrize(
    ("assignments", "sentence"),
    [
        (["train.seed"], "--grid train.seed: expected KEY=VALUE,VALUE,..."),
        (["=1"], "expected KEY=VALUE"),
        (["train.seed="], "train.seed has no values"),
        (["train.seed=0", "train.seed=1"], "train.seed is given twice"),
        (["train.seed=0,,1"], "not valid YAML"),
        (["train.seed=0],[1"], "not valid YAML"),
    ],
)
def test_a_grid_that_is_none_is_said_to_be_none(assignments, sentence):
    with pytest.raises(ConfigError) as error:
        read_grid(assignments)
    assert sentence in str(error.value)


def test_a_cell_has_one_name_that_a_file_system_takes():
    values = {"train.seed": 0, "model.encoder.hidden": [512, 256], "model.decoder.hidden": [3]}
    name = "model.decoder.hidden=3,model.encoder.hidden=512-256,seed=0"
    assert cell_name(values) == cell_name(dict(reversed(values.items()))) == name
    odd = [
        {"data.path": "/a/b c.npz"},
        {"data.path": "/a/b/c.npz"},
        {"data.path": "x" * 400},
        {"objective": {"name": "x"}},
    ]
    names = {cell_name(values) for values in odd}
    assert len(names) == 4
    assert all("/" not in name and " " not in name and len(name) < 200 for name in names)
    assert short_names(["a.x", "b.x", "b.y"]) == {"a.x": "a.x", "b.x": "b.x", "b.y": "y"}


WRONG = [
    (["--grid", "model.latent_dims=2,3"], "--grid: model.latent_dims: no such setting; did you mean latent_dim?"),
    (["--grid", "model.latent_dim=2,ten"], "--grid: model.latent_dim: expected a whole number, not 'ten'"),
    (["--grid", "model.latent_dim=2,0"], "--grid: model.latent_dim: must be at least 1, not 0"),
    (["--grid", "model.latent_dim="], "model.latent_dim has no values"),
    (["--grid", "model.latent_dim=2,2"], "--grid model.latent_dim: a value is given twice"),
    (["--grid", "train.seed=0", "train.seed=1"], "train.seed is given twice"),
    (["--grid", "train.seed=0,1", "--set", "train.seed=3"], "--grid train.seed: is also given by --set"),
    (["--grid", "train.epochs.x=0,1"], "--grid train.epochs.x: train.epochs has no settings of its own"),
    (["--grid", "objective=sgvb_b,{{name: stl, num_samples: 3}}"], "objective: stl is biased for num_samples > 1"),
    (["--grid", "data.train_size=100,5000"], "do not fit into the 1500 data"),
    (
        ["--grid", "data.pixels=static,grey", "--set", "model.likelihood=bernoulli"],
        "pixels=grey: model.likelihood: bern",
    ),
    (
        ["--grid", "train.batch_size=50,149", "--set", "model.encoder.batch_norm=true"],
        "=149: train.batch_size: the last",
    ),
    ([], "the following arguments are required: --grid"),
    (["--grid", "train.seed=0", "--config", "{d}/tinny.yaml"], "no such config file; did you mean"),
    (["--grid", "train.seed=0", "--set", "train.epoch=3"], "--set: train.epoch: no such setting; did you mean epochs?"),
    (
        ["--grid", "train.seed=0", "--set", "train.precision=tf32"],
        "seed=0: train.precision: tf32 products exist on CUDA",
    ),
    (["--grid", "train.seed=0", "--processes", "0"], "'0' is not a whole number of at least 1"),
    (["--grid", "train.seed=0", "--engine", "slurm"], "invalid choice: 'slurm'"),
    (["--grid", "train.seed=0", "--out", "{d}/tiny.yaml"], "is a file; --out names a directory"),
    (["--grid", "train.seed=0", "--out", "{d}"], "holds other files and is not a sweep"),
    ([*GRID, "--out", "{d}/s", "--set", "train.epochs=3"], "holds a sweep of another config: train.epochs differ"),
    (
        ["--grid", "model.latent_dim=2", "train.seed=0,1", "--out", "{d}/s"],
        "holds a sweep with latent_dim=3,seed=0, which this --grid leaves out",
    ),
    (["--grid", "model.latent_dim=2,3", "--out", "{d}/s"], "repeat its values (you may add more)"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_mistake_is_one_sentence_before_any_training(arguments, sentence, swept, tmp_path, capsys):
    before = {p: p.read_bytes() for p in swept.rglob("*") if p.is_file()}
    given = [
        "--config",
        str(swept / "tiny.yaml"),
        "--out",
        str(tmp_path / "x"),
        *(a.format(d=swept) for a in arguments),
    ]
    assert main(given) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""
    assert not (tmp_path / "x").exists()
    assert {p: p.read_bytes() for p in swept.rglob("*") if p.is_file()} == before


def test_ray_is_asked_for_where_it_is_missing(swept, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    given = ["--config", str(swept / "tiny.yaml"), *GRID, "--out", str(tmp_path / "x"), "--engine", "ray"]
    assert main(given) == 2
    assert 'pip install -e ".[sweep]"' in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "sentence"),
    [([], "RAY_ADDRESS=127.0.0.1:1: no Ray cluster answers there"), (["--processes", "2"], "has its own size")],
)
def test_a_cluster_that_does_not_answer_is_said_so_at_once(more, sentence, swept, tmp_path, monkeypatch, capsys):
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    given = ["--config", str(swept / "tiny.yaml"), *GRID, "--out", str(tmp_path / "x"), "--engine", "ray", *more]
    assert main(given) == 2
    error = capsys.readouterr().err
    assert sentence in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------- what comes out


def test_a_cell_is_a_run_as_any_other(swept, tmp_path, capsys):
    out = swept / "s"
    assert sorted(p.name for p in (out / "runs").iterdir()) == NAMES
    shutil.copytree(out / "runs" / NAMES[3], tmp_path / "run")
    assert train(["--resume", str(tmp_path / "run"), "--no-figures"]) == 0
    assert capsys.readouterr().out == ""
    assert not (tmp_path / "run" / "figures").exists()
    assert train(["--resume", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "this run is finished" in captured.err
    assert "curves.png" in captured.out  # which the cell has not drawn
    assert evaluate([str(tmp_path / "run"), "--json"]) == 0
    evaluated = json.loads(capsys.readouterr().out)
    kept = json.loads((out / "runs" / NAMES[3] / "evaluations" / "test.json").read_text())
    assert evaluated["elbo"]["mean"] == pytest.approx(kept["elbo"]["mean"])
    assert {line["split"] for line in metrics(out / "runs" / NAMES[3])} == {"train", "test"}
    assert yaml.safe_load((out / "runs" / NAMES[3] / "config.yaml").read_text())["train"]["seed"] == 1


def test_the_table_holds_means_over_seeds_and_their_standard_errors(swept, capsys):
    rows = record(swept / "s")["rows"]
    assert [row["model.latent_dim"] for row in rows] == [2, 3]
    for row, names in zip(rows, (NAMES[:2], NAMES[2:]), strict=True):
        runs = [swept / "s" / "runs" / name for name in names]
        evaluations = [json.loads((run / "evaluations" / "test.json").read_text()) for run in runs]
        for key in ("elbo", "log_p_x_given_z", "kl"):
            a, b = (evaluation[key]["mean"] for evaluation in evaluations)
            assert row[key]["mean"] == pytest.approx((a + b) / 2)
            assert row[key]["stderr"] == pytest.approx(abs(a - b) / 2)  # sqrt(((a-b)^2 / 2) / 2)
        a, b = (next(x["elbo"] for x in metrics(run) if (x["split"], x["epoch"]) == ("train", 2)) for run in runs)
        assert row["train_elbo"] == {"mean": pytest.approx((a + b) / 2), "stderr": pytest.approx(abs(a - b) / 2)}
        assert (row["seeds"], row["stderr_over"], row["density"], row["failed"]) == ([0, 1], "seeds", True, [])
    markdown = (swept / "s" / "sweep.md").read_text()
    assert f"{rows[0]['elbo']['mean']:.2f} ± {rows[0]['elbo']['stderr']:.2f}" in markdown
    assert "density" not in markdown


def test_a_single_seed_has_the_standard_error_of_its_data():
    one = {"mean": -3.0, "stderr": 0.2, "n": 9}
    assert mean_over_seeds([one]) == {"mean": -3.0, "stderr": 0.2}
    three = [{"mean": mean, "stderr": 9.0} for mean in (1.0, 2.0, 6.0)]
    assert mean_over_seeds(three) == {"mean": 3.0, "stderr": pytest.approx(statistics.stdev([1, 2, 6]) / math.sqrt(3))}


def test_a_row_says_how_far_it_lies_from_the_first_seed_by_seed(swept):
    elbos = [
        json.loads((swept / "s" / "runs" / name / "evaluations" / "test.json").read_text())["elbo"]["mean"]
        for name in NAMES
    ]
    a, b = elbos[2] - elbos[0], elbos[3] - elbos[1]
    first, second = record(swept / "s")["rows"]
    found = second["difference"]
    assert first["difference"] is None
    assert (found["mean"], found["stderr"]) == (pytest.approx((a + b) / 2), pytest.approx(abs(a - b) / 2))
    assert found["interval"] == pytest.approx([found["mean"] + sign * 12.7062 * found["stderr"] for sign in (-1, 1)])
    assert f"{found['mean']:.2f} [{found['interval'][0]:.2f}, " in (swept / "s" / "sweep.md").read_text()


def test_no_difference_is_told_of_values_that_do_not_compare():
    """Those of other data, or of another likelihood."""
    grid = {"train.precision": ["a", "b"], "model.likelihood": ["x", "y"], SEED: [0, 1]}
    results = []
    for precision, likelihood, seed in itertools.product(*grid.values()):
        values = {"train.precision": precision, "model.likelihood": likelihood, SEED: seed}
        name, none = f"{precision}{likelihood}{seed}", Path("none")
        elbo = {"mean": float(seed), "stderr": 0.1}
        lines = {"elbo": elbo, "log_p_x_given_z": elbo, "kl": elbo, "density": True}
        results.append((Cell(name, {"train": {"seed": seed}}, none, none, values), lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "_train_elbo", lambda cell, record: record["elbo"])
        rows = summary("c", grid, results, {})["rows"]
    assert [row["difference"] is not None for row in rows] == [False, False, True, False]


def test_cells_need_no_grid(swept, tmp_path, here):
    """Configs as they are, defaults left out: checked, trained once, and finished with the same result as in a sweep."""
    made = []
    for seed in (0, 1):
        config = {**CONFIG, "train": {**CONFIG["train"], "seed": seed}}
        made.append(Cell(f"own_{seed}", config, tmp_path / f"{seed}.yaml", tmp_path / f"run_{seed}"))
    check_cells(made)
    said = []
    assert run.run(made, say=said.append) == {}
    assert [(cell.run / LAST).read_bytes() for cell in made] == [states(swept / "s")[name] for name in NAMES[:2]]
    assert said[0] == "2 runs, 0 of them finished"
    assert run.run(made, say=said.append) == {}
    assert said[-1] == "2 runs, 2 of them finished"


def test_a_sweep_trains_in_float32_by_default(swept):
    for name in NAMES:
        config = yaml.safe_load((swept / "s" / "runs" / name / "config.yaml").read_text())
        assert config["train"]["precision"] == "float32"


def test_differences_are_over_the_seeds_that_both_have():
    found = paired_difference({3: 1.0, 1: 2.0, 2: 4.0, 9: 100.0}, {1: 1.0, 2: 2.0, 3: 3.0})
    assert (found["mean"], found["seeds"]) == (pytest.approx(1 / 3), 3)
    assert paired_difference({1: 2.0, 5: 1.0}, {1: 1.0}) is None


def test_the_same_command_again_trains_nothing_and_prints_one_object(copied, capsys):
    out, command = copied
    before = states(out)
    assert main([*command, *GRID, "--json"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    files = printed.pop("files")
    assert [Path(file).name for file in files] == ["sweep.md", "sweep.json", "sweep.png", "sweep.pdf"]
    assert printed == record(out)
    assert captured.err.strip() == "4 runs, 4 of them finished"
    assert states(out) == before


# ------------------------------------------------------------------------------------- stopped, and gone on with


def stop_in_the_second_epoch(cell, threads, environment):
    """The command of a cell, stopped by a signal."""
    calls = itertools.count()

    def test_curve(model, data):
        if next(calls):
            raise Interrupted("terminated", 143)
        return observe(model, data)

    with pytest.MonkeyPatch.context() as patch:
        observe = vae.commands.train.test_curve
        patch.setattr(vae.commands.train, "test_curve", test_curve)
        return start_here(cell, threads, environment)


def test_what_is_missing_or_half_done_is_completed_and_no_more(copied, monkeypatch, capsys):
    """One run deleted, one stopped in its second epoch, one evaluated otherwise since; the last two are not touched."""
    out, command = copied
    before, rows, untouched = states(out), record(out)["rows"], (out / "runs" / NAMES[3]).stat().st_mtime_ns
    half = out / "runs" / NAMES[0]
    for name in NAMES[:2]:
        shutil.rmtree(out / "runs" / name)
    starts = {NAMES[0]: stop_in_the_second_epoch, NAMES[1]: lambda *_: Ended(0)}
    monkeypatch.setattr(run, "start", lambda cell, *given: starts[cell.name](cell, *given))
    assert main([*command, *GRID]) == 1
    assert record(out)["failed"] == {NAMES[0]: "ended by SIGTERM", NAMES[1]: "it ended without an evaluation"}
    assert not (out / "runs" / NAMES[1]).exists()
    first = metrics(half)[0]
    for more in (["--limit", "5"], ["--split", "train"], ["--seed", "1"]):
        assert evaluate([f"s/runs/{NAMES[2]}", *more]) == 0
    capsys.readouterr()
    monkeypatch.setattr(run, "start", start_here)
    assert main([*command, *GRID]) == 0
    error = capsys.readouterr().err
    assert "4 runs, 2 of them finished" in error
    assert NAMES[2] not in error
    assert NAMES[3] not in error
    assert metrics(half)[0] == first  # its clock included: it went on and did not begin again
    assert states(out) == before
    assert (out / "runs" / NAMES[3]).stat().st_mtime_ns == untouched
    assert record(out)["rows"] == rows


def test_a_run_goes_on_on_another_device_but_not_with_other_settings(copied, monkeypatch):
    out, command = copied
    one = ["--grid", "train.seed=0", "--out", "t"]
    monkeypatch.setattr(run, "start", stop_in_the_second_epoch)
    assert main([*command, *one]) == 1
    monkeypatch.setattr(run, "start", start_here)
    config = out.parent / "t" / "runs" / "seed=0" / "config.yaml"
    ours = config.read_text()
    config.write_text(ours.replace("batch_size: 50", "batch_size: 40"))
    assert main([*command, *one]) == 1
    assert "train.batch_size cannot change in a resumed run" in record(out.parent / "t")["failed"]["seed=0"]
    config.write_text(ours)
    assert main([*command, *one, "--set", "train.device=auto"]) == 0
    assert yaml.safe_load(config.read_text())["train"]["device"] == "auto"


def test_a_run_that_was_trained_longer_by_hand_is_no_result_of_the_sweep(copied):
    out, command = copied
    longer = ["--resume", str(out / "runs" / NAMES[0]), "--set", "train.epochs=3", "--no-figures"]
    assert train(longer) == 0
    assert main([*command, *GRID]) == 1
    assert "train.epochs: 2, and the run has begun epoch 3" in record(out)["failed"][NAMES[0]]


def test_the_command_in_a_cell_can_be_pasted(copied, capsys):
    out, command = copied
    before = states(out)
    shutil.rmtree(out / "runs" / NAMES[0])
    line = (out / "cells" / f"{NAMES[0]}.yaml").read_text().splitlines()[0]
    sign, *pasted = shlex.split(line)
    assert (sign, pasted[:3]) == ("#", ["python", "-m", "vae.commands.train"])
    assert train(pasted[3:]) == 0
    assert states(out) == before
    capsys.readouterr()
    assert main([*command, *GRID]) == 0
    assert capsys.readouterr().err.strip() == "4 runs, 4 of them finished"


def test_a_grid_with_more_values_adds_their_runs(copied, capsys):
    out, command = copied
    before = states(out)
    assert main([*command, "--grid", "train.seed=1,0", "model.latent_dim=3,1,2"]) == 0
    after = states(out)
    assert after.keys() - before.keys() == {"latent_dim=1,seed=0", "latent_dim=1,seed=1"}
    assert {name: after[name] for name in before} == before
    assert [row["model.latent_dim"] for row in record(out)["rows"]] == [3, 1, 2]
    capsys.readouterr()
    assert main([*command, *GRID]) == 2
    assert "holds a sweep with latent_dim=1,seed=0, which this --grid leaves out" in capsys.readouterr().err


def test_a_run_that_fails_is_reported_and_stops_no_other(swept, tmp_path, here, capsys):
    out, set_ = tmp_path / "x", ["--set", "train.optimizer.name=sgd", "train.epochs=1"]
    grid = ["--grid", "train.optimizer.lr=1e30,1e-3"]
    assert main(["--config", str(swept / "tiny.yaml"), *set_, *grid, "--out", str(out)]) == 1
    captured = capsys.readouterr()
    bad, good = record(out)["rows"]
    assert (bad["elbo"], bad["seeds"], bad["failed"]) == (None, [], ["lr=1e+30"])
    assert (good["seeds"], good["stderr_over"], good["failed"]) == ([0], "data", [])
    assert good["elbo"]["stderr"] > 0
    assert good["train_elbo"]["stderr"] is None
    assert "is not finite at step" in record(out)["failed"]["lr=1e+30"]
    assert "1 of 2 runs failed; lr=1e+30" in captured.err.splitlines()[-1]
    assert "Failed: lr=1e+30" in captured.out


# ------------------------------------------------------------------------------------- processes

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes end with their parent")
EPOCHS = 300  # of a cell that is to be stopped: a second or so


@pytest.fixture
def long(tmp_path, monkeypatch):
    """A folder with a config of longer runs, whose cells fail if they import matplotlib."""
    x = np.random.default_rng(0).random((80, 9)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x_train=x[:60], x_test=x[60:])
    config = {**CONFIG, "data": {"name": "npz", "path": "x.npz"}}
    # only a stop writes a checkpoint, and the end
    config["train"] = {
        **CONFIG["train"],
        "epochs": EPOCHS,
        "batch_size": 30,
        "checkpoint_seconds": 1000,
        "evaluate_every": 20,
    }
    (tmp_path / "long.yaml").write_text(yaml.dump(config))
    (tmp_path / "without" / "matplotlib").mkdir(parents=True)
    (tmp_path / "without" / "matplotlib" / "__init__.py").write_text("raise ImportError('a cell draws no figures')")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "without"), *sys.path]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Forked(Fork):
    """The process of a cell as `start` makes it, but for the imports of a new Python."""

    def __init__(self, cell, threads, environment):
        super().__init__(self._begin, cell)

    def _begin(self, cell):
        END_WITH_PARENT()
        run_command(train, cell.command()[2:], cell.log)


class Sweep:
    """The command as a process of its own."""

    def __init__(self, folder, *arguments):
        self.errors = folder / "errors.txt"
        self.process = Fork(run_command, main, ["--config", "long.yaml", "--out", "s", *arguments], self.errors)

    def end(self, timeout=180):
        """Its exit status and its stderr, once it has ended."""
        status = self.process.wait(timeout)
        assert status is not None
        return status, self.errors.read_text()


def wait_for(condition, seconds=90):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def holders(folder):
    """The runs that a process holds, each with that process: the one that has its lock open."""
    locks = {file.stat().st_ino: file.parent for file in folder.glob("s/runs/*/.lock")}
    found = {}
    for process in filter(str.isdigit, os.listdir("/proc") if locks else ()):
        for descriptor in _listed(f"/proc/{process}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(descriptor).endswith("/.lock"):
                    found[locks.get(os.stat(descriptor).st_ino)] = int(process)
    found.pop(None, None)
    return found


def _listed(folder):
    try:
        return [f"{folder}/{name}" for name in os.listdir(folder)]
    except OSError:  # it has ended
        return []


def begun(folder, file="metrics.jsonl"):
    """The runs at work that have written a file."""
    return [run for run in holders(folder) if (run / file).exists() and (run / file).stat().st_size]


def half_done(folder, epochs=EPOCHS):
    """The runs with a checkpoint that is not of the end, after their processes have ended."""
    wait_for(lambda: not holders(folder), 30)
    steps = {file.parent.parent: checkpoint.read_values(file)["step"] for file in folder.glob(f"s/runs/*/{LAST}")}
    return [run for run, step in steps.items() if 0 < step < 2 * epochs]


def without_clocks(run):
    return [{k: v for k, v in line.items() if not k.endswith(("seconds", "_per_second"))} for line in metrics(run)]


def train_alone(grid, overrides):
    """What the cells give in one go, each by its command, in another folder."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made = cells("long.yaml", grid, overrides, Path("alone"))
    check_cells(made)
    for cell in made:
        cell.write()
        assert train(cell.command()[2:]) == 0
        epochs = [line["epoch"] for line in metrics(cell.run) if line["split"] == "train"]
        assert epochs == list(range(1, cell.config["train"]["epochs"] + 1))
    torch.set_num_threads(threads)


def check_against_runs_alone(count):
    """Every run has the state and the metrics, every epoch once, of a run in one go, bit for bit."""
    names = sorted(path.name for path in Path("s/runs").iterdir())
    assert names == sorted(path.name for path in Path("alone/runs").iterdir())
    assert len(names) == count
    for name in names:
        run, alone = Path("s/runs") / name, Path("alone/runs") / name
        assert (run / LAST).read_bytes() == (alone / LAST).read_bytes()
        assert without_clocks(run) == without_clocks(alone)


@needs_linux
@pytest.mark.parametrize(
    ("engine", "forked", "seeds"),
    [
        ("local", True, 3),
        pytest.param("local", False, 4, marks=pytest.mark.slow),
        pytest.param("ray", False, 4, marks=pytest.mark.slow),
    ],
)
def test_the_cells_of_a_sweep_that_is_killed_twice_are_each_trained_once(engine, forked, seeds, long, monkeypatch):
    """Cells of several seeds and two latent sizes: forks of this process; the slow ones are new processes."""
    if engine == "ray":
        pytest.importorskip("ray")
    if forked:
        monkeypatch.setattr(run, "start", Forked)
    grid = ["train.seed=" + ",".join(map(str, range(seeds))), "model.latent_dim=1,2"]
    # Ray takes seconds to end after its driver, in which a cell may finish, or be killed without a word
    set_, file = ([], "metrics.jsonl") if engine == "local" else (["train.checkpoint_seconds=0.1"], LAST)
    train_alone(read_grid(grid), set_)
    more = ["--grid", *grid, "--engine", engine, "--processes", "2", *(["--set", *set_] if set_ else [])]
    first = Sweep(long, *more)
    wait_for(lambda: begun(long, file))
    os.kill(first.process.pid, signal.SIGKILL)
    assert first.end()[0] == -signal.SIGKILL
    killed = half_done(long)  # the cells have saved their states, although nobody could tell them to
    assert killed or engine == "ray"
    second = Sweep(long, *more)
    wait_for(lambda: set(begun(long, file)) & set(killed or begun(long, file)))
    os.kill(second.process.pid, signal.SIGTERM)
    status, error = second.end()
    assert not holders(long)  # the sweep has waited for them
    assert status == 143, error
    assert "runs to go; the same command continues" in error.splitlines()[-1]
    assert half_done(long)
    assert not (long / "s" / "sweep.json").exists()
    status, error = Sweep(long, *more).end()
    assert status == 0, error
    check_against_runs_alone(2 * seeds)


@needs_linux
def test_ray_takes_up_the_cell_of_a_worker_that_was_killed_and_stops_it_when_asked(long, monkeypatch):
    pytest.importorskip("ray")
    set_ = ["train.checkpoint_seconds=0.1", f"train.epochs={5 * EPOCHS}"]  # longer than Ray takes to start it again
    train_alone({SEED: [7]}, set_)
    more = ["--grid", "train.seed=7", "--set", *set_, "--processes", "1"]
    sweep = Sweep(long, *more, "--engine", "ray")
    (run,) = wait_for(lambda: begun(long, LAST))
    first, process = metrics(run)[0], holders(long)[run]
    worker = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    assert worker != sweep.process.pid
    os.kill(worker, signal.SIGKILL)
    wait_for(lambda: holders(long).get(run, process) != process)
    os.kill(sweep.process.pid, signal.SIGTERM)
    status, error = sweep.end()
    assert status == 143, error
    assert half_done(long, 5 * EPOCHS) == [run]
    monkeypatch.setattr("vae.sweep.run.start", Forked)
    status, error = Sweep(long, *more).end()  # the engines take up each other's cells
    assert status == 0, error
    assert metrics(run)[0] == first  # its clock included: it went on and did not begin again
    check_against_runs_alone(1)


@needs_linux
def test_ctrl_c_reaches_the_cells_through_the_sweep_which_waits_for_them(long, monkeypatch):
    code = """
import signal, sys, time
def save(number, frame):
    time.sleep(0.5)
    open("saved.txt", "a").write(signal.Signals(number).name)
    sys.exit(143)
signal.signal(signal.SIGINT, save)
signal.signal(signal.SIGTERM, save)
open("began.txt", "w").close()
time.sleep(60)
"""
    monkeypatch.setattr(Cell, "command", lambda cell: ["-c", code])
    sweep = Sweep(long, "--grid", "train.seed=0", "--set", "train.epochs=1")
    wait_for((long / "began.txt").exists)
    os.killpg(sweep.process.pid, signal.SIGINT)  # as a terminal does
    status, error = sweep.end()
    assert (long / "saved.txt").read_text() == "SIGTERM"
    assert status == 130, error
    assert error.splitlines()[-1] == "stopped with 1 of 1 runs to go; the same command continues"


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("os.abort()", "SIGABRT"),
        ("ctypes.string_at(0)", "SIGSEGV"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("sys.exit(143)", "SIGTERM"),  # it has saved its state
    ],
)
def test_a_cell_that_a_signal_ends_is_reported_with_its_stderr_and_begun_once(
    code, name, monkeypatch, swept, tmp_path, capsys
):
    before = "import ctypes, os, resource, signal, sys\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
    before += (
        "print('began', file=open('began.txt', 'a'))\nprint(*range(1, 100), sep='\\n', file=sys.stderr, flush=True)\n"
    )
    monkeypatch.setattr(Cell, "command", lambda cell: ["-c", before + code])
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(swept / "tiny.yaml"), "--grid", "train.seed=0", "--out", "x"]) == 1
    error = capsys.readouterr().err
    assert f"seed=0: 98\nseed=0: 99\nseed=0: failed: ended by {name} (1 of 1)" in error
    assert "seed=0: 90\n" in error
    assert "seed=0: 89\n" not in error
    assert record(tmp_path / "x")["failed"] == {"seed=0": f"ended by {name}"}
    assert (tmp_path / "began.txt").read_text() == "began\n"


@pytest.mark.parametrize(
    ("device", "expected"),
    [("auto", 3), ("cuda", 3), ("cpu", 14)],
)
def test_runs_on_gpus_are_one_a_gpu_at_a_time(device, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(14), raising=False)
    cell = Cell("x", {"train": {"device": device}}, Path("x"), Path("x"))
    assert run.default_processes([cell], 1) == expected
    assert run.default_processes([cell], 4) == 3  # also 14 // 4


def test_a_cell_has_its_own_gpu_and_its_threads(swept, tmp_path, monkeypatch):
    code = "import os, sys; print('warning:', os.environ['CUDA_VISIBLE_DEVICES'], os.environ['OMP_NUM_THREADS'], file=sys.stderr)"
    monkeypatch.setattr(Cell, "command", lambda cell: ["-c", code])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)  # which has read the variable when torch was imported
    made = cells(swept / "tiny.yaml", {SEED: [0, 1, 2]}, [], tmp_path)
    assert set(run.run(made, processes=2, say=lambda line: None)) == {"seed=0", "seed=1", "seed=2"}
    said = [cell.log.read_text() for cell in made]
    assert said[:2] == ["warning: 4 3\n", "warning: 7 3\n"]
    assert said[2] in said[:2]
    for count in (0, 1):
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        assert own_gpu(5) == {}


# ------------------------------------------------------------------------------------- the figure


def history(start, epochs=4):
    lines = [("train", start), ("test", start - 1)]
    return [{"split": split, "epoch": e, "elbo": value + e} for e in range(1, epochs + 1) for split, value in lines]


def test_the_curve_is_a_mean_over_seeds_at_the_epochs_that_all_have():
    from vae.figures.sweep import mean_curve

    epochs, mean, stderr = mean_curve([history(-10), history(-12), history(-20, epochs=3)], "test")
    assert list(epochs) == [1, 2, 3]
    np.testing.assert_allclose(mean, [-14, -13, -12])
    np.testing.assert_allclose(stderr, statistics.stdev([-10, -12, -20]) / math.sqrt(3))


def texts(figure):
    return " ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")))


def test_the_figure_has_a_colour_a_value_of_the_first_key_and_a_panel_for_the_others():
    from vae.figures import sweep

    names = itertools.product(("latent_dim = 2", "latent_dim = 5", "latent_dim = 9"), ("beta = 1", "beta = 4"))
    both = [(first, other, [history(-10), history(-11)]) for first, other in names]
    figure = sweep(both, "a_$b$", "no density")
    assert [axes.get_title() for axes in figure.axes] == ["beta = 1", "beta = 4"]
    for axes in figure.axes:
        assert len(axes.lines) == 6  # three values, train and test
        assert len({line.get_color() for line in axes.lines}) == 3
        assert len(axes.collections) == 6  # the bands
    assert all(word in texts(figure) for word in ("latent_dim = 9", "no density", "mean over 2 seeds", "epoch"))


def test_the_figure_of_seeds_alone_and_of_many_values_and_one_epoch():
    from vae.figures import sweep

    (axes,) = sweep([("", "", [history(-9, 1), history(-8, 1)])], "x").axes
    assert len(axes.containers) == 2  # error bars, where a band would have no width
    many = sweep([(f"lr = {i}", "", [history(-9 - i, 30 + i)]) for i in range(30)], "x")
    assert len({tuple(line.get_color()) for line in many.axes[0].lines}) == 30
    assert "seeds" not in texts(many)
