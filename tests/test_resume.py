"""A run resumed from any checkpoint ends in the same bits as one never stopped, metrics included."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import vae
from tests.processes import Fork, run_command
from vae.algorithms import AEVB, OPTIMIZERS
from vae.commands.train import main as train_command
from vae.config import dump
from vae.errors import CheckpointError, Interrupted, UsageError
from vae.evaluation import evaluation_line
from vae.training import checkpoint, read_settings
from vae.training.run import train
from vae.training.run_directory import resumed_settings

SCRIPT = Path(__file__).parent.parent / "scripts" / "train.py"


def metrics(path):
    """The lines without what the promise leaves out."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("seconds", "_per_second"))} for line in lines]


def assert_same_run(one, other):
    names = sorted(p.name for p in (one / "checkpoints").iterdir())
    assert names == sorted(p.name for p in (other / "checkpoints").iterdir())
    assert metrics(one) == metrics(other)
    for name in names:
        assert (one / "checkpoints" / name).read_bytes() == (other / "checkpoints" / name).read_bytes(), name


def config(**changes):
    raw = {
        "data": {"name": "digits", "pixels": "dynamic", "train_size": 300, "validation_size": 50},
        "model": {
            "latent_dim": 3,
            "encoder": {"name": "mlp", "hidden": [12], "batch_norm": True},
            "decoder": {"name": "mlp", "hidden": [11], "batch_norm": True},
        },
        "train": {"epochs": 4, "batch_size": 64, "checkpoint_seconds": 0, "device": "cpu"},
    }
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value}
    return raw


CASES = {
    "batch norm, dynamic pixels, validation": {},
    "early stopping": {"train": {"patience": 1, "epochs": 30, "optimizer": {"name": "sgd", "lr": 3e-2}}},
    "static pixels, no validation": {"data": {"pixels": "static", "validation_size": 0}},
    "warm-up of beta": {"modifiers": {"beta": 0.5, "warm_up": 3}},
    "cosine, clipping": {"train": {"schedule": "cosine", "clip_grad_norm": 1.0}},
    "estimator A, L = 3": {"objective": {"name": "sgvb_a", "num_samples": 3}},
    "the memory of a running baseline": {
        "objective": {"name": "score_function", "num_samples": 2, "baseline": "running", "decay": 0.7}
    },
    "importance weights": {"objective": {"name": "dreg", "num_samples": 3}, "modifiers": {"beta": 0.5}},
    "a count of samples": {"train": {"epochs": None, "samples": 1000}},
    "rare evaluation": {"train": {"evaluate_every": 3, "epochs": 5}},
    "float64": {"train": {"precision": "float64"}},
    "learned variance": {
        "data": {"pixels": "grey"},
        "model": {"likelihood": {"name": "gaussian", "variance": "shared"}},
    },
    **{
        f"optimizer {name}, {precision}": {"train": {"optimizer": {"name": name}, "precision": precision}}
        for name in OPTIMIZERS
        for precision in ("float32", "float64")
    },
}


def observe(model, data):
    return [evaluation_line(model, data, "test")]


def run(raw, out, **options):
    return train(read_settings(raw), out, verbose=False, observe=observe, **options)


def interrupt_after(monkeypatch, steps):
    """A signal to this very process after so many more steps."""
    real, count = AEVB.step, [0]

    def step(self, state, batch, noise):
        count[0] += 1
        if count[0] == steps:
            signal.raise_signal(signal.SIGINT)
        return real(self, state, batch, noise)

    monkeypatch.setattr(AEVB, "step", step)


@pytest.mark.parametrize("case", CASES)
def test_interrupted_twice_in_the_middle_of_epochs(case, tmp_path, monkeypatch):
    raw = config(**CASES[case])
    run(raw, tmp_path / "whole")
    for steps in (3, 8):
        with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped by SIGINT"):
            interrupt_after(patch, steps)
            run(raw, tmp_path / "parts", resume=True)
    run(raw, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_stopped_before_its_config_is_written_it_begins_again(tmp_path, monkeypatch):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(vae.training.run.RunDirectory, "describe", killed)
        run(config(), tmp_path / "parts", resume=True)
    run(config(), tmp_path / "parts", resume=True)
    run(config(), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_checkpoint_holds_the_memory_of_the_objective(tmp_path):
    """Without it a resumed run would begin with another baseline, or none."""
    run(config(**CASES["the memory of a running baseline"]), tmp_path / "x")
    tensors, _ = vae.training.checkpoint.read(tmp_path / "x" / "checkpoints" / "last.safetensors")
    steps = metrics(tmp_path / "x")[-1]["step"]
    assert tensors["memory.weight"].item() == pytest.approx(1 - 0.7**steps)
    assert tensors["memory.sum"].item() < -10  # nats
    assert {t.dtype for name, t in tensors.items() if name.startswith("memory.")} == {torch.float64}


@pytest.fixture(scope="module", params=[{"epochs": 3}, {"epochs": None, "samples": 850}], ids=["epochs", "samples"])
def whole(request, tmp_path_factory):
    """A config and its run in one go."""
    raw, path = config(train=request.param), tmp_path_factory.mktemp("any_step") / "whole"
    run(raw, path)
    return raw, path


@pytest.mark.parametrize("steps", range(1, 16))
def test_interrupted_at_any_step(steps, whole, tmp_path, monkeypatch):
    """The first step of an epoch, its last, the last of the run (which its own end must not hide): each of them."""
    raw, path = whole
    total = metrics(path)[-1]["step"]
    if steps <= total:
        with monkeypatch.context() as patch, pytest.raises(Interrupted):
            interrupt_after(patch, steps)
            run(raw, tmp_path / "parts")
        run(raw, tmp_path / "parts", resume=True)
        assert_same_run(path, tmp_path / "parts")


def test_a_signal_during_the_last_evaluation_is_not_swallowed(tmp_path):
    calls = []

    def signalling(model, data):
        calls.append(1)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGTERM)
        return observe(model, data)

    with pytest.raises(Interrupted, match="stopped by SIGTERM") as stop:
        train(read_settings(config()), tmp_path / "x", verbose=False, observe=signalling)
    assert stop.value.status == 143
    run(config(), tmp_path / "whole")
    assert_same_run(tmp_path / "whole", tmp_path / "x")


def test_a_longer_count_of_samples_later_is_that_count_at_once(tmp_path):
    run(config(train={"epochs": None, "samples": 500}), tmp_path / "parts")
    settings = resumed_settings(tmp_path / "parts", ["train.samples=900"])
    train(settings, tmp_path / "parts", resume=True, verbose=False, observe=observe)
    run(config(train={"epochs": None, "samples": 900}), tmp_path / "whole")
    ours, theirs = (metrics(tmp_path / name) for name in ("parts", "whole"))
    assert [x for x in ours if x["split"] == "train"] == [x for x in theirs if x["split"] == "train"]
    assert [list(x) for x in ours] == [list(x) for x in theirs]  # in the same order, line by line


def written(monkeypatch):
    """The name of each checkpoint that is written, and its file."""
    kept, real = [], vae.training.checkpoint.write

    def write(path, tensors, values):
        real(path, tensors, values)
        kept.append((path.stem, path.read_bytes()))

    monkeypatch.setattr(vae.training.checkpoint, "write", write)
    return kept


def test_the_last_checkpoint_is_not_starved_by_the_best(tmp_path, monkeypatch):
    kept, ticks = written(monkeypatch), iter(range(10**6))
    monkeypatch.setattr("time.monotonic", lambda: float(next(ticks)))
    run(config(train={"epochs": 12, "checkpoint_seconds": 20}), tmp_path / "x")
    assert [name for name, _ in kept].count("last") > 3


@pytest.mark.parametrize("name", ["best", "last"])
def test_resumed_from_every_checkpoint_there_ever_was(tmp_path, monkeypatch, name):
    """Each file that was ever written under a name, put back as the last of its time."""
    with monkeypatch.context() as patch:
        kept = written(patch)
        run(config(), tmp_path / "whole")
    contents = [content for written_as, content in kept if written_as == name]
    assert len(contents) >= 3
    for i, content in enumerate(contents):
        path = tmp_path / f"from{i}"
        path.joinpath("checkpoints").mkdir(parents=True)
        for file in ("config.yaml", "metrics.jsonl"):  # all metrics of the whole run: those after are cut off
            path.joinpath(file).write_bytes((tmp_path / "whole" / file).read_bytes())
        best = (tmp_path / "whole" / "checkpoints" / "best.safetensors").read_bytes()
        (path / "checkpoints" / "best.safetensors").write_bytes(best)
        (path / "checkpoints" / "last.safetensors").write_bytes(content)
        run(config(), path, resume=True)
        assert_same_run(tmp_path / "whole", path)


def test_more_epochs_later_are_more_epochs_at_once(tmp_path):
    run(config(train={"epochs": 2}), tmp_path / "parts")
    settings = resumed_settings(tmp_path / "parts", ["train.epochs=4"])
    train(settings, tmp_path / "parts", resume=True, verbose=False, observe=observe)
    run(config(train={"epochs": 4}), tmp_path / "whole")
    # The best of the first two epochs remembers that the run was to have two.
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    last = "checkpoints/last.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "parts" / last).read_bytes()


def test_observers_change_no_bit(tmp_path):
    run(config(), tmp_path / "observed")
    train(read_settings(config()), tmp_path / "alone", verbose=False)
    for name in ("best", "last"):
        ours, theirs = (
            vae.training.checkpoint.read(tmp_path / which / "checkpoints" / f"{name}.safetensors")
            for which in ("observed", "alone")
        )
        assert all(torch.equal(ours[0][key], theirs[0][key]) for key in ours[0].keys() | theirs[0].keys())
    train_lines = [line for line in metrics(tmp_path / "observed") if line["split"] != "test"]
    assert train_lines == metrics(tmp_path / "alone")


def test_two_runs_of_one_config_are_equal_and_leave_the_users_generator_alone(tmp_path):
    before = torch.get_rng_state()
    run(config(), tmp_path / "one")
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    run(config(), tmp_path / "two")
    assert_same_run(tmp_path / "one", tmp_path / "two")


class Dropout(torch.nn.Module):
    """A user's own encoder that draws from torch's default generator."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(64, 9), torch.nn.Dropout(0.5), torch.nn.Linear(9, 4)
        )

    def forward(self, x):
        # Torch's generator is asked in evaluation too, which must change nothing.
        return self.layers(x) + 0 * torch.randn(4)


def with_own_encoder():
    torch.manual_seed(5)
    return vae.VAE(Dropout(), vae.mlp_decoder(2, (1, 8, 8), hidden=(7,)), vae.Bernoulli((1, 8, 8)))


def test_a_users_module_that_draws_resumes_too(tmp_path, monkeypatch):
    data = vae.load_data("digits", pixels="dynamic", train_size=300)
    options = {"epochs": 3, "verbose": False, "resume": True, "checkpoint_seconds": 0}
    vae.fit(with_own_encoder(), data, out=tmp_path / "whole", **options)
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, 4)
        vae.fit(with_own_encoder(), data, out=tmp_path / "parts", **options)
    torch.manual_seed(1234)
    vae.fit(with_own_encoder(), data, out=tmp_path / "parts", **options)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_dataloader_resumes_at_the_ends_of_epochs(tmp_path, monkeypatch):
    images = vae.load_data("digits", pixels="static").train.images()

    def fit(out):
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(images[:300]), 64, shuffle=True, generator=torch.Generator().manual_seed(3)
        )
        return vae.fit(with_own_encoder(), loader, out=out, epochs=3, verbose=False, resume=True)

    fit(tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        interrupt_after(patch, 8)
        fit(tmp_path / "parts")
    fit(tmp_path / "parts")
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_dataloader_and_a_count_of_samples_end_with_an_epoch(tmp_path):
    images = vae.load_data("digits", pixels="static").train.images()[:300]

    def fit(out, samples):
        loader = torch.utils.data.DataLoader(images, 64, shuffle=True, generator=torch.Generator().manual_seed(3))
        return vae.fit(with_own_encoder(), loader, out=out, samples=samples, verbose=False, resume=True)

    assert fit(tmp_path / "parts", 400).history[-1]["samples"] == 600
    fit(tmp_path / "parts", 800)
    fit(tmp_path / "whole", 800)
    assert metrics(tmp_path / "parts") == metrics(tmp_path / "whole")


# ------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def finished(tmp_path):
    run(config(), tmp_path / "x")
    return tmp_path / "x"


def test_only_paths_device_and_length_may_change(finished):
    with pytest.raises(UsageError, match=r"model\.latent_dim, train\.batch_size cannot change in a resumed run"):
        resumed_settings(finished, ["model.latent_dim=4", "train.batch_size=32"])
    resumed_settings(finished, ["data.root=/elsewhere", "train.device=auto", "train.epochs=9"])


def test_a_config_edited_by_hand_is_refused_by_name(finished):
    path = finished / "config.yaml"
    path.write_text(path.read_text().replace("lr: 0.001", "lr: 0.1"))
    with pytest.raises(CheckpointError, match=r"another config: train\.optimizer\.lr"):
        train(resumed_settings(finished, []), finished, resume=True, verbose=False)


def test_other_training_data_are_refused(tmp_path):
    import numpy as np

    def save(seed):
        x = np.random.default_rng(seed).integers(0, 256, (50, 8, 8), dtype=np.uint8)
        np.savez(tmp_path / "own.npz", x=x)

    raw = {**config(), "data": {"name": "npz", "path": str(tmp_path / "own.npz")}}
    save(0)
    run(raw, tmp_path / "x")
    save(1)
    with pytest.raises(CheckpointError, match="the training data are not those that this run was trained on"):
        run({**raw, "train": {**raw["train"], "epochs": 9}}, tmp_path / "x", resume=True)


def test_metrics_that_were_shortened_are_refused_and_kept(finished):
    path = finished / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:2]))
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl: holds 2 lines, and the checkpoint remembers"):
        train(resumed_settings(finished, ["train.epochs=9"]), finished, resume=True, verbose=False)
    assert len(path.read_text().splitlines()) == 2


def test_a_run_without_a_checkpoint_starts_again(tmp_path):
    run(config(), tmp_path / "whole")
    path = tmp_path / "begun"
    path.mkdir()
    path.joinpath("config.yaml").write_bytes((tmp_path / "whole" / "config.yaml").read_bytes())
    path.joinpath("metrics.jsonl").write_text('{"step": 1, "half a li')
    train(resumed_settings(path, []), path, resume=True, verbose=False, observe=observe)
    assert_same_run(tmp_path / "whole", path)


def untouched(path):
    return {p: p.read_bytes() for p in path.rglob("*") if p.is_file()}


def test_a_refused_resume_changes_nothing(finished):
    before = untouched(finished)
    data = vae.load_data("digits", pixels="static", train_size=100)
    with pytest.raises(CheckpointError, match="another model"):
        vae.fit(with_own_encoder(), data, out=finished, resume=True, verbose=False)
    with pytest.raises(CheckpointError, match="another config"):
        run(config(train={"epochs": 9, "seed": 3}), finished, resume=True)
    with pytest.raises(UsageError, match=r"train\.epochs: 1, and the run has begun epoch 4; give at least that"):
        run(config(train={"epochs": 1}), finished, resume=True)
    run(config(), finished, resume=True)  # it is finished: nothing to do
    assert untouched(finished) == before


def test_another_models_checkpoint_in_a_run_is_refused(finished, tmp_path):
    run(config(model={"latent_dim": 4}), tmp_path / "other")
    for name in ("best", "last"):
        file = f"checkpoints/{name}.safetensors"
        (finished / file).write_bytes((tmp_path / "other" / file).read_bytes())
    with pytest.raises(CheckpointError, match=r"written under another config: model\.latent_dim"):
        vae.load(finished)


def test_what_a_kill_in_the_first_moment_leaves_is_no_obstacle(tmp_path):
    (tmp_path / "x").mkdir()
    for name in (".lock", "environment.json", ".config.yaml.partial"):
        (tmp_path / "x" / name).write_text("half")
    run(config(), tmp_path / "x")
    assert vae.load(tmp_path / "x").latent_dim == 3


def test_another_programs_folder_is_not_overwritten(tmp_path):
    (tmp_path / "config.yaml").write_text("hydra: yes\n")
    (tmp_path / "figures").mkdir()
    with pytest.raises(UsageError, match="holds other files and is not a run"):
        run(config(), tmp_path, overwrite=True)
    assert (tmp_path / "figures").exists()


def test_two_processes_do_not_train_in_one_directory(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    run(config(), tmp_path / "x")
    with (tmp_path / "x" / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        before = untouched(tmp_path)
        with pytest.raises(UsageError, match="another process is training in this directory"):
            run(config(train={"epochs": 9}), tmp_path / "x", resume=True)
        assert untouched(tmp_path) == before


# ------------------------------------------------------------------------------------------------- real processes


def start(arguments, errors):
    """train.py as a new Python, which has a hash seed of its own; its stderr in a file."""
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=errors.open("w"))


def fork(arguments, errors):
    """The same in a fork of this process, which does not take seconds to begin."""
    return Fork(run_command, train_command, arguments, errors)


def size(path):
    return path.stat().st_size if path.exists() else 0


def kill_until_done(arguments, out, kills, rng, longest):
    """Train by a real process, killed `kills` times at random moments of training; gives how many kills it took."""
    errors, done = out.with_suffix(".txt"), 0
    resumed = ["--resume", out, "--no-figures"]
    while done < kills:
        process = fork(resumed if (out / "config.yaml").exists() else [*arguments, "--out", out], errors)
        before, deadline = size(out / "metrics.jsonl"), time.monotonic() + 120
        # Training has begun (again) once the metrics change: cut back, then growing.
        while size(out / "metrics.jsonl") == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, longest))
        process.kill()
        if process.wait() != -signal.SIGKILL:
            break  # it ended before the kill: the training was too short
        done += 1
    assert start(resumed, errors).wait() == 0, errors.read_text()
    return done


KILLED = {
    "everything": config(train={"patience": 600, "evaluate_every": 2}),
    "nothing": config(
        data={"pixels": "static", "validation_size": 0},
        train={"checkpoint_seconds": 0.2, "optimizer": {"name": "adagrad", "lr": 0.05}},
    ),
}


def check_kills(case, kills, epochs, tmp_path):
    raw = KILLED[case] | {"train": {**KILLED[case]["train"], "epochs": epochs}}
    (tmp_path / "c.yaml").write_text(json.dumps(raw))
    arguments, errors = ["--config", tmp_path / "c.yaml", "--no-figures"], tmp_path / "whole.txt"
    assert fork([*arguments, "--out", tmp_path / "whole"], errors).wait() == 0, errors.read_text()
    assert kill_until_done(arguments, tmp_path / "killed", kills, random.Random(case), 0.25) == kills
    assert_same_run(tmp_path / "whole", tmp_path / "killed")


def test_two_kills_are_survived_bit_for_bit(tmp_path):
    check_kills("everything", 2, 80, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("case", KILLED)
def test_twenty_kills_are_survived_bit_for_bit(case, tmp_path):
    check_kills(case, 20, 600, tmp_path)


@pytest.mark.parametrize(
    ("begin", "number", "status"), [(fork, signal.SIGINT, 130), (start, signal.SIGTERM, 143)], ids=["INT", "TERM"]
)
def test_signals_save_and_say_how_to_resume(begin, number, status, tmp_path):
    raw = config(train={"epochs": 100_000, "checkpoint_seconds": 1000, "compile": "never"})
    (tmp_path / "c.yaml").write_text(json.dumps(raw))
    errors = tmp_path / "errors.txt"
    process = begin(["--config", tmp_path / "c.yaml", "--out", tmp_path / "x"], errors)
    while not size(tmp_path / "x" / "metrics.jsonl") and process.poll() is None:
        time.sleep(0.01)
    os.kill(process.pid, number)
    assert process.wait() == status, errors.read_text()
    said = errors.read_text()
    assert "Traceback" not in said
    assert f"continue with: python scripts/train.py --resume {tmp_path / 'x'}" in said.splitlines()[-1]
    assert vae.load(tmp_path / "x").latent_dim == 3


def test_a_run_of_before_a_setting_was_there_goes_on(tmp_path):
    """Its config and checkpoint lack model.weights; the default is what it was trained with."""
    raw = {"data": {"name": "digits", "train_size": 60}, "model": {"latent_dim": 2}, "train": {"epochs": 1}}
    path = tmp_path / "run"
    train(read_settings(raw), path, verbose=False)
    file = path / "checkpoints" / "last.safetensors"
    tensors, values = checkpoint.read(file)
    del values["config"]["model"]["weights"]
    checkpoint.write(file, tensors, values)
    (path / "config.yaml").write_text(dump(values["config"]))
    settings = resumed_settings(path, ["train.epochs=2"])
    assert train(settings, path, resume=True, verbose=False).history[-1]["epoch"] == 2
