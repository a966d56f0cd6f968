"""The score function's pieces on E[x^2], x ~ N(theta, 1): mean 2 theta, and variances in closed form (Wang 2018)."""

import pytest
import torch

from tests.oracles import gauss_hermite, numbers
from tests.problems import LinearGaussian
from vae.errors import ConfigError
from vae.objectives import ScoreFunction, leave_one_out, remember, running_mean, score_surrogate

pytestmark = pytest.mark.usefixtures("float64")


def gradients(theta, noise, baseline):  # noise (L, R) -> (R,)
    """Of E[x^2] in theta, a gradient for each of R rows."""
    mean = torch.full(noise.shape[1:], theta, requires_grad=True)
    x = (mean + noise).detach()
    f, log_q = x.square(), -0.5 * (x - mean).square()
    score_surrogate(f, log_q, baseline(f)).sum().backward()
    return mean.grad


def moments(theta, L, baseline):
    """Exact mean and variance: the estimator is a polynomial of degree 3 in each noise."""
    noise, weights = gauss_hermite(4, L)
    values = gradients(theta, noise[..., 0], baseline)
    mean = weights @ values
    return mean.item(), (weights @ (values - mean).square()).item()


def plain(theta, b=0.0):
    return theta**4 + 14 * theta**2 + 15 - 2 * b * (theta**2 + 3) + b**2


@pytest.mark.parametrize("theta", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("L", [1, 3])
def test_constant_baselines(theta, L):
    best, value = theta**2 + 3, theta**2 + 1
    for b, variance in (
        (0.0, plain(theta)),
        (value, 8 * theta**2 + 10),
        (best, 8 * theta**2 + 6),
        (-2, plain(theta, -2)),
    ):
        assert moments(theta, L, lambda f, b=b: b) == pytest.approx((2 * theta, variance / L), abs=1e-9)


@pytest.mark.parametrize("theta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("L", [2, 4, 5])
def test_leave_one_out_is_unbiased(theta, L):
    variance = (8 * theta**2 + 10 + (8 * theta**2 + 2) / (L - 1)) / L
    assert moments(theta, L, leave_one_out) == pytest.approx((2 * theta, variance), abs=1e-9)


def test_a_mean_that_includes_the_sample_itself_is_not():
    assert moments(1.0, 2, lambda f: f.mean(0)) == pytest.approx((1.0, 14 / 4), abs=1e-9)


def test_leave_one_out_is_the_covariance_of_value_and_score():
    noise = numbers(5, 7)
    f = (1.3 + noise).square()
    covariance = ((f - f.mean(0)) * noise).sum(0) / 4
    torch.testing.assert_close(gradients(1.3, noise, leave_one_out), covariance, rtol=1e-12, atol=1e-12)


THETA, L, DECAY = 1.5, 4, 0.9


def running(noise, before=True):
    """The gradients of a run of steps (T, L), the baseline read before, or wrongly after, the step's values enter it."""
    memory, out = {}, []
    f = (THETA + noise).square()
    for values, eps in zip(f, noise, strict=True):
        now = remember(memory, values, DECAY)
        b, memory = running_mean(memory if before else now), now
        out.append(((values - b) * eps).mean())
    return torch.stack(out)


def test_a_running_mean_of_the_past_is_unbiased():
    """20 000 steps; the variance 7.036 is that of a stationary baseline, its own error about 2 % (fixed seed)."""
    values = running(numbers(20_000, L, seed=6))
    assert (values.mean() - 2 * THETA).abs().item() < 4.5 * (7.036 / len(values)) ** 0.5
    assert values.var().item() == pytest.approx(7.036, rel=0.08)


def test_the_weights_of_a_running_mean():
    """It is linear in the past: the answer to an impulse gives its exact variance, and no step sees itself."""
    weights, steps = [], 120
    for impulse in range(steps):
        memory = {}
        for step in range(steps):
            memory = remember(memory, torch.tensor([float(step == impulse)]), DECAY)
        weights.append(running_mean(memory))
    weights = torch.stack(weights)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    spread = weights.square().sum().item() * (4 * THETA**2 + 2) / L  # the variance of the baseline around E f
    assert (8 * THETA**2 + 10 + spread) / L == pytest.approx(7.036, abs=5e-4)


def test_read_after_its_update_it_is_biased():
    """Towards 2 theta (1 - (1 - decay) / L) = 2.925: what the order of the two lines in `running` decides."""
    wrong = running(numbers(20_000, L, seed=6), before=False)
    assert wrong.mean().item() == pytest.approx(2.925, abs=0.015)
    past, (noise, weights) = {"sum": torch.tensor(1.7), "weight": torch.tensor(1.0)}, gauss_hermite(4, L)
    f = (THETA + noise[..., 0]).square()
    after = DECAY * 1.7 + (1 - DECAY) * f.mean(0)
    assert (weights @ ((f - after) * noise[..., 0]).mean(0)).item() == pytest.approx(2.925, abs=1e-9)
    assert running_mean(past) == 1.7


def test_the_objective_reads_its_memory_before_the_step_enters_it():
    problem = LinearGaussian.random(5, 3)
    x, noise = problem.data(4), numbers(2, 4, 3)

    def gradient(objective, memory):
        model = problem.model()
        estimate, memory = objective(model, x, {"eps": noise}, memory, 0)
        estimate.surrogate.sum().backward()
        return model.encoder.weight.grad, memory, estimate.bound

    bare, nothing, bound = gradient(ScoreFunction(num_samples=2, baseline="none"), {})
    first, memory, _ = gradient(ScoreFunction(num_samples=2, decay=0.8), {})
    assert nothing == {}
    torch.testing.assert_close(first, bare)  # no past, no baseline
    torch.testing.assert_close(running_mean(memory), bound.mean())
    second, later, _ = gradient(
        ScoreFunction(num_samples=2, decay=0.8), {"sum": torch.tensor(-7.0), "weight": torch.tensor(1.0)}
    )
    score, _, _ = gradient(
        ScoreFunction(num_samples=2, decay=0.8), {"sum": torch.tensor(1.0), "weight": torch.tensor(1.0)}
    )
    torch.testing.assert_close(second - bare, -7 * (score - bare))  # linear in the baseline that was given
    torch.testing.assert_close(running_mean(later), 0.8 * -7.0 + 0.2 * bound.mean())


def test_the_kl_to_be_weighed_has_the_same_baseline():
    """Its gradient is the covariance of log q / p(z) with the score over the samples: a constant in it counts nothing."""
    problem, L = LinearGaussian.scalar(), 5
    model, noise = problem.model(), numbers(L, 1, 1)
    objective = ScoreFunction(num_samples=L, baseline="leave_one_out")
    objective(model, torch.tensor([[1.7]]), {"eps": noise}, {}, 0)[0].terms["kl"].sum().backward()
    eps, z = noise[:, 0, 0], 0.3 + 0.6 * noise[:, 0, 0]
    log_ratio = 0.5 * (z.square() - eps.square())  # up to a constant
    score = eps / 0.6
    covariance = ((log_ratio - log_ratio.mean()) * score).sum() / (L - 1)
    torch.testing.assert_close(model.encoder.bias.grad[0], covariance)


def test_leave_one_out_needs_another_sample():
    with pytest.raises(ConfigError, match="the leave_one_out baseline needs num_samples of at least 2"):
        ScoreFunction(baseline="leave_one_out")
