"""Sweeps: every cell a run, stopped ones gone on with, killed ones taken up again, and a table that adds up."""

import itertools
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml

from vae.commands import results
from vae.commands.evaluate import main as evaluate
from vae.commands.grid import SEED, Cell, cell_name, short_names
from vae.commands.results import mean_over_seeds, paired_difference, summarise
from vae.commands.sweep import main
from vae.commands.train import main as train
from vae.config import override, read_grid
from vae.errors import ConfigError
from vae.training import checkpoint

ROOT = Path(__file__).parent.parent
CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 150},
    "model": {"latent_dim": 2, "encoder": {"hidden": [12]}, "decoder": {"hidden": [12]}},
    "train": {"epochs": 2, "batch_size": 50, "device": "cpu", "checkpoint_seconds": 0},
}
GRID = ["--grid", "model.latent_dim=2,3", "train.seed=0,1"]
LAST = "checkpoints/last.safetensors"
LONG = 400  # epochs of a run that is to be killed: a few seconds
NAMES = [f"latent_dim={dim},seed={seed}" for dim in (2, 3) for seed in (0, 1)]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A folder with a config, and the sweep of two latent sizes and two seeds."""
    path = tmp_path_factory.mktemp("sweep")
    (path / "tiny.yaml").write_text(yaml.dump(CONFIG))
    assert main(["--config", str(path / "tiny.yaml"), *GRID, "--out", str(path / "s")]) == 0
    return path


@pytest.fixture
def copied(swept, tmp_path):
    """A copy of that sweep, and the command that made it."""
    shutil.copytree(swept / "s", tmp_path / "s")
    return tmp_path / "s", ["--config", str(swept / "tiny.yaml"), "--out", str(tmp_path / "s")]


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
    (["--grid", "train.seed=0", "--processes", "0"], "'0' is not a whole number of at least 1"),
    (["--grid", "train.seed=0", "--engine", "slurm"], "invalid choice: 'slurm'"),
    (["--grid", "train.seed=0", "--out", "{d}/tiny.yaml"], "is a file; --out names a directory"),
    (["--grid", "train.seed=0", "--out", "{d}"], "holds other files and is not a sweep"),
    ([*GRID, "--out", "{d}/s", "--set", "train.epochs=3"], "holds a sweep of another config: train.epochs differ"),
    (
        ["--grid", "model.latent_dim=2", "train.seed=0,1", "--out", "{d}/s"],
        "holds the sweep of --grid model.latent_dim=2,3",
    ),
    (["--grid", "model.latent_dim=2,3", "--out", "{d}/s"], "repeat these values (you may add more)"),
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
    assert 'pip install "vae[sweep]"' in capsys.readouterr().err


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
    assert train(["--resume", str(tmp_path / "run")]) == 0
    captured = capsys.readouterr()
    assert "this run is finished" in captured.err
    assert "curves.png" in captured.out
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
    cells = []
    for precision, likelihood, seed in itertools.product(*grid.values()):
        values = {"train.precision": precision, "model.likelihood": likelihood, SEED: seed}
        settings = SimpleNamespace(train=SimpleNamespace(seed=seed))
        elbo = {"mean": float(seed), "stderr": 0.1}
        lines = {"elbo": elbo, "log_p_x_given_z": elbo, "kl": elbo, "density": True}
        cells.append((Cell(f"{precision}{likelihood}{seed}", values, settings, Path("none")), lines))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "_train_elbo", lambda cell, record: record["elbo"])
        rows = summarise("c", grid, cells, {})["rows"]
    assert [row["difference"] is not None for row in rows] == [False, False, True, False]


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


def test_what_is_missing_or_half_done_is_completed_and_no_more(copied, capsys):
    """One run deleted, one stopped after its first epoch, one evaluated otherwise since; the last two are not touched."""
    from vae.training import read_settings
    from vae.training.run import train as train_only

    out, command = copied
    before, rows, untouched = states(out), record(out)["rows"], (out / "runs" / NAMES[3]).stat().st_mtime_ns
    shutil.rmtree(out / "runs" / NAMES[0])
    half = out / "runs" / NAMES[1]
    config = yaml.safe_load((half / "config.yaml").read_text())
    shutil.rmtree(half)
    train_only(read_settings(override(config, ["train.epochs=1"])), half, verbose=False)
    first = metrics(half)[0]
    for more in (["--limit", "5"], ["--split", "train"], ["--seed", "1"]):
        assert evaluate([str(out / "runs" / NAMES[2]), *more]) == 0
    capsys.readouterr()
    assert main([*command, *GRID]) == 0
    error = capsys.readouterr().err
    assert "4 runs, 2 of them finished" in error
    assert NAMES[2] not in error
    assert NAMES[3] not in error
    assert metrics(half)[0] == first  # its clock included: it went on and did not begin again
    after = states(out)
    assert {name for name in NAMES if after[name] != before[name]} <= {NAMES[1]}  # whose checkpoint names its threads
    assert (out / "runs" / NAMES[3]).stat().st_mtime_ns == untouched
    for old, new in zip(rows, record(out)["rows"], strict=True):
        assert new["elbo"]["mean"] == pytest.approx(old["elbo"]["mean"], rel=1e-6)


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
    assert "holds the sweep of --grid train.seed=1,0 model.latent_dim=3,1,2" in capsys.readouterr().err


def test_a_run_that_fails_is_reported_and_stops_no_other(swept, tmp_path, capsys):
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


def started(out, *more, until=LAST):
    """A sweep of one long run as a process, once a file of that run is written; and that run."""
    config = out.parent / "tiny.yaml"
    config.write_text(yaml.dump(CONFIG))
    grid = [
        "--set",
        f"train.epochs={LONG}",
        "train.checkpoint_seconds=0.2",
        "--grid",
        "train.seed=7",
        "--out",
        str(out),
    ]
    script = [sys.executable, str(ROOT / "scripts" / "sweep.py"), "--config", str(config)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment.pop("RAY_ADDRESS", None)
    process = subprocess.Popen([*script, *grid, *more], stderr=subprocess.PIPE, text=True, env=environment)
    run = out / "runs" / "seed=7"
    deadline = time.monotonic() + 90
    while not (run / until).exists() or not (run / until).stat().st_size:
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process, run


def holder(run):
    """The process that holds a run: the one with its lock open."""
    for descriptor in itertools.chain.from_iterable(_descriptors()):
        try:
            if descriptor.resolve() == (run / ".lock").resolve():
                return int(descriptor.parts[2])
        except OSError:
            continue
    raise AssertionError(f"nobody holds {run}")


def _descriptors():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            yield list((process / "fd").iterdir())
        except OSError:
            continue


needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds the worker through /proc")


@needs_proc
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_a_killed_worker_s_run_is_taken_up_again(engine, tmp_path):
    if engine == "ray":
        pytest.importorskip("ray")
    process, run = started(tmp_path / "s", "--engine", engine, "--processes", "1")
    worker = holder(run)
    assert worker != process.pid
    os.kill(worker, signal.SIGKILL)
    first = metrics(run)[0]
    error = process.communicate(timeout=90)[1]
    assert process.returncode == 0, error
    assert ("its worker was killed; continuing" in error) == (engine == "local")  # Ray does it without a word
    lines = metrics(run)
    assert lines[0] == first  # its clock included
    assert [line["epoch"] for line in lines if line["split"] == "train"] == list(range(1, LONG + 1))
    assert record(tmp_path / "s")["rows"][0]["seeds"] == [7]


@needs_proc
def test_a_stopped_sweep_has_stopped_its_workers_after_they_saved(tmp_path):
    process, run = started(tmp_path / "s", "--set", "train.checkpoint_seconds=1000", until="metrics.jsonl")
    os.kill(process.pid, signal.SIGTERM)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 143
    assert error.splitlines()[-1] == "stopped with 1 of 1 runs to go; the same command continues"
    with pytest.raises(AssertionError, match="nobody holds"):
        holder(run)
    _, values = checkpoint.read(run / LAST)  # which only the stop has written
    assert values["step"] >= metrics(run)[-1]["step"] > 0
    assert not (tmp_path / "s" / "sweep.json").exists()


def test_ctrl_c_exits_130_and_says_how_to_go_on(monkeypatch, swept, tmp_path, capsys):
    from vae.commands import engines

    def interrupted(cells, processes, threads):
        yield engines.Event(cells[0], None, "training")
        raise KeyboardInterrupt

    monkeypatch.setitem(engines.ENGINES, "local", interrupted)
    assert main(["--config", str(swept / "tiny.yaml"), *GRID, "--out", str(tmp_path / "x")]) == 130
    assert "stopped with 4 of 4 runs to go; the same command continues" in capsys.readouterr().err


@pytest.fixture
def ended_by(monkeypatch, swept, tmp_path, capsys):
    """What a sweep of one run says on stderr whose worker has its say, and ends by a signal, as soon as it starts."""
    from vae.commands import engines

    def sweep(number):
        code = "import os, resource, sys\nresource.setrlimit(resource.RLIMIT_CORE, (0, 0))\n"
        code += "print(*range(1, 100), sep='\\n', file=sys.stderr, flush=True)\n"
        (tmp_path / "suicide.py").write_text(f"{code}os.kill(os.getpid(), {int(number)})")
        monkeypatch.setattr(engines.worker, "__name__", "suicide")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        given = ["--config", str(swept / "tiny.yaml"), "--grid", "train.seed=0", "--out", str(tmp_path / "x")]
        assert main(given) == 1
        return capsys.readouterr().err

    return sweep


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGINT", "SIGHUP"])
def test_a_worker_that_is_killed_again_and_again_is_given_up(name, ended_by):
    error = ended_by(signal.Signals[name])
    assert error.count("continuing from its checkpoint") == 2
    assert f"its worker was killed 3 times, the last time by {name}" in error


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV", "SIGBUS", "SIGILL", "SIGFPE"])
def test_a_worker_that_crashes_is_said_to_crash_with_its_last_words_and_begun_once(name, ended_by, tmp_path):
    error = ended_by(signal.Signals[name])
    assert "killed" not in error
    assert "continuing" not in error
    assert "seed=0: 98\nseed=0: 99\nseed=0: failed: its worker crashed with " + name in error
    assert "seed=0: 50\n" not in error
    assert record(tmp_path / "x")["failed"] == {"seed=0": f"its worker crashed with {name}"}


@pytest.mark.parametrize(
    ("device", "engine", "more", "expected"),
    [
        ("auto", "local", [], 3),
        ("cuda", "local", [], 3),
        ("auto", "local", ["--processes", "5"], 5),
        ("cpu", "local", [], 14),
        ("auto", "ray", [], 14),
    ],
)
def test_runs_on_gpus_are_one_a_gpu_at_a_time(device, engine, more, expected, swept, tmp_path, monkeypatch):
    from vae.commands import engines, sweep

    asked = []

    def stopped(cells, processes, threads):
        asked.append(processes)
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(sweep, "_cores", lambda: 14)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(engines, "import_ray", lambda: None)
    monkeypatch.setitem(engines.ENGINES, engine, stopped)
    given = ["--config", str(swept / "tiny.yaml"), *GRID, "--set", f"train.device={device}", "--engine", engine]
    assert main([*given, *more, "--out", str(tmp_path / "x")]) == 130
    assert asked == [expected]


def test_workers_share_the_gpus_out(tmp_path, monkeypatch):
    from vae.commands import engines

    code = "import os, pathlib, sys; pathlib.Path(sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    (tmp_path / "fake.py").write_text(code)
    arguments = lambda cell, threads: [str(tmp_path / cell.name)]  # noqa: E731
    monkeypatch.setattr(engines, "worker", SimpleNamespace(__name__="fake", arguments=arguments))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    cells = [Cell(name, {}, None, tmp_path) for name in "abc"]
    ended = [event.status for event in engines.run_locally(cells, 2, 1) if event.status is not None]
    assert ended == [0, 0, 0]
    assert [(tmp_path / name).read_text() for name in "ab"] == ["4", "7"]
    assert (tmp_path / "c").read_text() in ("4", "7")


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

    both = [({"latent_dim": d, "beta": b}, [history(-10), history(-11)]) for d in ("2", "5", "9") for b in ("1", "4")]
    figure = sweep(both, "a_$b$", "no density")
    assert [axes.get_title() for axes in figure.axes] == ["beta = 1", "beta = 4"]
    for axes in figure.axes:
        assert len(axes.lines) == 6  # three values, train and test
        assert len({line.get_color() for line in axes.lines}) == 3
        assert len(axes.collections) == 6  # the bands
    assert all(word in texts(figure) for word in ("latent_dim = 9", "no density", "mean over 2 seeds", "epoch"))


def test_the_figure_of_seeds_alone_and_of_many_values_and_one_epoch():
    from vae.figures import sweep

    (axes,) = sweep([({}, [history(-9, 1), history(-8, 1)])], "x").axes
    assert len(axes.containers) == 2  # error bars, where a band would have no width
    many = sweep([({"lr": str(i)}, [history(-9 - i, 30 + i)]) for i in range(30)], "x")
    assert len({tuple(line.get_color()) for line in many.axes[0].lines}) == 30
    assert "seeds" not in texts(many)
