"""The command lines: what they print and write, and one sentence with status 2 for whatever is wrong."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import vae
from vae.commands.encode import main as encode
from vae.commands.evaluate import main as evaluate
from vae.commands.plot import main_curves, main_manifold, main_reconstructions, main_samples, main_traversals, main_tsne
from vae.commands.train import main as train
from vae.errors import CheckpointError
from vae.training import checkpoint, read_settings
from vae.training.loading import checkpoints
from vae.training.run import train as train_run
from vae.training.run_directory import own_files, resumed_settings

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.py"))
CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 150, "validation_size": 30},
    "model": {"latent_dim": 2, "encoder": {"hidden": [12]}, "decoder": {"hidden": [12]}},
    "train": {"epochs": 2, "batch_size": 64, "device": "cpu"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a config, a run of two latents, one of four, and one on grey levels."""
    path = tmp_path_factory.mktemp("commands")
    config = path / "tiny.yaml"
    config.write_text(yaml.dump(CONFIG))
    assert train(["--config", str(config), "--out", str(path / "d2")]) == 0
    more = ["--set", "model.latent_dim=4", "data.validation_size=0", "--out", str(path / "d4")]
    assert train(["--config", str(config), *more]) == 0
    assert train(["--config", str(config), "--set", "data.pixels=grey", "--out", str(path / "grey")]) == 0
    return path


def figures(run):
    return {p.name for p in (run / "figures").iterdir()}


def both(*stems):
    return {f"{stem}.{kind}" for stem in stems for kind in ("png", "pdf")}


# ------------------------------------------------------------------------------------------------- what works


def test_training_ends_with_an_evaluation_and_the_figures_that_suit(folder):
    common = ("curves", "reconstructions", "samples")
    assert figures(folder / "d2") == both(*common, "manifold", "manifold_quantiles", "codes")
    assert figures(folder / "d4") == both(*common, "tsne")
    record = json.loads((folder / "d2" / "evaluations" / "test.json").read_text())
    assert record["elbo"]["n"] == 297
    splits = {json.loads(line)["split"] for line in (folder / "d2" / "metrics.jsonl").read_text().splitlines()}
    assert splits == {"train", "validation", "test"}


def test_the_resolved_config_of_a_run_is_a_config(folder):
    settings = read_settings(folder / "d2" / "config.yaml")
    assert settings.model.likelihood.name == "bernoulli"  # chosen by the kind of the data


def test_evaluate_json_is_one_object_alone_and_the_same_twice(folder, capsys):
    outputs = []
    for more in ([], [], ["--batch-size", "7"]):
        assert evaluate([str(folder / "d2"), "--json", *more]) == 0
        outputs.append(json.loads(capsys.readouterr().out))
    assert outputs[0] == outputs[1]
    for key in ("elbo", "log_p_x_given_z", "kl"):
        assert outputs[0][key].keys() == {"mean", "stderr", "n"}
        assert outputs[0][key]["n"] == 297
        assert outputs[2][key]["mean"] == pytest.approx(outputs[0][key]["mean"], rel=1e-6)
    assert outputs[0]["density"] is True
    assert outputs[0]["checkpoint"] == "best"
    assert outputs[0]["elbo"]["mean"] < 0


def test_evaluate_says_that_grey_cross_entropy_is_no_density(folder, capsys):
    assert evaluate([str(folder / "grey"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["density"] is False
    assert evaluate([str(folder / "grey")]) == 0
    assert "not a density" in capsys.readouterr().out


def test_evaluate_splits_limits_saves_and_takes_a_file(folder, capsys, tmp_path):
    run = str(folder / "d2")
    for split, n in (("train", 150), ("validation", 30), ("test", 297)):
        assert evaluate([run, "--split", split, "--json", "--save", str(tmp_path / f"{split}.npz")]) == 0
        assert json.loads(capsys.readouterr().out)["elbo"]["n"] == n
        assert np.load(tmp_path / f"{split}.npz")["elbo"].shape == (n,)
    assert evaluate([run, "--limit", "9", "--save", str(tmp_path / "nine.npz")]) == 0
    np.testing.assert_allclose(
        np.load(tmp_path / "nine.npz")["elbo"], np.load(tmp_path / "test.npz")["elbo"][:9], rtol=1e-5
    )
    capsys.readouterr()
    x = vae.load_data("digits", pixels="static").test.images().numpy()
    np.savez(tmp_path / "own.npz", x=x[:5])
    assert evaluate([run, "--data", str(tmp_path / "own.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["elbo"]["n"] == 5


# what evaluate.py is asked, and the file of the run that keeps the answer
KEPT = {
    "": "test",
    "--batch-size 50": "test",
    "--seed 0 --num-samples 1 --checkpoint best": "test",
    "--split validation": "validation",
    "--split train": "train",
    "--split train --limit 9": "train_limit-9",
    "--seed 3": "test_seed-3",
    "--num-samples 5": "test_samples-5",
    "--checkpoint last": "test_checkpoint-last",
    "--log-likelihood is --limit 3 --seed 3 --num-samples 20": "test_limit-3_seed-3_is-20",
    "--log-likelihood quadrature --limit 2": "test_limit-2_quadrature",
    "--log-likelihood ais --limit 2 --num-samples 3 --chains 4 --start prior": "test_limit-2_ais-3_chains-4_start-prior",
    "--gaps --limit 1 --num-samples 20": "test_limit-1_gaps-20",
    "--self-check --limit 2 --num-samples 3": "test_limit-2_self-check-3",
    "--representation --limit 60": "test_limit-60_representation",
    "--data {t}/my~own.npz --limit 4": "data-my-own-????????_limit-4",
    "--data {t}/my/own.npz --limit 4": "data-own-????????_limit-4",
}


@pytest.mark.parametrize(("asked", "name"), KEPT.items())
def test_an_answer_is_kept_in_a_file_of_its_own(asked, name, folder, tmp_path, capsys, monkeypatch):
    import shutil

    monkeypatch.setattr("vae.evaluation.gaps.STEPS", 3)
    run, kept = tmp_path / "run", tmp_path / "run" / "evaluations"
    shutil.copytree(folder / "d2", run, ignore=lambda path, names: {"evaluations", "figures"} & set(names))
    (tmp_path / "my").mkdir()
    for file in ("my~own.npz", "my/own.npz"):
        np.savez(tmp_path / file, x=np.zeros((9, 8, 8), np.float32))
    assert evaluate([str(run), "--json", *asked.format(t=tmp_path).split()]) == 0
    (file,) = kept.iterdir()
    assert file.match(f"{name}.json")
    assert json.loads(file.read_text()) == json.loads(capsys.readouterr().out)


def test_files_of_one_name_in_two_folders_are_kept_apart_however_they_are_named(folder, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(folder / "d2", tmp_path / "run")
    before = set((tmp_path / "run" / "evaluations").iterdir())
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        np.savez(tmp_path / place / "own.npz", x=np.zeros((9, 8, 8), np.float32))
    monkeypatch.chdir(tmp_path / "a")
    for path in ("own.npz", "../b/own.npz", str(tmp_path / "a" / "own.npz")):
        assert evaluate([str(tmp_path / "run"), "--data", path]) == 0
    assert len(set((tmp_path / "run" / "evaluations").iterdir()) - before) == 2


METHODS = {"is": "50", "hmc": "32", "ais": "10", "quadrature": "30"}


@pytest.mark.parametrize(("method", "samples"), METHODS.items())
def test_log_likelihood_by_every_method(method, samples, folder, tmp_path, capsys):
    arguments = ["--log-likelihood", method, "--num-samples", samples, "--limit", "7"]
    arguments += ["--chains", "4"] if method in ("hmc", "ais") else []
    saved = tmp_path / "values.npz"
    assert evaluate([str(folder / "d2"), *arguments, "--json", "--save", str(saved)]) == 0
    record = json.loads(capsys.readouterr().out)
    found = record["log_p_x"]
    assert found.keys() >= {
        "mean",
        "stderr",
        "n",
        "monte_carlo_error",
        "estimator",
        "num_samples",
        "verdict",
        "seconds",
    }
    assert (found["n"], found["estimator"], found["num_samples"]) == (7, method, int(samples))
    assert record["elbo"]["n"] == 7
    with np.load(saved) as values:
        assert values["log_p_x"].mean() == pytest.approx(found["mean"])
        assert values["elbo"].shape == values["error"].shape == values["index"].shape == (7,)
    chains = "_chains-4" if "--chains" in arguments else ""
    file = folder / "d2" / "evaluations" / f"test_limit-7_{method}-{samples}{chains}.json"
    assert json.loads(file.read_text()) == record
    assert evaluate([str(folder / "d2"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "log p(x)" in out
    assert found["verdict"] in out


def test_the_methods_agree_on_a_small_model(folder, capsys):
    found = {}
    for method in METHODS:
        assert evaluate([str(folder / "d2"), "--log-likelihood", method, "--limit", "5", "--json"]) == 0
        found[method] = json.loads(capsys.readouterr().out)["log_p_x"]["mean"]
    assert found == {method: pytest.approx(found["quadrature"], abs=0.03) for method in METHODS}


def test_log_likelihood_of_grey_levels_is_computed_and_said_to_be_no_density(folder, capsys):
    assert evaluate([str(folder / "grey"), "--log-likelihood", "is", "--num-samples", "20", "--limit", "3"]) == 0
    assert "grey cross-entropy is not a density" in capsys.readouterr().out
    assert evaluate([str(folder / "grey"), "--self-check", "--num-samples", "5", "--limit", "3"]) == 0


def test_gaps_add_up(folder, capsys):
    assert evaluate([str(folder / "d2"), "--gaps", "--num-samples", "300", "--limit", "4", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["gaps"]
    found = {key: record[key]["mean"] for key in ("log_p_x", "bound", "approximation", "amortisation")}
    assert found["approximation"] + found["amortisation"] == pytest.approx(found["log_p_x"] - found["bound"])
    assert found["amortisation"] >= 0
    assert evaluate([str(folder / "d2"), "--gaps", "--num-samples", "300", "--limit", "4"]) == 0
    assert "amort. gap" in capsys.readouterr().out


def test_self_check_bounds_from_both_sides(folder, capsys):
    run = str(folder / "d2")
    assert evaluate([run, "--self-check", "--limit", "4", "--num-samples", "30", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)["self_check"]
    assert record["lower"]["n"] == 4
    assert record["gap"]["mean"] == pytest.approx(record["upper"]["mean"] - record["lower"]["mean"])
    assert abs(record["gap"]["mean"]) < 0.5
    assert evaluate([run, "--self-check", "--log-likelihood", "quadrature", "--limit", "4"]) == 0
    assert "the estimate by quadrature lies inside" in capsys.readouterr().out


def test_representation_stands_beside_pixels_and_pca(folder, capsys):
    assert evaluate([str(folder / "d2"), "--representation", "--limit", "120"]) == 0
    out = capsys.readouterr().out
    assert "classifiers fitted on 120 of 150 training data, scored on 297 test data" in out
    assert all(row in out for row in ("posterior means", "pixels", "pca", "linear autoencoder"))


def test_the_spelling_of_a_path_changes_no_number(folder, tmp_path, capsys, monkeypatch):
    np.savez(tmp_path / "own.npz", x=vae.load_data("digits", pixels="static").test.images().numpy()[:9])
    monkeypatch.chdir(tmp_path)
    values = []
    for path in ("own.npz", "./own.npz", str(tmp_path / "own.npz")):
        assert evaluate([str(folder / "d2"), "--data", path, "--json"]) == 0
        values.append(json.loads(capsys.readouterr().out)["elbo"])
    assert values[0] == values[1] == values[2]


def test_a_run_that_was_stopped_while_drawing_is_completed(folder, tmp_path, capsys):
    import shutil

    shutil.copytree(folder / "d2", tmp_path / "x")
    for name in ("codes.pdf", "codes.png"):
        (tmp_path / "x" / "figures" / name).unlink()
    assert train(["--resume", str(tmp_path / "x")]) == 0
    assert "codes.png" in capsys.readouterr().out
    assert figures(tmp_path / "x") == figures(folder / "d2")


def test_a_run_that_was_stopped_before_it_was_measured_again_is_completed(folder, tmp_path, capsys):
    """Two epochs measured and drawn, then a third, killed before its evaluation: what stands there is of the second."""
    from vae.training.run import train as train_only
    from vae.training.run_directory import resumed_settings

    run = tmp_path / "x"
    arguments = ["--config", str(folder / "tiny.yaml"), "--set", "data.validation_size=0", "--out", str(run)]
    assert train(arguments) == 0
    test = run / "evaluations" / "test.json"
    before = json.loads(test.read_text()), (run / "figures" / "codes.png").read_bytes()
    train_only(resumed_settings(run, ["train.epochs=9"]), run, resume=True, verbose=False)
    assert train(["--resume", str(run)]) == 0
    after = json.loads(test.read_text()), (run / "figures" / "codes.png").read_bytes()
    assert after[0]["step"] > before[0]["step"]
    assert after[1] != before[1]


def test_names_are_drawn_letter_by_letter(folder, tmp_path):
    import shutil

    shutil.copytree(folder / "d2", tmp_path / r"_$\frac$")
    for main in (main_curves, main_reconstructions, main_manifold, main_samples, main_traversals, main_tsne):
        assert main([str(tmp_path / r"_$\frac$")]) == 0


def test_traversals_and_interpolations(folder, tmp_path, capsys):
    """The middle of a row is the code of the datum; ends of a row between two data are their reconstructions."""
    out = ["--out", str(tmp_path)]
    assert main_traversals([str(folder / "d2"), "--count", "1", "--between", "3", "5", *out]) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "interpolation.pdf", "interpolation.png", "traversals.pdf", "traversals.png",
    ]  # fmt: skip
    assert main_traversals([str(folder / "d2"), "--datum", "100000", *out]) == 2
    assert "there is no test datum 100000; there are 297, from 0" in capsys.readouterr().err


def test_data_that_changed_behind_a_run_are_warned_of_or_refused(tmp_path, capsys):
    rng = np.random.default_rng(0)
    save = lambda *shape: np.savez(tmp_path / "own.npz", x=rng.random(shape, dtype=np.float32))  # noqa: E731
    save(40, 1, 4, 4)
    (tmp_path / "c.yaml").write_text(yaml.dump({**CONFIG, "data": {"name": "npz", "path": str(tmp_path / "own.npz")}}))
    assert train(["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "x")]) == 0
    save(40, 1, 4, 4)
    assert evaluate([str(tmp_path / "x")]) == 0
    assert "no longer those that this run was trained on" in capsys.readouterr().err
    save(40, 1, 5, 5)
    assert evaluate([str(tmp_path / "x")]) == 2
    assert "was trained on data of shape (1, 4, 4), and they now have (1, 5, 5)" in capsys.readouterr().err


def test_a_collapsed_posterior_ends_without_t_sne(tmp_path, capsys):
    zeros = np.zeros((60, 1, 8, 8), dtype=np.float32)
    np.savez(tmp_path / "own.npz", x=zeros)
    config = {**CONFIG, "data": {"name": "npz", "path": str(tmp_path / "own.npz")}}
    config["model"] = {**CONFIG["model"], "latent_dim": 3}
    (tmp_path / "c.yaml").write_text(yaml.dump(config))
    assert train(["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "x")]) == 0
    assert "the posterior has collapsed" in capsys.readouterr().err
    assert main_tsne([str(tmp_path / "x"), "--split", "train"]) == 2
    assert "all codes are equal" in capsys.readouterr().err


def test_encode(folder, tmp_path, capsys):
    assert encode([str(folder / "d2"), "--out", str(tmp_path / "codes.npz")]) == 0
    assert "posterior means of the 297 test data" in capsys.readouterr().out
    codes = np.load(tmp_path / "codes.npz")
    data = vae.load_data("digits", pixels="static")
    model = vae.load(folder / "d2")
    np.testing.assert_allclose(codes["z"], model.encode(data.test.images()).numpy(), rtol=1e-5, atol=1e-6)
    assert (codes["y"] == data.test.y.numpy()).all()
    assert encode([str(folder / "d2"), "--out", str(tmp_path / "s.npz"), "--sample", "--limit", "5"]) == 0
    assert np.load(tmp_path / "s.npz")["z"].shape == (5, 2)


def test_plots_of_several_runs_and_elsewhere(folder, tmp_path, capsys):
    runs = [str(folder / "d2"), str(folder / "d4")]
    for main, stem in ((main_curves, "curves"), (main_reconstructions, "reconstructions")):
        assert main([*runs, "--out", str(tmp_path)]) == 0
        assert set(both(stem)) <= {p.name for p in tmp_path.iterdir()}
    assert main_manifold([runs[0], "--range", "3", "--count", "5", "--out", str(tmp_path)]) == 0
    assert main_samples([runs[1], "--count", "7", "--out", str(tmp_path)]) == 0
    assert main_tsne([runs[1], "--limit", "40", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "perplexity lowered from 50 to 13" in captured.err
    assert str(tmp_path / "tsne.png") in captured.out


def test_list_names_every_part_and_dry_run_resolves(folder, capsys):
    from vae.algorithms import OPTIMIZERS, SCHEDULES
    from vae.data import DATASETS
    from vae.likelihoods import LIKELIHOODS
    from vae.models import MODELS
    from vae.networks import DECODERS, ENCODERS
    from vae.objectives import OBJECTIVES

    assert train(["--list"]) == 0
    words = capsys.readouterr().out.split()
    for table in (DATASETS, ENCODERS, DECODERS, LIKELIHOODS, MODELS, OBJECTIVES, OPTIMIZERS, SCHEDULES):
        assert set(table) <= set(words)
    before = set(folder.rglob("*"))
    assert train(["--config", str(ROOT / "configs" / "mnist_d2.yaml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert yaml.safe_load(out)["train"]["batch_size"] == 128
    assert "# 1,137,428 parameters" in out
    assert set(folder.rglob("*")) == before


def test_a_finished_run_says_so(folder, capsys):
    before = (folder / "d4" / "checkpoints" / "last.safetensors").read_bytes()
    assert train(["--resume", str(folder / "d4")]) == 0
    assert "this run is finished" in capsys.readouterr().err
    assert (folder / "d4" / "checkpoints" / "last.safetensors").read_bytes() == before


def test_a_run_goes_on_with_more_epochs(folder, tmp_path):
    run = tmp_path / "more"
    assert train(["--config", str(folder / "tiny.yaml"), "--out", str(run)]) == 0
    assert train(["--resume", str(run), "--set", "train.epochs=3"]) == 0
    epochs = [
        x["epoch"] for x in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if x["split"] == "train"
    ]
    assert epochs == [1, 2, 3]
    assert yaml.safe_load((run / "config.yaml").read_text())["train"]["epochs"] == 3


def test_overwrite_replaces_a_run_and_nothing_else(folder, tmp_path):
    run = tmp_path / "run"
    arguments = ["--config", str(folder / "tiny.yaml"), "--out", str(run)]
    assert train(arguments) == 0
    (run / "notes.txt").write_text("mine")
    assert evaluate([str(run), "--limit", "5"]) == 0
    assert len(list((run / "evaluations").iterdir())) == 2
    assert train([*arguments, "--overwrite", "--set", "train.epochs=1"]) == 0
    assert (run / "notes.txt").read_text() == "mine"
    assert [p.name for p in (run / "evaluations").iterdir()] == ["test.json"]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert {json.loads(line)["epoch"] for line in lines} == {1}


@pytest.fixture
def copied(folder, tmp_path):
    """A copy of the run of two latents, and the arguments that replace it."""
    shutil.copytree(folder / "d2", tmp_path / "run")
    return tmp_path / "run", ["--config", str(folder / "tiny.yaml"), "--out", str(tmp_path / "run"), "--overwrite"]


def test_overwrite_leaves_what_a_user_has_put_beside_the_files_of_a_run(copied):
    run, arguments = copied
    mine = [run / name for name in ("figures/mine.png", "checkpoints/mine.safetensors", "evaluations/mine.txt", "a/b")]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    assert train([*arguments, "--set", "train.epochs=1"]) == 0
    assert all(file.read_text() == "mine" for file in mine)


def test_overwrite_removes_what_was_made_of_the_model_before(copied):
    run, arguments = copied
    names = ("explorer.html", "export/encoder.onnx", "export/decoder.pt2", "figures/samples_aggregate.png")
    for name in (*names, "figures/prediction.pdf"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("of the model before")
    assert train([*arguments, "--set", "train.epochs=1", "--no-figures"]) == 0
    left = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    kept = {"config.yaml", "environment.json", "metrics.jsonl", "evaluations/test.json"}
    assert left - kept <= {"checkpoints/last.safetensors", "checkpoints/best.safetensors"}
    assert not (run / "export").exists()


@pytest.mark.parametrize("name", ["d2", "d4", "grey"])
def test_overwrite_knows_every_file_that_a_run_writes(folder, name):
    run = folder / name
    written = {path for path in run.rglob("*") if path.is_file() and path.name != ".lock"}
    assert written == set(own_files(run))
    assert any(path.parent.name == "figures" for path in written)


@pytest.mark.parametrize("name", ["checkpoints", "figures", "evaluations"])
def test_overwrite_follows_no_link_and_removes_nothing_before_it_has_looked(copied, tmp_path, name, capsys):
    run, arguments = copied
    shutil.move(run / name, tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock"}
    assert train(arguments) == 2
    assert (
        f"{run / name}: is a link, a folder in place of a file, or read-only, which --overwrite leaves alone"
        in capsys.readouterr().err
    )
    assert before == {path: path.stat().st_mtime_ns for path in before}
    (run / name).unlink()
    assert train([*arguments, "--set", "train.epochs=1"]) == 0


def test_overwrite_refuses_a_folder_in_place_of_a_file_before_it_removes_any(copied, capsys):
    run, arguments = copied
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").mkdir()
    assert train(arguments) == 2
    assert "metrics.jsonl: is a link, a folder in place of a file, or read-only" in capsys.readouterr().err
    assert (run / "checkpoints" / "last.safetensors").exists()


@pytest.mark.parametrize(
    "name", ["config.yaml", "checkpoints/last.safetensors", "metrics.jsonl", "evaluations/test.json"]
)
def test_no_output_replaces_a_file_of_a_run(copied, name, capsys):
    run, _ = copied
    before = (run / name).read_bytes()
    assert encode([str(run), "--out", str(run / name)]) == 2
    assert f"{run / name}: is a file of the run {run}; choose another name" in capsys.readouterr().err
    assert evaluate([str(run), "--limit", "5", "--save", str(run / name)]) == 2
    assert (run / name).read_bytes() == before
    assert encode([str(run), "--out", str(run / "codes.npz"), "--limit", "5"]) == 0  # beside them is fine


@pytest.mark.parametrize("content", ["null", "[]", "3", "[" * 100_000])
def test_an_environment_that_is_none_is_one_sentence(copied, content, capsys):
    run, arguments = copied
    (run / "environment.json").write_text(content)
    assert train(arguments) == 2
    assert "holds other files and is not a run" in capsys.readouterr().err
    assert train(["--resume", str(run), "--set", "train.epochs=3"]) == 0  # the checkpoint says enough


def test_an_empty_out_is_refused(folder, capsys):
    assert train(["--config", str(folder / "tiny.yaml"), "--out", ""]) == 2
    assert capsys.readouterr().err == "train.py: --out is empty; name a directory for the run\n"


# ------------------------------------------------------------------------------------------------- from weights


def test_a_run_begins_with_the_weights_of_another(folder, tmp_path):
    run, old = tmp_path / "next", folder / "d2"
    config = ["--config", str(folder / "tiny.yaml"), "--from", str(old)]
    changed = ["train.optimizer={name: sgd, lr: 1e-30}", "train.epochs=1", "modifiers.beta=2"]
    assert train([*config, "--out", str(run), "--set", *changed]) == 0
    before, after = vae.load(old).state_dict(), vae.load(run).state_dict()
    assert all(
        torch.equal(before[name], after[name]) for name in before if "running" not in name and "num_b" not in name
    )
    source = checkpoints(old)["best"]
    expected = {"run": str(old), "checkpoint": "best", "sha256": checkpoint.sha256_of(source)}
    assert json.loads((run / "environment.json").read_text())["weights"] == expected
    assert checkpoint.read_values(checkpoints(run)["last"])["weights"] == expected
    assert train(["--resume", str(run), "--set", "train.epochs=2"]) == 0
    assert checkpoint.read_values(checkpoints(run)["last"])["weights"] == expected
    assert checkpoint.read_values(source)["weights"] is None


def test_a_run_from_weights_that_is_killed_at_once_goes_on_from_them(folder, tmp_path, monkeypatch):
    run, old = tmp_path / "next", folder / "d2"
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr("vae.training.run.run_to_the_end", lambda *given: 1 / 0)
        train_run(read_settings(folder / "tiny.yaml"), run, weights=old, verbose=False)
    before, after = vae.load(old).state_dict(), vae.load(run).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert train(["--resume", str(run)]) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--config", "{c}", "--from", "{d4}"], "last.safetensors: of another model: "),
        (["--config", "{c}", "--from", "nowhere"], "nowhere: no such run directory"),
        (["--resume", "{d2}", "--from", "{d4}"], "--resume continues a run in its own directory; it takes no --out"),
        (
            ["--resume", "{d2}", "--set", "train.optimizer.lr=1e-4"],
            "begin another run with its weights: train.py --from {d2}",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(folder, tmp_path, arguments, sentence, capsys):
    places = {"c": folder / "tiny.yaml", "d2": folder / "d2", "d4": folder / "d4"}
    given = [argument.format(**places) for argument in arguments]
    assert train([*given, *([] if "--resume" in given else ["--out", str(tmp_path / "x")])]) == 2
    error = capsys.readouterr().err
    assert sentence.format(**places) in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


# ------------------------------------------------------------------------------------------------- a full disk

LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
from vae.commands.train import main
sys.exit(main({arguments}))
"""


def limited(limit, arguments):
    """train.py where no file may be larger."""
    code = LIMITED.format(limit=limit, arguments=arguments)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_a_disk_without_room_for_a_checkpoint_is_found_before_the_training(folder, tmp_path):
    run = tmp_path / "x"
    ended = limited(20_000, ["--config", str(folder / "tiny.yaml"), "--out", str(run), "--no-figures"])
    assert ended.returncode == 2
    (said,) = [line for line in ended.stderr.splitlines() if "cannot be written" in line]
    assert re.search(
        r"x/checkpoints/last\.safetensors: cannot be written: .*; it needs [\d,]+ bytes, and [\d,]+ are free", said
    )
    assert "epoch 1" not in ended.stderr
    assert not (run / "config.yaml").exists()
    assert (
        train(["--config", str(folder / "tiny.yaml"), "--out", str(run), "--no-figures"]) == 0
    )  # nothing is in the way


def test_a_checkpoint_that_cannot_be_written_later_leaves_the_one_before(folder, tmp_path, monkeypatch):
    run = tmp_path / "x"
    assert train(["--config", str(folder / "tiny.yaml"), "--out", str(run), "--no-figures"]) == 0
    before = (run / "checkpoints" / "last.safetensors").read_bytes()

    def full(*ignored):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_atomically", full)
    with pytest.raises(
        CheckpointError, match=r"cannot be written: No space left.*bytes.*free.*last good checkpoint is"
    ):
        train_run(resumed_settings(run, ["train.epochs=9"]), run, resume=True, verbose=False)
    assert (run / "checkpoints" / "last.safetensors").read_bytes() == before


def test_vectors_and_unlabelled_data_are_pictured_too(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).standard_normal((60, 7)).astype(np.float32))
    config = {**CONFIG, "data": {"name": "npz", "path": str(tmp_path / "own.npz")}}
    for dim in (1, 2, 3):
        config["model"] = {**CONFIG["model"], "latent_dim": dim}
        (tmp_path / "c.yaml").write_text(yaml.dump(config))
        assert train(["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / str(dim))]) == 0


# ------------------------------------------------------------------------------------------------- what is wrong


def damage(folder, tmp_path, name, change):
    """A copy of the run of two latents with one file changed (or removed, where the change gives None)."""
    import shutil

    run = tmp_path / "damaged"
    shutil.copytree(folder / "d2", run)
    path = run / name
    content = change(path.read_bytes())
    path.unlink() if content is None else path.write_bytes(content)
    return run


def flip(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :]


LAST, BEST = "checkpoints/last.safetensors", "checkpoints/best.safetensors"
WRONG = [
    # (command, arguments, what the sentence says); {d} is the folder of the runs, {t} a fresh one
    (train, [], "give one of --config FILE, --resume RUN, --list"),
    (train, ["--config", "{d}/tiny.yaml", "--resume", "{d}/d2"], "give one of"),
    (train, ["--confg", "x"], "unrecognized arguments: --confg x; see train.py --help"),
    (train, ["--config"], "--config: expected one argument"),
    (train, ["--config", "{d}/tinny.yaml"], "no such config file; did you mean"),
    (train, ["--config", "{d}"], "cannot be read as a config file"),
    (train, ["--config", "{d}/tiny.yaml", "--set", "model.latent_dims=3"], "no such setting; did you mean latent_dim?"),
    (train, ["--config", "{d}/tiny.yaml", "--set", "train.epochs=ten"], "expected a whole number, not 'ten'"),
    (train, ["--config", "{d}/tiny.yaml", "--set", "train.epochs"], "expected KEY=VALUE"),
    (train, ["--config", "{d}/tiny.yaml", "--out", "{d}/d2"], "holds a run already; continue it with --resume"),
    (train, ["--config", "{d}/tiny.yaml", "--out", "{d}"], "holds other files and is not a run"),
    (train, ["--config", "{d}/tiny.yaml", "--out", "{d}/tiny.yaml"], "is a file; --out names a directory"),
    (train, ["--config", "{d}/tiny.yaml", "--out", "/proc/x/y"], "cannot write the run there"),
    (
        train,
        ["--config", "{d}/tiny.yaml", "--set", "model.likelihood=bernoulli", "data.pixels=grey"],
        "bernoulli needs 0 or 1",
    ),
    (train, ["--config", "{d}/tiny.yaml", "--set", "data.train_size=5000"], "do not fit into the 1500 data"),
    (train, ["--config", "{d}/tiny.yaml", "--set", "data={{name: npz, path: {t}/no.npz}}"], "no such file"),
    (train, ["--config", "{d}/tiny.yaml", "--set", "data={{name: folder, path: {t}}}"], "no images in this folder"),
    (
        train,
        ["--config", "{d}/tiny.yaml", "--set", "data={{name: frey_face, root: {t}}}"],
        "frey_rawface.mat: no such file",
    ),
    (
        train,
        ["--config", "{d}/tiny.yaml", "--set", "model.encoder={{name: conv, channels: [4, 4, 4, 4]}}"],
        "too small for 4 convolutions",
    ),
    (train, ["--config", "{d}/tiny.yaml", "--set", "model.encoder={{name: module, of: x}}"], "open it from Python"),
    (train, ["--config", "{d}/tiny.yaml", "--set", "data={{name: loader}}"], "stands for a DataLoader"),
    *[
        (train, ["--config", "{d}/tiny.yaml", *more, "--set", f"objective={{{{{options}}}}}"], sentence)
        for more in ([], ["--dry-run"])
        for options, sentence in (
            ("name: stl, num_samples: 3", "objective: stl is biased for num_samples > 1; use dreg"),
            ("name: score_function, baseline: leave_one_out", "needs num_samples of at least 2"),
            ("name: dreg, num_samples: 0", "objective.num_samples: must be at least 1, not 0"),
        )
    ],
    (
        train,
        ["--config", "{d}/tiny.yaml", "--dry-run", "--set", "objective=iwae", "modifiers.free_bits=0.5"],
        "set objective.name to sgvb_b",
    ),
    (train, ["--resume", "{d}/nothing"], "no such run directory"),
    (train, ["--resume", "{t}"], "is not a run directory (it has no config.yaml)"),
    (train, ["--resume", "{d}/d2", "--set", "model.latent_dim=3"], "model.latent_dim cannot change in a resumed run"),
    (train, ["--resume", "{d}/d2", "--out", "{t}"], "it takes no --out"),
    (evaluate, [], "the following arguments are required: RUN"),
    (evaluate, ["{d}/nothing"], "no such run directory"),
    (evaluate, ["{d}/tiny.yaml"], "no such run directory"),
    (evaluate, ["{d}/d2", "--limit", "0"], "'0' is not a whole number of at least 1"),
    (evaluate, ["{d}/d2", "--limit", "many"], "'many' is not a whole number"),
    (evaluate, ["{d}/d2", "--split", "tests"], "invalid choice: 'tests'"),
    (evaluate, ["{d}/d4", "--split", "validation"], "there are no validation data in this run"),
    (evaluate, ["{d}/d4", "--checkpoint", "best"], "has no checkpoint best, only last"),
    (evaluate, ["{d}/d2", "--data", "{t}/no.npz"], "no such file"),
    (evaluate, ["{d}/d2", "--log-likelihood", "iwae"], "invalid choice: 'iwae'"),
    (evaluate, ["{d}/d2", "--log-likelihood", "is", "--num-samples", "0"], "'0' is not a whole number of at least 1"),
    (evaluate, ["{d}/d2", "--log-likelihood", "is", "--chains", "8"], "--chains needs --log-likelihood hmc or ais"),
    (evaluate, ["{d}/d2", "--log-likelihood", "is", "--start", "prior"], "--start needs --log-likelihood ais"),
    (
        evaluate,
        ["{d}/d2", "--log-likelihood", "hmc", "--chains", "5"],
        "hmc needs an even number of chains, at least 4, not 5",
    ),
    (evaluate, ["{d}/d4", "--log-likelihood", "quadrature"], "up to 3 latents, and the model has 4; use is or ais"),
    (evaluate, ["{d}/d2", "--gaps", "--self-check"], "give one of them"),
    (evaluate, ["{d}/d2", "--gaps", "--log-likelihood", "is"], "leave --log-likelihood out"),
    (evaluate, ["{d}/d2", "--representation", "--gaps"], "leave out --log-likelihood"),
    (evaluate, ["{d}/d2", "--self-check", "--split", "train"], "--self-check simulates its data"),
    (encode, ["{d}/d2"], "the following arguments are required: --out"),
    (encode, ["{d}/d2", "--out", "/proc/x/y.npz"], "/proc/x"),
    (
        main_manifold,
        ["{d}/d4"],
        "a manifold is of images over one or two latents, and this model is of shape (1, 8, 8) over 4",
    ),
    (main_manifold, ["{d}/d2", "--range", "-1"], "'-1' is not a number greater than 0"),
    (main_tsne, ["{d}/d4", "--limit", "3"], "t-SNE needs at least 4 data"),
    (main_reconstructions, ["{d}/d2", "{d}/grey"], "was trained on other data"),
    (main_curves, ["{t}"], "is not a run directory"),
    (main_samples, ["{d}/d2", "--count", "0"], "'0' is not a whole number of at least 1"),
]


@pytest.mark.parametrize(
    ("main", "arguments", "sentence"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else ""
)
def test_a_mistake_is_one_sentence_and_status_2(main, arguments, sentence, folder, tmp_path, capsys):
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    status = main([a.format(d=folder, t=tmp_path) for a in arguments])
    captured = capsys.readouterr()
    assert status == 2
    assert sentence in captured.err
    assert captured.err.strip().count("\n") == 0
    assert "Traceback" not in captured.err
    assert captured.out == ""
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before  # nothing lost, nothing made


DAMAGED = [
    (BEST, flip, evaluate, "best.safetensors: "),
    (BEST, lambda c: c[:-10], evaluate, "not a whole checkpoint"),
    (BEST, lambda c: b"", evaluate, "not a whole checkpoint"),
    (LAST, flip, train, "last.safetensors: "),
    (LAST, lambda c: c[: len(c) // 2], train, "not a whole checkpoint"),
    ("config.yaml", lambda c: None, evaluate, "it has no config.yaml"),
    ("config.yaml", lambda c: c.replace(b"lr: 0.001", b"lr: 0.01"), train, "train.optimizer.lr differ"),
    ("config.yaml", lambda c: c.replace(b"latent_dim: 2", b"latent_dim: 3"), train, "of another model"),
    ("metrics.jsonl", lambda c: b"[]\n" + c, train, "line 1 was not written"),
    ("metrics.jsonl", lambda c: c[:100], train, "metrics.jsonl: holds 0 lines"),
    ("metrics.jsonl", lambda c: b"garbage\n" + c, train, "line 1 was not written by this library"),
]


@pytest.mark.parametrize(("name", "change", "main", "sentence"), DAMAGED, ids=[f"{n}-{s}" for n, _, _, s in DAMAGED])
def test_a_damaged_run_is_refused_by_name(name, change, main, sentence, folder, tmp_path, capsys):
    run = damage(folder, tmp_path, name, change)
    status = main([str(run)] if main is evaluate else ["--resume", str(run), "--set", "train.epochs=4"])
    captured = capsys.readouterr()
    assert status == 2
    assert sentence in captured.err
    assert captured.err.strip().count("\n") == 0


def test_all_misfits_of_a_config_come_at_once_a_line_each(folder, tmp_path, capsys):
    (tmp_path / "bad.yaml").write_text("data: {name: mnits}\nmodel: {latent_dims: 2}\ntrain: {epochs: -1}\n")
    assert train(["--config", str(tmp_path / "bad.yaml")]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4
    assert all(line.startswith(f"{tmp_path / 'bad.yaml'}: ") for line in errors)


def test_a_run_that_fails_exits_1(folder, tmp_path, capsys):
    arguments = ["--config", str(folder / "tiny.yaml"), "--out", str(tmp_path / "x")]
    assert train([*arguments, "--set", "train.optimizer={name: sgd, lr: 1e30}"]) == 1
    errors = capsys.readouterr().err.strip().splitlines()
    assert "is not finite at step" in errors[-1]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda s: s.stem)
def test_help_answers_in_under_a_second_with_an_example(script):
    start = time.perf_counter()
    result = subprocess.run([sys.executable, str(script), "--help"], capture_output=True, text=True)
    assert time.perf_counter() - start < 1
    assert result.returncode == 0
    assert f"example: python scripts/{script.name}" in " ".join(result.stdout.split())


def test_a_process_gives_sentence_and_status_too(tmp_path):
    result = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "evaluate.py"), str(tmp_path / "no")], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1


def test_scripts_are_thin():
    assert {s.stem for s in SCRIPTS} >= {
        "train", "evaluate", "encode", "plot_curves", "plot_samples", "plot_reconstructions", "plot_manifold", "plot_tsne",
        "compare_estimators"
    }  # fmt: skip
    assert all(len(s.read_text().splitlines()) <= 10 for s in SCRIPTS)
