"""Several seeds trained as one program: each follows its single run, and is left as an ordinary run.

In float64 each parameter agrees with the single run's to 1e-8 relative after 52 steps; biases before a batch
normalisation are left out (test_fast.py says why).
"""

import json
import shutil

import pytest
import torch

from tests.test_fast import before_normalisation, config
from vae.algorithms import OPTIMIZERS, largest_gradient
from vae.commands.evaluate import main as evaluate_command
from vae.commands.plot import main_curves as curves_command
from vae.commands.train import main as train_command
from vae.errors import ConfigError, TrainingFailed, UsageError
from vae.training import checkpoint, fast, read_settings
from vae.training.opened import history, open_run
from vae.training.run import train, train_replicas, train_together

BATCH_NORM = {"encoder": {"hidden": [8, 5], "batch_norm": True}, "decoder": {"hidden": [7], "batch_norm": True}}


def small(**blocks):
    train = {"precision": "float64", "compile": "never", "replicas": 3, "seed": 4, **blocks.pop("train", {})}
    return read_settings(config(train=train, **blocks))


def single(settings, seed):
    from dataclasses import replace

    return replace(settings, train=replace(settings.train, replicas=1, seed=seed))


def assert_follows(path, other):
    """The end of a run, its metrics and its optimizer's state, beside another's."""
    ours, theirs = open_run(path, which="last"), open_run(other, which="last")
    free = before_normalisation(ours.model)
    assert ours.step == theirs.step
    for name, value in ours.model.state_dict().items():
        if name not in free:
            expected = theirs.model.state_dict()[name].double()
            torch.testing.assert_close(value.double(), expected, rtol=1e-8, atol=1e-8 * expected.abs().max().item())
    for line, expected in zip(history(path), history(other), strict=True):
        assert line.keys() == expected.keys()
        assert line["split"] == expected["split"]
        for key in line.keys() - {"seconds", "split"}:
            assert line[key] == pytest.approx(expected[key], rel=1e-8)


CASES = {
    "batch normalisation": {"model": BATCH_NORM},
    "dynamic pixels, L = 2": {"data": {"pixels": "dynamic"}, "objective": {"num_samples": 2, "name": "sgvb_a"}},
    "clipping, schedule, warm-up": {
        "train": {"clip_grad_norm": 2.0, "schedule": {"name": "exponential", "gamma": 0.5}},
        "modifiers": {"warm_up": 2.0},
    },
    "score function with memory": {"objective": {"name": "score_function"}},
    "dreg": {"objective": {"name": "dreg", "num_samples": 3}},
    "convolutions": {
        "model": {"encoder": {"name": "conv", "channels": [3, 4]}, "decoder": {"name": "conv", "channels": [4, 3]}}
    },
    "learned variance": {
        "data": {"pixels": "grey"},
        "model": {"likelihood": {"name": "gaussian", "variance": "shared"}},
    },
}


def test_auto_precision_is_float32_for_several_and_is_that_of_one_for_one(tmp_path, monkeypatch):
    """bfloat16 was shown to do for runs by themselves."""
    monkeypatch.setattr(fast, "SAVED_AT_LEAST", 0.0)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True}, raising=False)
    settings = small(train={"precision": "auto", "epochs": 1, "compile": "never"})
    train_replicas(settings, tmp_path / "together", verbose=False)
    train(single(settings, 4), tmp_path / "one", verbose=False)
    found = [
        json.loads((path / "environment.json").read_text())["precision"]
        for path in (tmp_path / "one", *(tmp_path / "together").glob("seed_*"))
    ]
    assert found == ["bfloat16", "float32", "float32", "float32"]


@pytest.mark.parametrize("case", CASES)
def test_each_replica_follows_the_single_run_of_its_seed(case, tmp_path):
    train_block = {"epochs": 13, "evaluate_every": 13, **CASES[case].get("train", {})}  # 52 steps
    settings = small(**{**CASES[case], "train": train_block})
    train_replicas(settings, tmp_path / "together", verbose=False)
    for seed in (4, 5, 6):
        train(single(settings, seed), tmp_path / f"{seed}", verbose=False)
        assert_follows(tmp_path / "together" / f"seed_{seed}", tmp_path / f"{seed}")
    ends = [open_run(tmp_path / "together" / f"seed_{seed}").model.state_dict() for seed in (4, 5)]
    assert not any(torch.equal(value, ends[1][name]) for name, value in ends[0].items() if name.endswith("weight"))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_with_every_optimizer_and_resumed(optimizer, tmp_path):
    options = {"name": optimizer, "lr": 0.1 if optimizer == "adadelta" else 1e-3}
    settings = small(train={"optimizer": options, "epochs": 2})
    if optimizer == "adafactor":
        with pytest.raises(ConfigError, match="adafactor"):
            train_replicas(settings, tmp_path / "together", verbose=False)
        return
    train_replicas(small(train={"optimizer": options, "epochs": 1}), tmp_path / "together", verbose=False)
    train_replicas(settings, tmp_path / "together", resume=True, verbose=False)
    train(single(settings, 5), tmp_path / "5", verbose=False)
    assert_follows(tmp_path / "together" / "seed_5", tmp_path / "5")


def test_a_replica_goes_on_as_an_ordinary_run(tmp_path):
    train_replicas(small(train={"epochs": 2}), tmp_path / "together", verbose=False)
    alone = single(small(train={"epochs": 3}), 5)
    train(alone, tmp_path / "together" / "seed_5", resume=True, verbose=False)
    train(alone, tmp_path / "5", verbose=False)
    assert_follows(tmp_path / "together" / "seed_5", tmp_path / "5")


def test_runs_that_stand_at_different_steps_are_not_mixed(tmp_path):
    train_replicas(small(train={"epochs": 2}), tmp_path / "x", verbose=False)
    train(single(small(train={"epochs": 3}), 5), tmp_path / "x" / "seed_5", resume=True, verbose=False)
    with pytest.raises(UsageError, match=r"seed_4 at 8.*seed_5 at 12.*each alone"):
        train_replicas(small(), tmp_path / "x", resume=True, verbose=False)


@pytest.mark.parametrize("place", ["write", "rename"])
@pytest.mark.parametrize("calls", range(1, 7))
def test_a_kill_between_the_checkpoints_of_a_save_takes_no_run_from_the_others(place, calls, tmp_path, monkeypatch):
    settings = small(train={"epochs": 3, "checkpoint_seconds": 0})
    train_replicas(settings, tmp_path / "whole", verbose=False)
    real, left = getattr(checkpoint, place), iter([None] * calls)

    def killed(*given):
        next(left)
        real(*given)

    with monkeypatch.context() as patch, pytest.raises(StopIteration):
        patch.setattr(checkpoint, place, killed)
        train_replicas(settings, tmp_path / "x", verbose=False)
    train_replicas(settings, tmp_path / "x", resume=True, verbose=False)
    for seed in (4, 5, 6):
        files = (tmp_path / name / f"seed_{seed}" / "checkpoints" for name in ("whole", "x"))
        ours, theirs = ({file.name: file.read_bytes() for file in folder.iterdir()} for folder in files)
        assert ours == theirs


def test_compiled_replicas_follow_too(tmp_path):
    settings = small(model=BATCH_NORM, train={"compile": "always", "epochs": 2})
    train_replicas(settings, tmp_path / "together", verbose=False)
    train(single(settings, 6), tmp_path / "6", verbose=False)
    assert_follows(tmp_path / "together" / "seed_6", tmp_path / "6")
    assert json.loads((tmp_path / "together" / "seed_6" / "environment.json").read_text())["steps"] == "compiled"


def test_the_failing_run_is_told(tmp_path, monkeypatch):
    real = fast.AEVB.values

    def values(self, model, batch, noise, memory, step):
        maximised, memory, sums = real(self, model, batch, noise, memory, step)
        bad = (noise.sum() == noise.sum()) & (step == 5) & (noise.mean() < 0)
        return maximised, memory, {k: v.where(~bad, torch.nan) for k, v in sums.items()}

    monkeypatch.setattr(fast.AEVB, "values", values)
    with pytest.raises(TrainingFailed, match=r"run [123] of 3: .* is not finite at step 6"):
        train_replicas(small(train={"checkpoint_seconds": 0}), tmp_path / "x", verbose=False)


def test_the_command_trains_measures_and_sums_up(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text(json.dumps(config(train={"epochs": 1, "replicas": 2, "compile": "never"})))
    assert train_command(["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "x")]) == 0
    out = capsys.readouterr().out
    kept = [tmp_path / "x" / f"seed_{k}" / "evaluations" / "test.json" for k in (0, 1)]
    records = [json.loads(file.read_text()) for file in kept]
    values = [record["elbo"]["mean"] for record in records]
    mean, error = sum(values) / 2, abs(values[0] - values[1]) / 2
    words = f"2 seeds, test split: elbo {mean:.2f} +- {error:.2f}"
    assert words in out
    assert evaluate_command([str(tmp_path / "x" / "seed_0"), "--split", "train"]) == 0
    capsys.readouterr()
    assert train_command(["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "x")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert train_command(["--resume", str(tmp_path / "x")]) == 0
    captured = capsys.readouterr()
    assert "finished" in captured.err
    assert words in captured.out  # of the test split still
    with pytest.raises(UsageError, match="2 seeds; give one of them"):
        open_run(tmp_path / "x")
    shutil.rmtree(tmp_path / "x" / "seed_1")  # as if killed before it was made
    assert train_command(["--resume", str(tmp_path / "x")]) == 2


def test_overwriting_leaves_no_run_of_before(tmp_path):
    train_replicas(small(train={"epochs": 1}), tmp_path / "x", verbose=False)
    (tmp_path / "x" / "seed_notes").mkdir()
    (tmp_path / "x" / "seed_6" / "config.yaml").unlink()  # and so no run
    train_replicas(small(train={"epochs": 1, "seed": 1, "replicas": 2}), tmp_path / "x", overwrite=True, verbose=False)
    assert {p.name for p in (tmp_path / "x").glob("seed_*")} == {"seed_1", "seed_2", "seed_6", "seed_notes"}
    train(single(small(train={"epochs": 1}), 1), tmp_path / "x", overwrite=True, verbose=False)
    assert {p.name for p in (tmp_path / "x").glob("seed_*")} == {"seed_6", "seed_notes"}


def test_the_curves_of_several_seeds_are_asked_for_one_by_one(tmp_path, capsys):
    train_replicas(small(train={"epochs": 1, "replicas": 2}), tmp_path / "x", verbose=False)
    assert curves_command([str(tmp_path / "x")]) == 2
    assert "2 seeds; give one of them" in capsys.readouterr().err


def test_an_exploding_seed_is_not_told_of_gradients_that_it_has_not(tmp_path):
    settings = small(train={"optimizer": {"name": "sgd", "lr": 0.1}})
    model = train_replicas(settings, tmp_path / "x", verbose=False)[0][0].model
    assert largest_gradient(model) == "its gradients are not at hand"


def test_early_stopping_is_of_single_runs(tmp_path):
    stops = small(data={"validation_size": 20}, train={"patience": 1, "replicas": 1})
    with pytest.raises(ConfigError, match=r"patience.*trained together"):
        train_together(stops, {4: tmp_path / "4", 5: tmp_path / "5"}, verbose=False)
    with pytest.raises(ConfigError, match=r"patience.*replicas"):
        small(train={"patience": 2})
