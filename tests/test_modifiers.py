"""What weighs the KL: beta, warm-up and free bits, in value and gradient; the ELBO and the bound stay as they were."""

import pytest
import torch

from tests.oracles import gauss_hermite, numbers
from tests.problems import LinearGaussian
from vae.errors import UsageError
from vae.objectives import OBJECTIVES, DReG, EstimatorB, SharedNoise, WeightedKL
from vae.training.build import build_algorithm
from vae.training.settings import read_settings

pytestmark = pytest.mark.usefixtures("float64")
M, J, D = 4, 3, 5


def both(objective, modified, step=0, problem=None, seed=0):
    problem = problem or LinearGaussian.random(D, J)
    out = []
    for each in (objective, modified):
        model = problem.model()
        estimate, _ = each(model, problem.data(M), {"eps": numbers(each.num_samples, M, J, seed=seed)}, {}, step)
        estimate.surrogate.mean().backward()
        out.append((estimate, model))
    return out


@pytest.mark.parametrize("name", OBJECTIVES)
def test_beta_weighs_the_kl_and_leaves_bound_and_elbo_alone(name):
    objective = OBJECTIVES[name](num_samples=2)
    (plain, _), (weighted, _) = both(objective, WeightedKL(objective, 4.0))
    torch.testing.assert_close(weighted.bound, plain.bound)
    torch.testing.assert_close(weighted.elbo, plain.elbo)
    torch.testing.assert_close(weighted.objective, plain.bound - 3 * plain.terms["kl"])
    torch.testing.assert_close(weighted.surrogate, weighted.objective)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_under_beta(name):
    """That of E log p(x|z) - beta KL on average, also where the encoder's gradient is a path's or a score's."""
    problem, beta = LinearGaussian.random(D, J), 2.5
    x, model = problem.data(M), problem.model()
    noise, weights = gauss_hermite(3, 1, J)
    rows = noise[:, :, None].expand(-1, -1, M, -1).reshape(1, -1, J)
    weighted = WeightedKL(OBJECTIVES[name](num_samples=1), beta)
    estimate, _ = weighted(model, x.repeat(len(weights), 1), {"eps": rows}, {}, 0)
    (weights @ estimate.surrogate.view(-1, M)).mean().backward()
    exact, mean = problem.gradients(x), x @ problem.A.T + problem.c
    d_kl = {"A": mean.T @ x / M, "log_std": problem.S - 1}
    torch.testing.assert_close(model.encoder.weight.grad[:J], exact["A"] - (beta - 1) * d_kl["A"], rtol=1e-9, atol=1e-9)
    got = 2 * model.encoder.bias.grad[J:]
    torch.testing.assert_close(got, exact["log_std"] - (beta - 1) * d_kl["log_std"], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(model.decoder.weight.grad, exact["W"], rtol=1e-9, atol=1e-9)


def test_gradient_of_the_kl_under_dreg_is_weighed_once():
    """Its samples count equally in the KL, whatever their importance: the two gradients differ by (beta - 1) dKL."""
    objective = DReG(num_samples=6)
    (plain, one), (_, other) = both(objective, WeightedKL(objective, 3.0))
    difference = one.encoder.bias.grad - other.encoder.bias.grad
    model, problem = LinearGaussian.random(D, J).model(), LinearGaussian.random(D, J)
    q = model.posterior(problem.data(M))
    z = q.transform(numbers(6, M, J))
    fixed = type(q)(q.mean.detach(), q.log_std.detach())
    kl = (fixed.log_prob(z) - model.prior.log_prob(z)).sum(2).mean()
    kl.backward()
    torch.testing.assert_close(kl, plain.terms["kl"].mean())
    torch.testing.assert_close(difference, 2 * model.encoder.bias.grad)


def test_beta_warms_up_linearly_from_zero():
    beta = WeightedKL(EstimatorB(), 2.0, warm_up=10)
    assert [beta.weight(step) for step in (0, 5, 10, 50)] == [0.0, 1.0, 2.0, 2.0]
    (plain, _), (start, _) = both(EstimatorB(), beta)
    torch.testing.assert_close(start.objective, plain.terms["log_p_x_given_z"])
    (plain, _), (half, _) = both(EstimatorB(), beta, step=5)
    torch.testing.assert_close(half.objective, plain.bound)


@pytest.mark.parametrize(("beta", "warm_up", "weight"), [(1.0, 0, 1.0), (2.0, 0, 2.0), (2.0, 10, 0.6)])
def test_free_bits(beta, warm_up, weight):
    """A latent whose mean KL lies below the free nats gets no gradient from it, another the ordinary one."""
    problem = LinearGaussian.random(D, J)
    with torch.no_grad():
        elements = EstimatorB()(problem.model(), problem.data(M), {"eps": numbers(1, M, J)}, {}, 0)[0].kl_elements
    of_latents = elements.mean(0)
    free = of_latents.median().item() + 1e-3  # two latents below, one above; single data lie on the other side
    below = of_latents < free
    assert below.sum() == 2
    assert ((elements > free) & below).any()
    (plain, one), (freed, other) = both(EstimatorB(), WeightedKL(EstimatorB(), beta, warm_up, free), step=3)
    torch.testing.assert_close(freed.elbo, plain.elbo)
    cost = of_latents.clamp(min=free).sum()
    expected = plain.terms["log_p_x_given_z"].mean() - weight * cost
    torch.testing.assert_close(freed.objective.mean(), expected)
    torch.testing.assert_close(freed.surrogate.mean(), expected)

    x = problem.data(M)
    mean = x @ problem.A.T + problem.c
    d_kl = torch.cat([mean.mean(0), 0.5 * (problem.S - 1)])  # in the biases: means, log-variances
    reconstruction = one.encoder.bias.grad + d_kl
    kept = torch.cat([~below, ~below]) * weight
    torch.testing.assert_close(other.encoder.bias.grad, reconstruction - kept * d_kl)
    torch.testing.assert_close(other.decoder.weight.grad, one.decoder.weight.grad)


def test_free_bits_ask_for_the_kl_of_each_latent():
    with pytest.raises(UsageError, match="free_bits needs the KL of each latent: use the objective sgvb_b"):
        both(DReG(), WeightedKL(DReG(), free_bits=0.5))


def test_a_modifier_keeps_samples_memory_and_bias_of_the_objective_within():
    objective = OBJECTIVES["score_function"](num_samples=3)
    problem = LinearGaussian.random(D, J)
    x, noise, model = problem.data(M), numbers(3, M, J), problem.model()
    weighted = WeightedKL(objective, 2.0)
    assert weighted.num_samples == 3
    assert weighted(model, x, {"eps": noise}, {}, 0)[1] == objective(model, x, {"eps": noise}, {}, 0)[1] != {}
    assert weighted.bias(model) is None
    biased = OBJECTIVES["stl"](num_samples=3)
    assert WeightedKL(biased).bias(model) == biased.bias(model) is not None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_shared_noise_is_that_of_every_datum(name):
    problem, objective = LinearGaussian.random(D, J), OBJECTIVES[name](num_samples=3)
    shared, model, x = SharedNoise(objective), problem.model(), problem.data(M)
    assert shared.noises(model, M)["eps"] == ("normal", (3, 1, J), None)
    eps = numbers(3, 1, J)
    got, _ = shared(model, x, {"eps": eps}, {}, 0)
    wanted, _ = objective(model, x, {"eps": eps.repeat(1, M, 1)}, {}, 0)
    torch.testing.assert_close(got.surrogate, wanted.surrogate, rtol=0, atol=0)


def test_shared_noise_is_drawn_once_per_step_and_weighs_with_beta():
    settings = {"data": {"name": "digits"}, "model": {"latent_dim": 2}, "modifiers": {"beta": 2, "shared_noise": True}}
    objective = build_algorithm(read_settings(settings), 1, 3).objective
    assert objective == WeightedKL(SharedNoise(EstimatorB()), 2.0)
    assert objective.noises(LinearGaussian.random(D, J).model(), M)["eps"].shape == (1, 1, J)
