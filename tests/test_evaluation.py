"""Evaluation visits every datum of the named split once, with noise by place, and says how sure it is."""

import math

import pytest
import torch

import vae
from tests.problems import LinearGaussian
from tests.test_model import assert_untouched, state
from vae.data import Split
from vae.evaluation import evaluate_bound, mean_and_stderr, posterior_codes

SHAPE = (1, 8, 8)


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder, decoder = vae.mlp_encoder(SHAPE, 6, batch_norm=True), vae.mlp_decoder(3, SHAPE, batch_norm=True)
    return vae.VAE(encoder, decoder, vae.Bernoulli(SHAPE)).double()


SPLIT = vae.load_data("digits", pixels="static").test.first(53)


def rows(split, order):
    return Split(split.x[order], split.y[order], split.index[order], split.scale)


@pytest.mark.parametrize("batch_size", [1, 7, 52, 53, 1000])
def test_batch_size_changes_nothing(model, batch_size):
    whole = evaluate_bound(model, SPLIT, name="test")
    other = evaluate_bound(model, SPLIT, name="test", batch_size=batch_size)
    torch.testing.assert_close(other.elbo, whole.elbo, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(other.kl_per_dimension, whole.kl_per_dimension, rtol=1e-12, atol=1e-12)


def test_limit_and_order_change_no_datums_value(model):
    whole = evaluate_bound(model, SPLIT, name="test").elbo
    torch.testing.assert_close(
        evaluate_bound(model, SPLIT.first(9), name="test").elbo, whole[:9], rtol=1e-12, atol=1e-12
    )
    order = torch.randperm(53, generator=torch.Generator().manual_seed(0))
    shuffled = evaluate_bound(model, rows(SPLIT, order), name="test").elbo
    torch.testing.assert_close(shuffled, whole[order], rtol=1e-12, atol=1e-12)


def test_the_model_is_left_as_it_was(model):
    model.train()
    model.decoder.eval()
    before = state(model)
    evaluate_bound(model, SPLIT, name="test")
    posterior_codes(model, SPLIT, name="test", sampled=True)
    assert_untouched(model, before)


def test_evaluation_draws_z(model):
    """z is no posterior mean: another seed gives other values, and more samples a smaller spread between seeds."""
    values = torch.stack([evaluate_bound(model, SPLIT, name="test", seed=s).elbo for s in range(8)])
    many = torch.stack([evaluate_bound(model, SPLIT, name="test", seed=s, num_samples=64).elbo for s in range(8)])
    assert (values[0] != values[1]).all()
    assert many.var(0).mean() < values.var(0).mean() / 16


def test_splits_of_other_names_are_evaluated_on_other_noise(model):
    """So that no training datum shares the noise of the test datum of its index."""
    as_train, as_test = (evaluate_bound(model, SPLIT, name=name) for name in ("train", "test"))
    assert (as_train.log_p_x_given_z != as_test.log_p_x_given_z).all()
    assert torch.equal(as_train.kl, as_test.kl)  # the same data


def test_values_are_those_of_the_closed_form():
    problem = LinearGaussian.random(5, 3)
    x = problem.data(500)
    split = Split(x, None, torch.arange(500))
    result = evaluate_bound(problem.model(), split, name="test", num_samples=400)
    error = (result.elbo - problem.elbo(x)).mean().item()
    spread = (result.elbo - problem.elbo(x)).std().item() / math.sqrt(500)
    assert abs(error) < 4.5 * spread
    torch.testing.assert_close(result.elbo, result.log_p_x_given_z - result.kl)
    assert result.kl_per_dimension.sum().item() == pytest.approx(result.kl.mean().item())


def test_active_units_are_those_whose_posterior_mean_varies():
    class Half(torch.nn.Module):
        def forward(self, x):
            zeros = torch.zeros(len(x), 2)
            return torch.cat([x[:, :1], torch.ones(len(x), 1), zeros], 1)  # z_1 follows x, z_2 is constant

    model = vae.VAE(Half(), torch.nn.Linear(2, 4), vae.Gaussian((4,), variance="fixed"))
    split = Split(torch.randn(100, 4, generator=torch.Generator().manual_seed(0)), None, torch.arange(100))
    assert evaluate_bound(model, split, name="test").active_units == 1


def test_codes_are_means_unless_samples_are_asked_for(model):
    means = posterior_codes(model, SPLIT, name="test")
    torch.testing.assert_close(means, model.encode(SPLIT.images()), rtol=1e-12, atol=1e-12)
    samples = posterior_codes(model, SPLIT, name="test", sampled=True)
    assert (samples != means).all()
    again = posterior_codes(model, SPLIT, name="test", sampled=True, batch_size=10)
    torch.testing.assert_close(samples, again, rtol=1e-12, atol=1e-12)


def test_summary():
    values = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    expected = {"mean": 7 / 3, "stderr": values.std().item() / math.sqrt(3), "n": 3}
    assert mean_and_stderr(values) == pytest.approx(expected)
    assert mean_and_stderr(values[:1]) == {"mean": 1.0, "stderr": None, "n": 1}
