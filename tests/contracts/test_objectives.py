"""Every row of OBJECTIVES against the closed forms of the linear-Gaussian VAE: value, terms, gradient, variance."""

import pytest
import torch

from tests.oracles import finite_difference, numbers
from tests.problems import LinearGaussian, cubature, probabilistic_pca
from vae.objectives import OBJECTIVES, EstimatorA, EstimatorB, WeighedKL

pytestmark = pytest.mark.usefixtures("float64")
M, J, D = 4, 3, 5

# Whether the mean of an objective's bound over the noise is the ELBO, so that the closed forms hold it to account.
UNBIASED_FOR_THE_ELBO = {"sgvb_b", "sgvb_a"}


def test_every_objective_has_an_oracle():
    assert OBJECTIVES.keys() == UNBIASED_FOR_THE_ELBO


@pytest.mark.parametrize("name", OBJECTIVES)
class TestAgainstTheClosedForm:
    def test_bound_and_terms(self, name):
        problem = LinearGaussian.random(D, J)
        x, model = problem.data(M), problem.model()
        estimate, memory = OBJECTIVES[name]()(model, x, cubature(J).expand(-1, M, -1), {}, 0)
        assert estimate.bound.shape == (M,)
        assert memory == {}
        torch.testing.assert_close(estimate.bound, problem.elbo(x), rtol=1e-11, atol=1e-11)
        expected = problem.log_p_x_given_z(x)
        torch.testing.assert_close(estimate.terms["log_p_x_given_z"], expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(estimate.terms["kl"], expected - problem.elbo(x), rtol=1e-10, atol=1e-10)

    def test_gradient(self, name):
        problem = LinearGaussian.random(D, J)
        x, model = problem.data(M), problem.model()
        estimate, _ = OBJECTIVES[name]()(model, x, cubature(J).expand(-1, M, -1), {}, 0)
        estimate.surrogate.mean().backward()
        exact = problem.gradients(x)
        got = {
            "A": model.encoder.weight.grad[:J],
            "c": model.encoder.bias.grad[:J],
            "log_std": 2 * model.encoder.bias.grad[J:],  # the network gives log-variances
            "W": model.decoder.weight.grad,
            "b": model.decoder.bias.grad,
        }
        for key, value in exact.items():
            torch.testing.assert_close(got[key], value, rtol=1e-10, atol=1e-10, msg=lambda m, k=key: f"{k}: {m}")

    def test_gradient_equals_finite_differences_of_its_own_value(self, name):
        problem = LinearGaussian.random(D, J)
        x, model = problem.data(M), problem.model()
        noise = numbers(2, M, J, seed=3)
        objective = OBJECTIVES[name]()
        objective(model, x, noise, {}, 0)[0].surrogate.sum().backward()

        def value(weights):
            with torch.no_grad():
                model.encoder.weight.copy_(weights)
                return objective(model, x, noise, {}, 0)[0].bound.sum()

        start = model.encoder.weight.detach().clone()
        gradient = model.encoder.weight.grad.clone()
        torch.testing.assert_close(finite_difference(value, start), gradient, rtol=1e-6, atol=1e-6)

    def test_bound_of_a_datum_does_not_depend_on_the_others(self, name):
        problem = LinearGaussian.random(D, J)
        x, model, noise = problem.data(M), problem.model(), numbers(2, M, J)
        objective = OBJECTIVES[name]()
        whole = objective(model, x, noise, {}, 0)[0].bound
        order = torch.tensor([2, 0, 3, 1])
        torch.testing.assert_close(objective(model, x[order], noise[:, order], {}, 0)[0].bound, whole[order])
        for m in range(M):  # M = 1 too
            one = objective(model, x[m : m + 1], noise[:, m : m + 1], {}, 0)[0].bound
            torch.testing.assert_close(one, whole[m : m + 1])

    def test_several_samples_are_the_mean_of_single_ones(self, name):
        problem = LinearGaussian.random(D, J)
        x, model, noise = problem.data(M), problem.model(), numbers(7, M, J)
        objective = OBJECTIVES[name]()
        singles = torch.stack([objective(model, x, noise[i : i + 1], {}, 0)[0].bound for i in range(7)])
        torch.testing.assert_close(objective(model, x, noise, {}, 0)[0].bound, singles.mean(0))


def test_reference_values_of_the_scalar_case():
    """log p = -1.824588, ELBO = -2.648691, d ELBO / d mean = 2.586, d ELBO / d log std = -0.5768."""
    problem = LinearGaussian.scalar()
    x, model = torch.tensor([[1.7]]), problem.model()
    estimate, _ = EstimatorB()(model, x, cubature(1), {}, 0)
    estimate.bound.sum().backward()
    assert problem.log_p_x(x).item() == pytest.approx(-1.824588, abs=1e-6)
    assert estimate.bound.item() == pytest.approx(-2.648691, abs=1e-6)
    assert model.encoder.bias.grad[0].item() == pytest.approx(2.586, abs=5e-4)
    assert 2 * model.encoder.bias.grad[1].item() == pytest.approx(-0.5768, abs=5e-5)


class Given(torch.nn.Module):
    """An encoder that gives the same numbers for every datum, a leaf each, so that gradients are per sample."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = torch.nn.Parameter(outputs)

    def forward(self, x):
        return self.outputs[: len(x)]


@pytest.mark.parametrize(
    ("objective", "value", "d_mean", "d_log_std"),
    [(EstimatorA(), 2.5738, 6.9064, 7.3801), (EstimatorB(), 3.7387, 4.1128, 5.9596)],
)
def test_variances_of_value_and_gradient(objective, value, d_mean, d_log_std):
    """The closed forms at mean .3, deviation .6, from 1e6 samples; 2 % is beyond 4.5 standard errors (fixed seed)."""
    n = 1_000_000
    model = LinearGaussian.scalar().model()
    model.encoder = Given(torch.tensor([0.3, 2 * torch.tensor(0.6).log()]).expand(n, 2).clone())
    estimate, _ = objective(model, torch.full((n, 1), 1.7), numbers(1, n, 1, seed=12), {}, 0)
    estimate.surrogate.sum().backward()
    gradient = model.encoder.outputs.grad
    assert estimate.bound.var().item() == pytest.approx(value, rel=0.02)
    assert gradient[:, 0].var().item() == pytest.approx(d_mean, rel=0.02)
    assert (2 * gradient[:, 1]).var().item() == pytest.approx(d_log_std, rel=0.02)
    assert gradient[:, 0].mean().item() == pytest.approx(2.586, abs=4.5 * (d_mean / n) ** 0.5)
    assert 2 * gradient[:, 1].mean().item() == pytest.approx(-0.5768, abs=4.5 * (d_log_std / n) ** 0.5)


def test_estimator_a_is_constant_where_q_is_the_posterior():
    """log w = log p(x) whatever the noise."""
    problem = LinearGaussian.random(D, 1)
    precision = problem.precision
    problem.A = torch.linalg.inv(precision) @ problem.W.T / problem.s2
    problem.c = -problem.A @ problem.b
    problem.S = 1 / precision.diagonal()
    x = problem.data(M)
    estimate, _ = EstimatorA()(problem.model(), x, numbers(1, M, 1, seed=4, scale=3), {}, 0)
    torch.testing.assert_close(estimate.bound, problem.log_p_x(x), rtol=1e-11, atol=1e-11)


def test_the_optimum_of_the_bound_is_probabilistic_pca():
    """Over all parameters, with a diagonal q, the best ELBO equals the best log-likelihood; W'W gets diagonal."""
    D, J, N = 6, 2, 400
    x = numbers(N, D, seed=8) @ numbers(D, D, seed=9)
    best, s2, values = probabilistic_pca(x, J)
    torch.manual_seed(0)
    import vae

    likelihood = vae.Gaussian((D,), variance="shared", floor=1e-6)
    model = vae.VAE(torch.nn.Linear(D, 2 * J), torch.nn.Linear(J, D), likelihood).double()
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=4000, tolerance_grad=1e-12, tolerance_change=0, line_search_fn="strong_wolfe"
    )
    noise = cubature(J).expand(-1, N, -1)

    def closure():
        optimizer.zero_grad()
        value = -EstimatorB()(model, x, noise, {}, 0)[0].surrogate.mean()
        value.backward()
        return value

    reached = -optimizer.step(closure)
    reached = -closure()
    assert reached.item() == pytest.approx(best.item(), abs=1e-8)
    assert likelihood.log_variance.exp().item() == pytest.approx(s2.item(), rel=1e-3)
    product = model.decoder.weight.T @ model.decoder.weight
    assert product[0, 1].abs() < 1e-3
    expected = (values[:J] - s2).sort().values
    torch.testing.assert_close(product.diagonal().sort().values, expected, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------- modifiers


def test_beta_weighs_the_kl_and_leaves_the_bound_alone():
    problem = LinearGaussian.random(D, J)
    x, model, noise = problem.data(M), problem.model(), numbers(2, M, J)
    plain, _ = EstimatorB()(model, x, noise, {}, 0)
    weighed, _ = WeighedKL(EstimatorB(), 4.0)(model, x, noise, {}, 0)
    torch.testing.assert_close(weighed.bound, plain.bound)
    torch.testing.assert_close(weighed.surrogate, plain.terms["log_p_x_given_z"] - 4 * plain.terms["kl"])


def test_beta_warms_up_linearly_from_zero():
    beta = WeighedKL(EstimatorB(), 2.0, warm_up=10)
    assert [beta.weight(step) for step in (0, 5, 10, 50)] == [0.0, 1.0, 2.0, 2.0]
