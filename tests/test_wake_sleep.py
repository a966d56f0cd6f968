"""Wake-sleep against exact answers on the linear-Gaussian model, and as a row of the shared trainer."""

import itertools
import math

import pytest
import torch
from torch import nn

import vae
from tests.oracles import numbers
from vae.data import Batch
from vae.errors import ConfigError
from vae.likelihoods import LIKELIHOODS
from vae.objectives import EstimatorB, WakeSleep
from vae.training import read_settings
from vae.training.build import build_algorithm
from vae.training.run import train

W = torch.tensor([[1, 0.8], [0, 0.6], [0.5, 0.5], [0, 0.3]], dtype=torch.float64)
D, J = W.shape
CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 200},
    "model": {"latent_dim": 2, "encoder": {"hidden": [16]}, "decoder": {"hidden": [16]}},
    "train": {"algorithm": "wake_sleep", "epochs": 3, "batch_size": 50},
}


def signs(n):
    """All vectors of +-1, whose mean of a polynomial of degree 3 is that of a standard normal vector."""
    return torch.tensor(list(itertools.product((-1.0, 1.0), repeat=n)), dtype=torch.float64)


def model_at(s2, A, S):
    """x|z ~ N(W z, s2 I) with s2 learned, q(z|x) = N(A x, diag S)."""
    encoder, decoder = nn.Linear(D, 2 * J), nn.Linear(J, D)
    likelihood = vae.Gaussian((D,), variance="shared", std=math.sqrt(s2), floor=1e-9)
    model = vae.VAE(encoder, decoder, likelihood).double()
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([A, torch.zeros(J, D)]))
        encoder.bias.copy_(torch.cat([torch.zeros(J), S.log()]))
        decoder.weight.copy_(W)
        decoder.bias.zero_()
        likelihood.log_variance.fill_(math.log(s2))
    return model


def best_q(s2, algorithm):
    """The exact optimum of a diagonal q: of the mean both have A = Sigma W' / s2; of the variances wake-sleep has
    those of the posterior, Sigma_jj, and AEVB 1 / Lambda_jj."""
    precision = torch.eye(J, dtype=torch.float64) + W.T @ W / s2
    covariance = torch.linalg.inv(precision)
    return covariance @ W.T / s2, covariance.diagonal() if algorithm == "wake_sleep" else 1 / precision.diagonal()


def mean_gradient(model, objective):
    """The gradient of the surrogate, averaged over data N(0, W W' + I / 2), noise and dreams: exact, as all of it is
    quadratic in them."""
    x = signs(D) @ torch.linalg.cholesky(W @ W.T + 0.5 * torch.eye(D, dtype=torch.float64)).T  # (16, D)
    eps = signs(J)[:, None].expand(-1, len(x), -1)  # (4, 16, J)
    dreams = signs(J + D)  # (64, J + D)
    total = {}
    for rows in dreams.split(len(x)):
        noise = {"eps": eps, "dream_z": rows[None, :, :J], "dream_x": rows[None, :, J:]}
        estimate, _ = objective(model, x, noise, {}, 0)
        parameters = dict(model.named_parameters())
        for name, g in zip(
            parameters, torch.autograd.grad(estimate.surrogate.mean(), list(parameters.values())), strict=True
        ):
            total[name] = total.get(name, 0) + g * len(x) / len(dreams)
    return total


def test_wake_sleep_and_aevb_stop_at_different_known_variances():
    """W fixed, data N(0, W W' + I / 2), the best diagonal q: maximum likelihood has s^2 = .5, AEVB stops at .56355933 and
    wake-sleep at .70604279. Both gradients of log s^2 are 0 there, and not at the other's."""
    for algorithm, objective, s2 in (
        ("wake_sleep", WakeSleep(num_samples=4), 0.70604279),
        ("aevb", EstimatorB(num_samples=4), 0.56355933),
    ):
        found = mean_gradient(model_at(s2, *best_q(s2, algorithm)), objective)
        assert found["likelihood_head.log_variance"].abs() < 1e-7
        assert all(found[f"encoder.{name}"].abs().max() < 1e-7 for name in ("weight", "bias"))  # q is at its best
        elsewhere = mean_gradient(model_at(0.6, *best_q(0.6, algorithm)), objective)
        assert elsewhere["likelihood_head.log_variance"].abs() > 0.01


def test_the_gradient_of_each_phase_stays_in_its_network():
    """Wake: d log p(x, z) / d theta at fixed z. Sleep: d log q(z|x) / d phi at a fixed dream."""
    model = model_at(0.7, *best_q(0.7, "aevb"))
    x, noise = numbers(3, D, seed=1), {"eps": numbers(2, 3, J, seed=2)}
    noise |= {"dream_z": numbers(1, 3, J, seed=3), "dream_x": numbers(1, 3, D, seed=4)}
    estimate, _ = WakeSleep(num_samples=2)(model, x, noise, {}, 0)
    found = torch.autograd.grad(estimate.surrogate.sum(), list(model.parameters()))
    z = model.posterior(x).transform(noise["eps"]).detach()
    wake = torch.autograd.grad(model.log_joint(x, z).mean(0).sum(), list(model.parameters()), allow_unused=True)
    dream = model.likelihood(noise["dream_z"]).transform(noise["dream_x"])[0].detach()
    log_q = model.posterior(dream).log_prob(noise["dream_z"]).sum()
    sleep = torch.autograd.grad(log_q, list(model.parameters()), allow_unused=True)
    for g, of_wake, of_sleep in zip(found, wake, sleep, strict=True):
        assert (of_wake is None) != (of_sleep is None)
        torch.testing.assert_close(g, of_sleep if of_wake is None else of_wake)
    bound, _ = EstimatorB(num_samples=2)(model, x, noise, {}, 0)
    torch.testing.assert_close(estimate.elbo, bound.elbo.detach())  # what is reported


@pytest.mark.parametrize("name", [name for name in LIKELIHOODS if name != "module"])
def test_dreams_are_drawn_for_every_likelihood(name):
    likelihood = LIKELIHOODS[name]((1, 2, 3))
    encoder = vae.mlp_encoder((1, 2, 3), 4, hidden=[5])
    model = vae.VAE(encoder, vae.mlp_decoder(2, likelihood.output_shape, hidden=[5]), likelihood)
    needed = WakeSleep().noises(model, 4)
    assert model.likelihood(torch.zeros(1, 4, 2)).noise.kind == needed["dream_x"].kind
    draw = {"normal": torch.randn, "uniform": torch.rand}
    noise = {key: draw[of.kind](of.shape) for key, of in needed.items()}
    x = model.likelihood(noise["dream_z"]).transform(noise["dream_x"])[0].detach()
    estimate, _ = WakeSleep()(model, x, noise, {}, 0)
    assert torch.isfinite(estimate.surrogate).all()


@pytest.mark.parametrize("form", ["never", "always"])
def test_a_run_trains_resumes_and_is_the_same_compiled(form, tmp_path):
    settings = read_settings(CONFIG, [f"train.compile={form}"])
    whole = train(settings, tmp_path / "whole", verbose=False)
    first, last = (line["elbo"] for line in (whole.history[0], whole.history[-1]))
    assert last > first
    train(read_settings(CONFIG, [f"train.compile={form}", "train.epochs=2"]), tmp_path / "part", verbose=False)
    train(settings, tmp_path / "part", resume=True, verbose=False)
    states = [vae.load(tmp_path / name).state_dict() for name in ("whole", "part")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    plain = train(read_settings(CONFIG, ["train.compile=never"]), None, verbose=False)
    assert last == pytest.approx(plain.history[-1]["elbo"], rel=1e-4)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("objective=iwae", "wake_sleep trains a VAE, and has an objective of its own"),
        ("modifiers.beta=2", "wake_sleep has no bound whose KL could be weighted"),
        ("model.encoder.batch_norm=true", "shows the encoder data and dreams in turn; use networks with batch_norm"),
    ],
)
def test_what_does_not_go_with_wake_sleep_is_one_sentence(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(read_settings(CONFIG, [change]), None, verbose=False)


def test_a_step_is_one_of_the_shared_algorithm():
    settings = read_settings(CONFIG)
    algorithm, model = build_algorithm(settings, 10, 1), vae.build(CONFIG)
    state = algorithm.init(model)
    noise = {name: torch.rand(of.shape) for name, of in algorithm.noises(state, 5).items()}
    sums = algorithm.step(state, Batch(torch.rand(5, 1, 8, 8)), noise)
    assert sums.keys() == {"elbo", "log_p_x_given_z", "kl", "objective"}
