"""Where the ELBO's optimum lies, against closed forms: regression weights as latents, global latents, and the noise."""

import math

import pytest
import torch
from torch import nn

import vae
from tests.oracles import numbers
from tests.problems import LinearGaussian, cubature
from vae.objectives import EstimatorB
from vae.posteriors import DiagonalGaussian, FullGaussian

pytestmark = pytest.mark.usefixtures("float64")


def at_the_mean_field_optimum(W, s2, x):
    """The linear-Gaussian problem with q of the posterior's means and variances 1 / precision_jj."""
    D, J = W.shape
    problem = LinearGaussian(W, torch.zeros(D), s2, torch.zeros(J, D), torch.zeros(J), torch.ones(J))
    problem.A = torch.linalg.inv(problem.precision) @ W.T / s2
    problem.S = 1 / problem.precision.diagonal()
    model = problem.model()
    estimate, _ = EstimatorB()(model, x, {"eps": cubature(J).expand(-1, len(x), -1)}, {}, 0)
    estimate.surrogate.sum().backward()
    shortfall = 0.5 * (problem.precision.diagonal().log().sum() - torch.linalg.slogdet(problem.precision)[1])
    return problem, estimate.bound, model.encoder.bias.grad, shortfall


def test_bayesian_linear_regression_by_a_mean_field():
    """Weights as latents: variances 1 / precision_ii, below the true ones; the bound falls short by the closed form."""
    X, y = numbers(40, 4, seed=1), numbers(1, 40, seed=2)
    problem, bound, gradient, shortfall = at_the_mean_field_optimum(X, 0.6, y)
    torch.testing.assert_close(bound, problem.log_p_x(y) - shortfall, rtol=0, atol=1e-10)
    assert gradient.abs().max() < 1e-10
    assert (torch.linalg.inv(problem.precision).diagonal() >= problem.S).all()
    assert shortfall > 1e-3


@pytest.mark.parametrize("seed", [3, 4])
def test_a_global_latent_beside_local_ones(seed):
    """b ~ N(0, 1), x_i = 1.2 z_i + b + N(0, .5), i to 10: the mean field falls .6136581514 short, whatever x."""
    W = torch.cat([torch.ones(10, 1), 1.2 * torch.eye(10)], 1)
    x = numbers(1, 10, seed=seed, scale=1.5)
    problem, bound, gradient, shortfall = at_the_mean_field_optimum(W, 0.5, x)
    assert (problem.log_p_x(x) - bound).item() == pytest.approx(0.6136581514, abs=1e-10)
    assert shortfall.item() == pytest.approx(0.6136581514, abs=1e-10)
    assert gradient.abs().max() < 1e-10
    assert problem.S[0].item() == pytest.approx(0.047619, abs=1e-6)  # of b, by the mean field
    assert torch.linalg.inv(problem.precision)[0, 0].item() == pytest.approx(0.162479, abs=1e-6)


# q -> the noise variance at which its expected log-likelihood is stationary. The first is maximum likelihood, the second
# AEVB's optimum; the third, q of the posterior's marginal variances, is what the sleep phase of wake-sleep would learn.
FIXED_POINTS = {"full": 0.5, "mean field": 0.56355933, "marginal": 0.70604279}


@pytest.mark.parametrize(("kind", "s2"), FIXED_POINTS.items(), ids=str)
def test_the_noise_that_each_posterior_leads_to(kind, s2):
    """W is fixed, the data have covariance W W' + .5 I exactly; the gradient of log s^2 vanishes at the known value."""
    W = torch.tensor([[1.0, 0.8], [0.0, 0.6], [0.5, 0.5], [0.0, 0.3]])
    D, J = W.shape
    x = cubature(D)[:, 0] @ torch.linalg.cholesky(W @ W.T + 0.5 * torch.eye(D)).T  # (2 D, D)
    covariance = torch.linalg.inv(torch.eye(J) + W.T @ W / s2)
    head = FullGaussian(J) if kind == "full" else DiagonalGaussian(J)
    encoder, decoder = nn.Linear(D, head.output_size), nn.Linear(J, D, bias=False)
    variances = covariance.diagonal() if kind == "marginal" else 1 / torch.linalg.inv(covariance).diagonal()
    L = torch.linalg.cholesky(covariance)
    spread = torch.cat([L.diagonal().log(), L[1, :1]]) if kind == "full" else variances.log()
    with torch.no_grad():
        encoder.weight.copy_(torch.cat([covariance @ W.T / s2, torch.zeros(len(spread), D)]))
        encoder.bias.copy_(torch.cat([torch.zeros(J), spread]))
        decoder.weight.copy_(W)
    likelihood = vae.Gaussian((D,), variance="shared", std=math.sqrt(s2), floor=1e-9)
    model = vae.VAE(encoder, decoder, likelihood, posterior=head).double()
    estimate, _ = EstimatorB()(model, x, {"eps": cubature(J).expand(-1, len(x), -1)}, {}, 0)
    estimate.surrogate.mean().backward()
    assert likelihood.log_variance.grad.abs() < 1e-6
