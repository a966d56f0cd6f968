"""Scores of data and their p-values by the validation split, through the command."""

import csv
import json
import math

import numpy as np
import pytest
import torch

import vae
from vae.commands import score as command
from vae.evaluation.outliers import p_values, scores
from vae.training import read_settings
from vae.training.run import train

CONFIG = {
    "data": {"name": "digits", "train_size": 1000, "validation_size": 200},
    "model": {"latent_dim": 2, "encoder": {"hidden": [32]}, "decoder": {"hidden": [32]}},
    "train": {"epochs": 20},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("score") / "run"
    train(read_settings(CONFIG), folder, verbose=False)
    return folder


def test_p_values_count_held_out_scores_that_are_as_low():
    held = torch.tensor([3.0, 1.0, 2.0, 2.0], dtype=torch.float64)
    found = p_values(torch.tensor([0.0, 1.0, 2.0 - 1e-12, 2.5, 9.0], dtype=torch.float64), held)
    torch.testing.assert_close(found, torch.tensor([1, 2, 4, 4, 5], dtype=torch.float64) / 5)


def test_p_values_of_data_like_the_held_out_ones_are_uniform():
    """500 p-values by 500 others of the same law: the shares at most .1 and .5 to 4 standard errors of both (a
    false-alarm rate of 1e-4)."""
    generator = torch.Generator().manual_seed(0)
    new, held = torch.randn(2, 500, generator=generator, dtype=torch.float64)
    for level in (0.1, 0.5):
        share = (p_values(new, held) <= level).double().mean().item()
        assert abs(share - level) < 4 * math.sqrt(2 * level * (1 - level) / 500)


def test_the_command_names_what_is_strange(run, tmp_path, capsys):
    digits = vae.load_data("digits").test.images()[:30].clone()
    digits[7] = 1 - digits[7]
    np.savez(tmp_path / "mine.npz", x=digits.numpy())
    out = tmp_path / "scores.csv"
    assert command.main([str(run), "--data", str(tmp_path / "mine.npz"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "n = 30; p-values by 200 validation data" in printed
    rows = list(csv.DictReader(out.open()))
    assert len(rows) == 30
    worst = min(rows, key=lambda row: float(row["elbo"]))
    assert worst["index"] == "7"
    assert float(worst["p_value"]) == pytest.approx(1 / 201)
    for row in rows:
        assert float(row["elbo"]) == pytest.approx(float(row["log_p_x_given_z"]) - float(row["kl"]), abs=1e-4)
    assert (run / "figures" / "strangest.png").exists()
    assert "grey cross-entropy is not a density" in printed


def test_the_score_is_log_p_x_if_samples_are_asked_for(run, capsys):
    assert command.main([str(run), "--split", "test", "--limit", "25", "--num-samples", "100", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["n"] == 25
    model, data = vae.load(run), vae.load_data("digits", train_size=1000, validation_size=200)
    values = scores(model, data.evaluation_split("test", 25), name="test", num_samples=100)
    order = values["log_p_x"].argsort()
    held = scores(model, data.evaluation_split("validation"), name="validation", num_samples=100)["score"]
    first = found["strangest"][0]
    assert first["log_p_x"] == pytest.approx(values["log_p_x"][order[0]].item())
    assert first["p_value"] == pytest.approx(p_values(values["log_p_x"], held)[order[0]].item())
    assert (values["log_p_x"] > values["elbo"] - 1).all()


def test_what_does_not_fit_is_one_sentence(run, tmp_path, capsys):
    settings = read_settings({**CONFIG, "data": {"name": "digits"}}, ["train.epochs=1"])
    train(settings, tmp_path / "without", verbose=False)
    for arguments, sentence in (
        ([str(tmp_path / "without")], "without validation data, by which p-values are told"),
        ([str(run), "--data", "x.npz", "--split", "train"], "--data replaces the split"),
        ([str(run), "--data", str(tmp_path / "none.npz")], "none.npz"),
        ([str(run), "--out", str(run / "metrics.jsonl")], "is a file of the run"),
    ):
        assert command.main(arguments) == 2
        err = capsys.readouterr().err
        assert sentence in err
        assert err.count("\n") == 1
