"""Estimators compared: what is measured lies within its error of theory, and the command writes what it says."""

import json
import math
from unittest import mock

import pytest
import torch
import yaml

from tests.problems import LinearGaussian
from vae.commands.compare_estimators import main
from vae.data.splits import Split
from vae.reproduce.estimators import study
from vae.reproduce.estimators.figure import draw
from vae.reproduce.estimators.gradients import (
    COMPARED,
    KNOWN,
    WARM_UP,
    _gradients,
    compare_against_data,
    compare_against_samples,
    compare_known,
)
from vae.reproduce.estimators.signal_to_noise import (
    compare_signal_to_noise,
    exact_gradient,
    fitted_slopes,
    predicted_constants,
)

CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 150},
    "model": {"latent_dim": 2, "encoder": {"hidden": [12]}, "decoder": {"hidden": [12]}},
    "train": {"batch_size": 50, "device": "cpu", "samples": 100},
}


def off(row, value, exact):
    """How many of its standard errors a measured number is from what is exact."""
    return abs(row[value] - exact) / row[f"{value}_stderr"]


@pytest.mark.parametrize(("theta", "L"), [(0.0, 4), (1.0, 1), (1.0, 5), (2.0, 2)])
def test_known_gradients_lie_within_their_errors_of_theory(theta, L):
    """Mean and variance of 6 estimators by 20 000 gradients; beyond 4.5 standard errors by chance: 3e-4 in all."""
    rows = compare_known(theta, L, 20_000, seed=3)
    assert {row["estimator"] for row in rows} == KNOWN.keys() - ({"leave one out"} if L == 1 else set())
    for row in rows:
        assert row["exact_mean"] == 2 * theta
        assert off(row, "mean", 2 * theta) < 4.5, row
        assert off(row, "variance", row["exact_variance"]) < 4.5, row


def test_theory_of_the_known_gradients():
    """Wang's example at theta = 1: one sample, five for leave-one-out; and the running baseline at 1.5, four samples."""
    exact = {name: known.variance(1.0, 5 if name == "leave one out" else 1) for name, known in KNOWN.items()}
    exact["running b"] = KNOWN["running b"].variance(1.5, 4)
    assert exact == pytest.approx(
        {
            "no baseline": 30,
            "b = E f": 18,
            "running b": 7.0362,
            "leave one out": 4.1,
            "optimal b": 14,
            "reparameterized": 4,
        },
        rel=1e-4,
    )


# ------------------------------------------------------------------------------------- a VAE


@pytest.fixture(scope="module")
def scalar():
    """The linear-Gaussian case of the variance table as a model and a split of one datum, x = 1.7, and its rows."""
    model = LinearGaussian.scalar().model()
    split = Split(torch.tensor([[1.7]], dtype=torch.float64), None, torch.arange(1))
    rows = list(compare_against_samples(model, split, (1, 4), 1, 250, seed=1))
    return model, split, {(row["estimator"], row["num_samples"], row["network"]): row for row in rows}


def test_variances_of_a_vae_lie_within_their_errors_of_theory(scalar):
    """The trace over weights and biases of the last layer: (1 + x^2) (var d mean + var d log std / 4), x = 1.7."""
    rows, exact = scalar[2], {"sgvb_a": (6.9064, 7.3801), "sgvb_b": (4.1128, 5.9596), "stl": (0.9242, 3.0729)}
    exact |= {"score_function": (43.660, 54.986), "iwae": exact["sgvb_a"], "dreg": exact["stl"]}
    for name, (mean, log_std) in exact.items():
        row = rows[name, 1, "encoder"]
        assert off(row, "variance", (1 + 1.7**2) * (mean + log_std / 4)) < 4.5, row
    for name in ("sgvb_a", "sgvb_b", "score_function"):  # of four samples, a quarter
        one, four = rows[name, 1, "encoder"], rows[name, 4, "encoder"]
        error = math.hypot(one["variance_stderr"] / 4, four["variance_stderr"])
        assert abs(one["variance"] / 4 - four["variance"]) < 4.5 * error


def test_a_running_baseline_has_warmed_up_before_it_is_measured(scalar):
    """Its variance is about that of b = ELBO, a trace of 3.89 (15.685 + 28.732 / 4), where no baseline has 223."""
    model, _, rows = scalar
    row, exact = rows["score_function, running", 1, "encoder"], (1 + 1.7**2) * (15.685 + 28.732 / 4)
    assert off(row, "variance", exact) < 4.5
    for name, warm_up in (("score_function, running", WARM_UP), ("score_function", 0)):
        batch = mock.Mock(return_value=torch.ones(1, 1, dtype=torch.float64))
        stream = _gradients(COMPARED[name](1), model, batch, 7, "x", 0)
        assert (sum(1 for _ in stream), batch.call_count) == (7, 7 + warm_up)


def test_only_the_biased_estimator_is_found_biased(scalar):
    rows = scalar[2]
    assert {name for name, _, _ in rows} == COMPARED.keys()
    for (name, L, network), row in rows.items():
        biased = name == "stl" and L > 1 and network == "encoder"
        distance = off(row, "relative_bias", 0)
        assert distance > 10 if biased else distance < 4.5, (name, L, network, row)
        assert (row["note"] is not None) == (name == "stl" and L > 1)
    length = math.hypot(2.586, -0.5768 / 2) * math.sqrt(1 + 1.7**2)  # of the exact gradient of the ELBO
    row = rows["sgvb_b", 4, "encoder"]
    assert off(row, "component", length) < 4.5
    assert row["exact_component"] == pytest.approx(length, rel=0.03)


def test_a_larger_minibatch_lowers_the_variance_in_proportion():
    problem = LinearGaussian.random(5, 3)
    split = Split(problem.data(40), None, torch.arange(40))
    rows = list(compare_against_data(problem.model(), split, (2, 8), {"sgvb_b": 1, "stl": 1}, 300, seed=2))
    for name in ("sgvb_b", "stl"):
        for network in ("encoder", "decoder"):
            two, eight = (r for r in rows if (r["estimator"], r["network"]) == (name, network))
            error = math.hypot(two["variance_stderr"] / 4, eight["variance_stderr"])
            assert abs(two["variance"] / 4 - eight["variance"]) < 4.5 * error


def test_a_comparison_leaves_the_model_as_it_was_and_is_the_same_twice(scalar):
    model, split, _ = scalar
    model.train()
    state = torch.get_rng_state()
    one, two, other = (list(compare_against_samples(model, split, (2,), 1, 10, seed=s)) for s in (0, 0, 1))
    assert one == two
    assert one != other
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert all(p.grad is None for p in model.parameters())


# ------------------------------------------------------------------------------------- signal to noise


@pytest.mark.parametrize("K", [1, 2, 50])
def test_the_exact_gradient_is_the_derivative_of_the_exact_bound(K, float64):
    d_mean, d_log_std, _, d_b = LinearGaussian.reference().importance_gradients(torch.ones(1, 1), K)
    torch.testing.assert_close(exact_gradient(K), torch.stack([d_mean, d_log_std, d_b]), rtol=0, atol=2e-8)


def test_the_constants_that_signal_to_noise_ratios_tend_to():
    constants = predicted_constants()
    exact = [0.28635, 0.06083, 0.79394, 0.23973, 0.58943, 0.58943]
    keys = [(e, f"encoder {p}") for e in ("iwae", "dreg") for p in ("mean", "log std")]
    keys += [(e, "decoder bias") for e in ("iwae", "dreg")]
    assert [constants[key] for key in keys] == pytest.approx(exact, abs=1e-5)


def test_signal_to_noise_slopes_are_minus_and_plus_a_half():
    rows = [row for K in (16, 64, 256) for row in compare_signal_to_noise(K, 1500, seed=5)]
    slopes = fitted_slopes(rows)
    assert len(slopes) == 6
    for slope in slopes:
        assert slope["slope"] == pytest.approx(slope["exact_slope"], abs=0.07)
    for row in rows:
        assert off(row, "mean", row["exact_mean"]) < 4.5, row
    for row in compare_signal_to_noise(16, 1500, seed=5, chunk=16 * 400):  # the last piece is the shorter
        assert off(row, "mean", row["exact_mean"]) < 4.5, row


def test_a_slope_is_fitted_by_its_errors():
    """An exact power law has its slope; a point of large error hardly bends it."""

    def rows(bend):
        return [
            {
                "estimator": estimator,
                "parameter": parameter,
                "num_samples": K,
                "signal_to_noise": 3 * K**0.7 * (bend if K == 64 else 1),
                "signal_to_noise_stderr": 3 * K**0.7 * (1000 if K == 64 else 0.01),
            }
            for estimator, parameter in predicted_constants()
            for K in (4, 16, 64)
        ]

    assert fitted_slopes(rows(1))[0]["slope"] == pytest.approx(0.7, abs=1e-9)
    assert fitted_slopes(rows(9))[0]["slope"] == pytest.approx(0.7, abs=1e-6)
    assert fitted_slopes(rows(1))[0]["slope_stderr"] == pytest.approx(0.01 * math.sqrt(2) / math.log(4), rel=1e-3)


# ------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    path = tmp_path_factory.mktemp("compared")
    (path / "tiny_$x$.yaml").write_text(yaml.dump(CONFIG))
    arguments = ["--config", str(path / "tiny_$x$.yaml"), "--samples", "1000", "--epochs", "2", "--batch-size", "3"]
    return path, arguments


def test_the_command_writes_table_and_figure_and_prints_one_object(compared, capsys):
    path, arguments = compared
    assert main([*arguments, "--out", str(path / "out"), "--seed", "4", "--json"]) == 0
    captured = capsys.readouterr()
    printed = json.loads(captured.out)
    names = {f"estimators.{kind}" for kind in ("md", "json", "png", "pdf")}
    assert {p.name for p in (path / "out").iterdir()} == names
    assert {name.rpartition("/")[2] for name in printed.pop("files")} == names
    assert json.loads((path / "out" / "estimators.json").read_text()) == printed
    assert (printed["seed"], printed["samples"], printed["batch_size"]) == (4, 1000, 3)
    for row in printed["known"]:
        assert off(row, "mean", row["exact_mean"]) < 4.5
    assert {row["estimator"] for row in printed["vae_noise"]} == COMPARED.keys()
    markdown = (path / "out" / "estimators.md").read_text()
    assert markdown.count("\n## ") == 5
    assert "| slope " in markdown
    assert "use dreg, which is not" in markdown
    row = printed["known"][0]
    assert f"{row['variance']:.5g} ± {row['variance_stderr']:.2g}" in markdown
    assert "training" in captured.err


def test_the_figure_names_every_series_and_draws_theory(compared):
    known = [row for theta in (0.0, 1.0) for row in compare_known(theta, 4, 1000)]
    known += compare_known(1.0, 2, 1000)
    model, split = LinearGaussian.scalar().model(), Split(torch.full((4, 1), 1.7).double(), None, torch.arange(4))
    noise = list(compare_against_samples(model, split, (1, 2), 2, 10))
    data = list(compare_against_data(model, split, (1, 2), {"sgvb_a": 1, "iwae": 5}, 10))
    ratios = [row for K in (16, 64) for row in compare_signal_to_noise(K, 100)]
    tables = {"known": known, "vae_noise": noise, "vae_minibatches": data, "signal_to_noise": ratios}
    figure = draw({**tables, "slopes": fitted_slopes(ratios)}, "a_$b$")
    texts = [" ".join(t.get_text() for t in axes.get_legend().get_texts()) for axes in figure.axes[:5]]
    for name in ("score function", "b = E f", "running b", "leave one out", "optimal b", "reparameterized"):
        assert name in texts[0]
        assert name in texts[1]
    assert "slope" in texts[2]
    assert "stl" in texts[3]
    assert "iwae (L = 5)" in texts[4]
    theory = [line for line in figure.axes[0].lines if line.get_linestyle() == "-"]
    assert [20 * value for value in theory[-1].get_ydata()] == pytest.approx([20, 20])  # 4 / L, whatever theta
    assert [axes.get_yscale() for axes in figure.axes] == ["log"] * 5 + ["symlog"]


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--samples", "10"], "'10' is not a whole number of at least 1000"),
        (["--epochs", "0"], "'0' is not a whole number of at least 1"),
        (["--config", "{d}/no.yaml"], "no such config file"),
        (["--out", "{d}/tiny_$x$.yaml"], "is a file; --out names a directory"),
        (["--seed", "-1"], "not a whole number of at least 0 (and below 2^32)"),
        (["--confg", "x"], "see compare_estimators.py --help"),
    ],
)
def test_a_mistake_is_one_sentence_and_status_2(compared, more, sentence, capsys):
    path, arguments = compared
    arguments = [*arguments, "--out", str(path / "none"), *(a.format(d=path) for a in more)]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert sentence in captured.err
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""
    assert not (path / "none").exists()


def test_an_out_is_needed(capsys):
    assert main([]) == 2
    assert "the following arguments are required: --out" in capsys.readouterr().err


def test_ctrl_c_exits_130(compared, monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, "compare_known", interrupted)
    path, arguments = compared
    assert main([*arguments, "--out", str(path / "none")]) == 130
    assert not (path / "none").exists()
