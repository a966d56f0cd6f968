"""Full variational Bayes (appendix F) against a model whose evidence and best mean-field posterior are known."""

import math

import pytest
import torch
from scipy.stats import multivariate_normal
from torch import nn

import vae
from tests.oracles import numbers
from tests.test_wake_sleep import signs
from vae.errors import ConfigError
from vae.evaluation import evaluate_bound
from vae.models import VariationalLinear, randomise, weights_kl
from vae.objectives import FullVB
from vae.training import read_settings
from vae.training.run import train

N, W, S2 = 10, 1.2, 0.5  # x_i = W z_i + b + N(0, S2), b ~ N(0, 1), z_i ~ N(0, 1)
CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 100},
    "model": {"latent_dim": 2, "encoder": {"hidden": [16]}, "decoder": {"hidden": [8]}},
    "train": {"algorithm": "full_vb", "epochs": 3, "batch_size": 30},
}


def test_the_best_mean_field_bound_falls_short_of_the_evidence_by_the_known_amount():
    """The joint posterior of b and z has an arrow for a precision: the best independent q has the exact means and
    variances 1 / Lambda, its bound is .6136581514 nats short, and the gradient there is 0. W is held by a q of standard
    deviation 1e-6, whose KL is taken off. All of it is quadratic in the noise, so signs give the mean exactly."""
    x = numbers(N, 1, seed=3, scale=1.5)
    joint = S2 * torch.eye(N, dtype=torch.float64) + W**2 * torch.eye(N, dtype=torch.float64) + torch.ones(N, N)
    evidence = multivariate_normal([0.0] * N, joint.numpy()).logpdf(x[:, 0].numpy())
    of_b, of_z = 1 + N / S2, 1 + W**2 / S2
    shortfall = -0.5 * math.log(1 - N * W**2 / (S2**2 * of_z * of_b))
    assert shortfall == pytest.approx(0.6136581514, abs=1e-10)
    mean_b = (x.sum() / (W**2 + S2)) / (1 + N / (W**2 + S2))
    encoder, decoder = nn.Linear(1, 2), randomise(nn.Sequential(nn.Linear(1, 1)))
    model = vae.VAE(encoder, decoder, vae.Gaussian((1,), variance="fixed", std=math.sqrt(S2))).double()
    layer, slope = decoder[0], W / (S2 * of_z)
    with torch.no_grad():
        encoder.weight.copy_(torch.tensor([[slope], [0.0]]))
        encoder.bias.copy_(torch.tensor([-slope * mean_b, -math.log(of_z)]))
        layer.mean.copy_(torch.tensor([[W, mean_b]]))
        layer.rho.copy_(torch.tensor([[1e-6, of_b**-0.5]], dtype=torch.float64).expm1().log())
    noise = signs(2)  # of z and of the activation W z + b, (4, 2)
    given = {
        "eps": noise[:, None, :1].expand(-1, N, -1),
        "activations/decoder.0": noise[:, None, 1:].expand(-1, N, -1),
    }
    estimate, _ = FullVB(num_data=N, num_samples=4)(model, x, given, {}, 0)
    of_w = 0.5 * (1e-12 + W**2 - 1) - math.log(1e-6)
    assert estimate.elbo.sum().item() + of_w == pytest.approx(evidence - shortfall, abs=1e-6)
    estimate.surrogate.sum().backward()
    for gradient in (encoder.weight.grad, encoder.bias.grad, layer.mean.grad[0, 1], layer.rho.grad[0, 1]):
        assert gradient.abs().max() < 1e-5


def test_the_kl_of_the_weights_is_counted_once_for_all_data():
    model = vae.build(CONFIG)
    x = torch.rand(7, 1, 8, 8).round()
    objective = FullVB(num_data=7)
    total = torch.zeros(())
    for rows in x.split(3):
        noise = {name: torch.zeros(of.shape) for name, of in objective.noises(model, len(rows)).items()}
        estimate, _ = objective(model, rows, noise, {}, 0)
        of_latents = model.posterior(rows)
        total = total + estimate.terms["kl"].sum() - model.bound_terms(of_latents, rows, noise["eps"])[1].sum()
    torch.testing.assert_close(total, weights_kl(model.decoder), rtol=1e-4, atol=1e-3)


def test_without_noise_the_means_of_the_weights_are_used():
    model, (x,) = vae.build(CONFIG), (torch.rand(3, 1, 8, 8).round(),)
    noise = {name: torch.zeros(of.shape) for name, of in FullVB(num_data=5).noises(model, 3).items()}
    estimate, _ = FullVB(num_data=5)(model, x, noise, {}, 0)
    z = model.posterior(x).mean
    torch.testing.assert_close(estimate.terms["log_p_x_given_z"], model.log_likelihood(x, z[None])[0])


@pytest.mark.parametrize("form", ["never", "always"])
def test_a_run_trains_resumes_and_is_the_same_compiled(form, tmp_path):
    settings = read_settings(CONFIG, [f"train.compile={form}"])
    assert settings.model.weights == "variational"  # by train.algorithm alone
    whole = train(settings, tmp_path / "whole", verbose=False)
    assert whole.history[-1]["elbo"] > whole.history[0]["elbo"]
    train(read_settings(CONFIG, [f"train.compile={form}", "train.epochs=2"]), tmp_path / "part", verbose=False)
    train(settings, tmp_path / "part", resume=True, verbose=False)
    models = [vae.load(tmp_path / name) for name in ("whole", "part")]
    states = [model.state_dict() for model in models]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert sum(isinstance(module, VariationalLinear) for module in models[0].decoder.modules()) == 2
    plain = train(read_settings(CONFIG, ["train.compile=never"]), None, verbose=False)
    assert whole.history[-1]["elbo"] == pytest.approx(plain.history[-1]["elbo"], rel=1e-4)
    assert torch.isfinite(evaluate_bound(models[0], whole.data.test, name="test").elbo).all()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (["objective=iwae"], "full_vb trains a VAE, and has an objective of its own"),
        (
            ["model.decoder={name: conv, channels: [4]}"],
            "only dense layers have random weights, and the network has a Conv",
        ),
        (["train.algorithm=aevb", "model.weights=variational"], "variational needs train.algorithm: full_vb"),
        (["model.decoder.batch_norm=true"], "only dense layers have random weights, and the network has a BatchNorm1d"),
    ],
)
def test_what_does_not_go_with_full_vb_is_one_sentence(changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(read_settings(CONFIG, changes), None, verbose=False)


def test_a_decoder_of_points_is_refused():
    model = vae.build({**CONFIG, "train": {}})
    with pytest.raises(ConfigError, match="full_vb needs a decoder with random weights"):
        vae.fit(model, vae.load_data("digits", pixels="static"), algorithm="full_vb", epochs=1, verbose=False)
