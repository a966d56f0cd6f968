"""What is measured for Kingma & Welling 2013: curves, the three ways to log p(x), the search, and its figures."""

import math

import numpy as np
import pytest
import torch

import vae
from tests.problems import LinearGaussian
from vae.evaluation import FittedDensity
from vae.evaluation import measure as log_likelihood
from vae.reproduce.document import Made, Number
from vae.reproduce.kingma2013 import KINGMA2013, document, measures
from vae.reproduce.kingma2013.figures import published
from vae.reproduce.kingma2013.settings import EXPERIMENTS
from vae.reproduce.records import Record
from vae.reproduce.table import table
from vae.training import read_settings

SMALL = {
    "data": {"name": "digits", "train_size": 60},
    "model": {"latent_dim": 2, "encoder": {"hidden": [8]}, "decoder": {"hidden": [8]}},
    "train": {"samples": 600, "batch_size": 20, "optimizer": {"name": "adagrad", "lr": 0.02}},
}


def made(folder=None, quick=True, **train):
    settings = read_settings({**SMALL, "train": {**SMALL["train"], **train}})
    return Made(0, quick, True, settings, folder=folder)


def test_training_values_are_means_since_the_last_test():
    line = lambda split, samples, elbo: {"split": split, "samples": samples, "elbo": elbo}  # noqa: E731
    lines = [line("train", 1, -9.0), line("train", 2, -7.0), line("test", 2, -6.0), line("train", 3, -5.0)]
    found = measures.curve([*lines, line("test", 3, -4.0), line("test", 3, -4.0)])
    assert found == {"samples": [2, 3], "train": [-8.0, -5.0], "test": [-6.0, -4.0]}


def test_what_ignores_z_on_faces_is_independent_gaussians():
    x = np.random.default_rng(0).normal([1.0, -2.0], [0.5, 3.0], (400, 2)).astype(np.float32)
    data = vae.Data.from_arrays(x[:300], x_test=x[300:])
    found = measures.factorial_gaussian(data)
    for name, rows in (("train", x[:300]), ("test", x[300:])):
        mean, var = x[:300].mean(0), x[:300].var(0)
        expected = (-0.5 * np.log(2 * math.pi * var) - (rows - mean) ** 2 / (2 * var)).sum(1).mean()
        assert found[name] == pytest.approx(expected, rel=1e-5)


def test_sampling_from_draws_of_the_posterior_needs_no_encoder():
    """An encoder that is wrong by 3 standard deviations, a posterior that is correlated: log p(x) to 0.02 nats."""
    problem = LinearGaussian.random(5, 2)
    problem.c = problem.c + 3.0
    model, x = problem.model(), problem.data(4)
    found = log_likelihood(model, x, measures.AppendixD(importance=2000))
    covariance = problem.W @ problem.W.T + problem.s2 * torch.eye(5).double()
    exact = torch.distributions.MultivariateNormal(problem.b, covariance).log_prob(x)
    torch.testing.assert_close(found["is"], exact, rtol=0, atol=0.02)
    torch.testing.assert_close(found["log_p_x"], exact, rtol=0, atol=0.3)


class Fold(torch.nn.Module):
    """z -> (z^2, 0.3 z): at x = (4, -0.6), the posterior is nearly all at z = -2, and a mode at 2 has e^-8 of it."""

    def forward(self, z):
        return torch.cat([z.square(), 0.3 * z], 1)


def test_appendix_d_finds_the_mode_that_the_encoder_misses():
    encoder = torch.nn.Linear(2, 2)
    encoder.weight.data.zero_()
    encoder.bias.data[:] = torch.tensor([2.0, -2.0])  # q(z|x) = N(2, e^-4)
    model = vae.VAE(encoder, Fold(), vae.Gaussian((2,), std=0.3, variance="fixed")).double()
    x, z = torch.tensor([[4.0, -0.6]]).double(), torch.linspace(-5, 5, 100_001).double()[:, None, None]
    exact = torch.logsumexp(model.log_joint(x, z), 0) + math.log(1e-4)
    from_q = vae.measure(model, x, FittedDensity(num_samples=100, chains=4, num_leapfrog=4))["log_p_x"]
    assert (from_q - exact).item() < -5
    found = vae.measure(model, x, measures.AppendixD(importance=2000))
    torch.testing.assert_close(found["log_p_x"], exact, rtol=0, atol=0.3)
    torch.testing.assert_close(found["is"], exact, rtol=0, atol=0.05)


def test_an_estimate_that_was_made_is_not_made_again(tmp_path, monkeypatch):
    first, _ = measures.marginal(made(tmp_path, algorithm="mcem"))
    assert first["end"]["samples"] == 15 * 100
    monkeypatch.setattr(measures, "train", None)
    assert measures.marginal(made(tmp_path, algorithm="mcem"))[0] == first
    assert first["end"]["test"]["is_less_quadrature"]["mean"] == pytest.approx(0, abs=0.1)


def test_the_search_takes_no_rate_that_explodes(monkeypatch):
    monkeypatch.setattr(measures, "RATES", (0.02, 1e4))
    found = measures.search(made())[0]["bound"]
    assert found["0.02"] > -46
    assert found["10000.0"] is None
    assert document._lead({"bound": {"0.02": -3.0, "0.01": -5.0, "0.1": None}}, "0.02") == Number(2.0, 0.0)
    assert document._lead({"bound": {"0.02": None, "0.01": -5.0, "0.1": -6.0}}, "0.02").mean < 0


def test_the_search_of_mcem_is_by_log_p_not_by_the_bound_of_an_encoder_that_lags(monkeypatch):
    monkeypatch.setattr(measures, "RATES", (0.02,))
    monkeypatch.setattr(measures, "log_likelihood", lambda *of, **how: {"log_p_x": torch.tensor([-7.0, -9.0])})
    assert measures.search(made(algorithm="mcem"))[0]["bound"] == {"0.02": -8.0}
    assert measures.search(made())[0]["bound"]["0.02"] < -9


def test_published_curves_are_read_as_the_paper_has_them():
    samples, values = published()["mnist_20", "aevb", "test"]
    assert document._log_interpolated(samples, values, 1e7) == pytest.approx(-104.8, abs=0.1)
    assert len(published()) == 48


def test_every_number_and_figure_is_made_from_its_records(tmp_path):
    """Records with the shape of real ones: no row is left without a value but those of 10^8 samples."""
    number, ways = {"mean": -100.0, "stderr": 1.0}, ("hmc", "is", "quadrature")
    split = dict.fromkeys((*ways, "hmc_less_quadrature", "is_less_quadrature"), number)
    points = [{"samples": x, "minutes": 1.0, "train": split, "test": split} for x in (1e6, 6e7)]
    face = np.zeros((400, 8, 8, 1), np.uint8)
    results = {
        measures.marginal: {"curve": points, "end": points[-1]},
        measures.search: {"bound": {"0.01": -120.0, "0.02": -110.0, "0.1": None}},
        measures.bounds: {
            "curve": {"samples": [1e5, 1e7], "train": [-200.0, -100.0], "test": [-201.0, -101.0]},
            "end": {"train": number, "test": number}, "minutes_per_million": 1.0, "factorial": {"train": -90.0, "test": -100.0},
            "variance": {"of_a_datum": 30.0, "of_the_mean": 0.003}, "appendix_d_less_ais": number,
        },
    }  # fmt: skip
    results[measures.with_appendix_d] = results[measures.bounds]
    found = {
        e.name: [Record({}, s, "paper", {"torch": "2"}, "cpu", 1, None, 60.0, results[e.measure],
                        {"manifold": face, "samples": face[:100]}) for s in e.seeds]
        for e in EXPERIMENTS
    }  # fmt: skip
    rows = table(KINGMA2013, found)
    without = [row for row in rows if row["ours"] is None]
    assert {row["reason"] for row in without} == {document.TIME}
    assert len(without) == 36
    for figure in KINGMA2013.figures:
        figure.draw({name: found[name] for name in figure.experiments}).savefig(tmp_path / "figure.png")
    assert all(other.rows(found) for other in KINGMA2013.tables)
