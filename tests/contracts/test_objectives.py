"""Every row of OBJECTIVES against exact answers: the mean of its bound, of its terms and of its gradient over the noise.

The oracle is the linear-Gaussian VAE. One sample a datum makes every estimator a polynomial in the noise, so a Gauss
rule gives its mean, and its variance, without simulation. For two samples the mean is an integral over the plane.
"""

import math
from dataclasses import dataclass

import pytest
import torch

from tests.oracles import finite_difference, gauss_hermite, normal_grid, numbers
from tests.problems import LinearGaussian, cubature, gradients_of_rows, probabilistic_pca
from vae.objectives import (
    IWAE,
    OBJECTIVES,
    DReG,
    EstimatorA,
    EstimatorB,
    ScoreFunction,
    StickingTheLanding,
    log_weights,
)

pytestmark = pytest.mark.usefixtures("float64")
M, J, D = 4, 3, 5


@dataclass(frozen=True)
class Row:
    """What has to hold for an objective beside what holds for all."""

    samples: str  # several of them are averaged (mean), or tighten the bound (importance)
    route: str  # of the encoder's gradient: of the value (total), through z alone (path), or through q alone (score)
    biased: bool = False  # for more than one sample


ROWS = {
    "sgvb_b": Row("mean", "total"),
    "sgvb_a": Row("mean", "total"),
    "iwae": Row("importance", "total"),
    "dreg": Row("importance", "path"),
    "stl": Row("importance", "path", biased=True),
    "score_function": Row("mean", "score"),
}
MEMORY = {"sum": torch.tensor(-3.0), "weight": torch.tensor(0.5)}  # a running baseline of -6
BASELINES = ("none", "running", "leave_one_out")
SINGLE = [(name, {}) for name in OBJECTIVES] + [("score_function", {"baseline": "none"})]
SEVERAL = [(name, {}) for name in OBJECTIVES if name != "score_function"]
SEVERAL += [("score_function", {"baseline": baseline}) for baseline in BASELINES]
IMPORTANCE = [name for name, row in ROWS.items() if row.samples == "importance"]


def test_every_objective_has_an_oracle():
    assert OBJECTIVES.keys() == ROWS.keys()


def estimate(name, options, model, x, noise):
    return OBJECTIVES[name](num_samples=len(noise), **options)(model, x, {"eps": noise}, MEMORY, 0)


def over_nodes(values, weights):  # (nodes * M, ...) -> (M, ...)
    return torch.einsum("n,nm...->m...", weights, values.view(len(weights), -1, *values.shape[1:]))


def at_every_node(name, options, problem, x, L=1):
    """The estimate of each datum at each node of a rule that is exact for it, (nodes * M) rows, and the weights."""
    noise, weights = gauss_hermite(3, L, len(problem.c))
    model, (nodes, rows) = problem.model(), (len(weights), len(x))
    noise = noise[:, :, None].expand(-1, -1, rows, -1).reshape(L, nodes * rows, -1)
    return estimate(name, options, model, x.repeat(nodes, 1), noise)[0], model, weights


def gradients(model):
    encoder, decoder = model.encoder, model.decoder
    J = len(encoder.bias) // 2
    return {
        "A": encoder.weight.grad[:J],
        "c": encoder.bias.grad[:J],
        "log_std": 2 * encoder.bias.grad[J:],  # the network gives log-variances
        "W": decoder.weight.grad,
        "b": decoder.bias.grad,
    }


# --------------------------------------------------------------------------------------------- one sample: the ELBO


@pytest.mark.parametrize(("name", "options"), SINGLE)
class TestOneSampleGivesTheELBO:
    def test_bound_and_terms(self, name, options):
        problem = LinearGaussian.random(D, J)
        x = problem.data(M)
        got, _, weights = at_every_node(name, options, problem, x)
        expected, reconstruction = problem.elbo(x), problem.log_p_x_given_z(x)
        assert got.bound.shape == got.surrogate.shape == (len(weights) * M,)
        assert got.objective is None
        for value, exact in (
            (got.bound, expected),
            (got.elbo, expected),
            (got.terms["log_p_x_given_z"], reconstruction),
            (got.terms["kl"], reconstruction - expected),
        ):
            torch.testing.assert_close(over_nodes(value, weights), exact, rtol=1e-10, atol=1e-10)

    def test_gradient(self, name, options):
        problem = LinearGaussian.random(D, J)
        x = problem.data(M)
        got, model, weights = at_every_node(name, options, problem, x)
        over_nodes(got.surrogate, weights).mean().backward()
        for key, exact in problem.gradients(x).items():
            found = gradients(model)[key]
            torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-9, msg=lambda m, k=key: f"{k}: {m}")

    def test_gradient_of_the_kl_so_that_it_can_be_weighed(self, name, options):
        problem = LinearGaussian.random(D, J)
        x = problem.data(M)
        got, model, weights = at_every_node(name, options, problem, x)
        over_nodes(got.terms["kl"], weights).mean().backward()
        mean = x @ problem.A.T + problem.c
        torch.testing.assert_close(model.encoder.bias.grad[:J], mean.mean(0), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(2 * model.encoder.bias.grad[J:], problem.S - 1, rtol=1e-9, atol=1e-9)


# --------------------------------------------------------------------------------------------- several samples


@pytest.mark.parametrize(("name", "options"), SEVERAL)
def test_two_samples(name, options):
    """The mean of value and gradient over the plane of the noise, against the ELBO or the exact L_2."""
    problem, x = LinearGaussian.reference(), torch.ones(1, 1)
    noise, weights = normal_grid(2)
    model = problem.model_of_rows(len(weights))
    got, _ = estimate(name, options, model, x.expand(len(weights), 1), noise)
    got.surrogate.sum().backward()
    K = 2 if ROWS[name].samples == "importance" else 1
    exact = problem.importance_gradients(x, K)
    if ROWS[name].biased:
        towards = weights @ problem.path_gradients(x, noise[..., 0])
        assert (towards - exact[:2]).abs().min() > 0.1
        exact[:2] = towards
    assert (weights @ got.bound).item() == pytest.approx(problem.importance_bound(x, K).item(), abs=1e-10)
    assert (weights @ got.elbo).item() == pytest.approx(problem.elbo(x).item(), abs=1e-10)
    torch.testing.assert_close(weights @ gradients_of_rows(model), exact, rtol=0, atol=2e-8)


@pytest.mark.parametrize(("name", "options"), SEVERAL)
class TestSeveralSamples:
    def test_bound_from_single_samples(self, name, options):
        problem = LinearGaussian.random(D, J)
        x, model, noise = problem.data(M), problem.model(), numbers(7, M, J)
        one = {"baseline": "none"} if options else {}
        singles = torch.stack([estimate(name, one, model, x, eps[None])[0].bound for eps in noise])
        importance = ROWS[name].samples == "importance"
        expected = singles.logsumexp(0) - math.log(7) if importance else singles.mean(0)
        got, _ = estimate(name, options, model, x, noise)
        torch.testing.assert_close(got.bound, expected)
        torch.testing.assert_close(got.elbo, got.bound if not importance else singles.mean(0))
        assert (got.objective is not None) == importance  # so that the ELBO is reported beside it

    def test_surrogate_carries_the_value_of_what_is_maximised(self, name, options):
        problem = LinearGaussian.random(D, J)
        got, _ = estimate(name, options, problem.model(), problem.data(M), numbers(7, M, J))
        torch.testing.assert_close(got.surrogate, got.bound if got.objective is None else got.objective)

    def test_a_datum_does_not_depend_on_the_others(self, name, options):
        problem = LinearGaussian.scalar()
        x, model, noise = problem.data(M), problem.model_of_rows(M), numbers(5, M, 1)
        whole, _ = estimate(name, options, model, x, noise)
        whole.surrogate.sum().backward()
        order = torch.tensor([2, 0, 3, 1])
        permuted, _ = estimate(name, options, problem.model_of_rows(M), x[order], noise[:, order])
        torch.testing.assert_close(permuted.bound, whole.bound[order])
        for m in range(M):  # M = 1 too
            alone = problem.model_of_rows(1)
            one, _ = estimate(name, options, alone, x[m : m + 1], noise[:, m : m + 1])
            one.surrogate.sum().backward()
            torch.testing.assert_close(one.bound, whole.bound[m : m + 1])
            torch.testing.assert_close(gradients_of_rows(alone)[0], gradients_of_rows(model)[m])

    def test_route_of_the_gradient(self, name, options):
        """The decoder's gradient is that of the value on every route, the encoder's on the total one alone."""
        problem = LinearGaussian.random(D, J)
        x, model, noise = problem.data(M), problem.model(), numbers(3, M, J, seed=3)
        estimate(name, options, model, x, noise)[0].surrogate.sum().backward()

        def value(parameter):
            def of(numbers):
                with torch.no_grad():
                    before = parameter.clone()
                    parameter.copy_(numbers)
                    result = estimate(name, options, model, x, noise)[0].bound.sum()
                    parameter.copy_(before)
                    return result

            return of

        for network, same in ((model.decoder, True), (model.encoder, ROWS[name].route == "total")):
            numeric = finite_difference(value(network.weight), network.weight.detach().clone())
            assert torch.allclose(numeric, network.weight.grad, rtol=1e-6, atol=1e-6) == same


@pytest.mark.parametrize("name", IMPORTANCE)
class TestImportanceWeights:
    def test_the_best_sample_weighs_most(self, name):
        """The decoder's output of each sample gets a gradient in proportion to its weight, on every route."""
        problem, K = LinearGaussian.random(D, J), 6
        x, model, noise = problem.data(M), problem.model(), numbers(K, M, J)
        outputs = []
        model.decoder.register_forward_hook(lambda *call: call[2].retain_grad() or outputs.append(call[2]))
        estimate(name, {}, model, x, noise)[0].surrogate.sum().backward()
        residual = x - outputs[0].detach().view(K, M, D)
        v = (outputs[0].grad.view(K, M, D) * problem.s2 / residual).mean(2)  # (K, M)
        q = model.posterior(x)
        log_w = log_weights(model, x, *q.transform_and_log_prob(noise)).log_w
        torch.testing.assert_close(v, log_w.softmax(0))
        assert (v.argmax(0) == log_w.argmax(0)).all()

    def test_bound_grows_with_the_samples_towards_log_p_x_and_not_above(self, name):
        """Nested subsets of the same samples, 100 000 times; each step is some 10 standard errors (fixed seed)."""
        problem, x = LinearGaussian.reference(), torch.ones(100_000, 1)
        noise, model = numbers(25, 100_000, 1, seed=2), problem.model()
        with torch.no_grad():
            bounds = torch.stack([estimate(name, {}, model, x, noise[:K])[0].bound for K in (1, 3, 25)])
        for steps in (*bounds.diff(dim=0), problem.log_p_x(x) - bounds[-1]):
            assert steps.mean() > 4.5 * steps.std() / math.sqrt(len(steps))

    def test_gradient_by_five_samples(self, name):
        """400 000 draws against the derivative of the exact L_5: 4.5 standard errors, 6.8e-6 a number for chance."""
        problem, x, R = LinearGaussian.reference(), torch.ones(1, 1), 400_000
        model = problem.model_of_rows(R)
        got, _ = estimate(name, {}, model, x.expand(R, 1), numbers(5, R, 1, seed=5))
        got.surrogate.sum().backward()
        exact = problem.importance_gradients(x, 5)
        if ROWS[name].biased:
            exact[:2] = torch.tensor([0.57856, -0.20147])
        found = gradients_of_rows(model)
        error = (found.mean(0) - exact).abs() / (found.std(0) / math.sqrt(R))
        assert (error < 4.5).all(), error


# --------------------------------------------------------------------------------------------- variances

ELBO = -2.648691  # of the scalar case at mean .3, deviation .6
EXACT_VARIANCES = {
    "sgvb_a": lambda c: (c.a**2 / 2 + c.kappa**2, c.L**2 * c.v, c.kappa**2 + 2 * c.L**2 * c.v**2),
    "sgvb_b": lambda c: (
        (c.L - 1) ** 2 * c.v**2 / 2 + c.B**2 * c.v,
        (c.L - 1) ** 2 * c.v,
        c.B**2 * c.v + 2 * (c.L - 1) ** 2 * c.v**2,
    ),
    "stl": lambda c: (c.a**2 / 2 + c.kappa**2, c.a**2 / c.v, c.kappa**2 + 2 * c.a**2),
    "score_function": lambda c: (
        c.a**2 / 2 + c.kappa**2,
        (c.K**2 - 3 * c.K * c.a + 15 * c.a**2 / 4 + 2 * c.kappa**2) / c.v,
        2 * c.K**2 - 10 * c.K * c.a + 18.5 * c.a**2 + 10 * c.kappa**2,
    ),
}
EXACT_VARIANCES |= {"iwae": EXACT_VARIANCES["sgvb_a"], "dreg": EXACT_VARIANCES["stl"]}  # with one sample
POINTS = {"generic": (0.3, 0.6), "posterior": (1.95 / 2.19, 4.38**-0.5), "prior": (0.0, 1.0)}


class Constants:
    """log w = K + baseline - a eps^2 / 2 - kappa eps, in the names of the table above; v is q's variance."""

    def __init__(self, problem, x, baseline):
        L, mean, v = problem.precision.item(), problem.c.item(), problem.S.item()
        m = ((x - problem.b) * problem.W / problem.s2 / L).item()
        self.L, self.v, self.a = L, v, L * v - 1
        self.kappa, self.B = L * (mean - m) * math.sqrt(v), L * (mean - m) - mean
        log_p = problem.log_p_x(x).item()
        self.K = log_p + 0.5 * math.log(L * v) - 0.5 * L * (mean - m) ** 2 - baseline


def moments(objective, problem, x, L, memory):
    """Mean and variance of the bound and of the gradient in mean and log std, exactly."""
    noise, weights = gauss_hermite(6, L)
    model = problem.model_of_rows(len(weights))
    got, _ = objective(model, x.expand(len(weights), 1), {"eps": noise}, memory, 0)
    got.surrogate.sum().backward()
    values = torch.cat([got.bound.detach()[:, None], gradients_of_rows(model)[:, :2]], 1)
    mean = weights @ values
    return mean, weights @ (values - mean).square()


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("baseline", [0.0, ELBO])
def test_variances_of_value_and_gradient(name, point, baseline):
    """The closed forms, of one sample and, where samples are averaged, half of them of two."""
    mean, std = POINTS[point]
    problem, x = LinearGaussian.scalar(mean=mean, std=std), torch.tensor([[1.7]])
    memory = {"sum": torch.tensor(baseline), "weight": torch.tensor(1.0)}
    exact = torch.tensor(EXACT_VARIANCES[name](Constants(problem, x, baseline)))
    for L in (1, 2) if ROWS[name].samples == "mean" else (1,):
        found, variances = moments(OBJECTIVES[name](num_samples=L), problem, x, L, memory)
        torch.testing.assert_close(variances, exact / L, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found[0], problem.elbo(x)[0], rtol=1e-10, atol=1e-10)


REFERENCE = [  # value, d mean, d log std at the generic point
    (EstimatorA(), {}, (2.5738, 6.9064, 7.3801)),
    (EstimatorB(), {}, (3.7387, 4.1128, 5.9596)),
    (StickingTheLanding(), {}, (2.5738, 0.9242, 3.0729)),
    (ScoreFunction(baseline="none"), {}, (2.5738, 43.660, 54.986)),
    (ScoreFunction(), {"sum": torch.tensor(ELBO), "weight": torch.tensor(1.0)}, (2.5738, 15.685, 28.732)),
]


@pytest.mark.parametrize(("objective", "memory", "variances"), REFERENCE, ids=lambda v: type(v).__name__)
def test_reference_values_of_the_scalar_case(objective, memory, variances):
    """log p = -1.824588, ELBO = -2.648691, d ELBO / d mean = 2.586, d ELBO / d log std = -0.5768."""
    problem, x = LinearGaussian.scalar(), torch.tensor([[1.7]])
    mean, variance = moments(objective, problem, x, 1, memory)
    assert problem.log_p_x(x).item() == pytest.approx(-1.824588, abs=1e-6)
    assert mean.tolist() == pytest.approx([ELBO, 2.586, -0.5768], abs=5e-5)
    assert variance.tolist() == pytest.approx(list(variances), rel=5e-5)


def test_a_monte_carlo_mean_and_variance_agree_with_the_gauss_rule():
    """1e6 samples; 2 % of the variance and 4.5 standard errors of the mean (fixed seed)."""
    n, problem = 1_000_000, LinearGaussian.scalar()
    model = problem.model_of_rows(n)
    got, _ = StickingTheLanding()(model, torch.full((n, 1), 1.7), {"eps": numbers(1, n, 1, seed=12)}, {}, 0)
    got.surrogate.sum().backward()
    d_mean, d_log_std = gradients_of_rows(model)[:, :2].T
    assert d_mean.var().item() == pytest.approx(0.9242, rel=0.02)
    assert d_log_std.var().item() == pytest.approx(3.0729, rel=0.02)
    assert d_mean.mean().item() == pytest.approx(2.586, abs=4.5 * (0.9242 / n) ** 0.5)
    assert d_log_std.mean().item() == pytest.approx(-0.5768, abs=4.5 * (3.0729 / n) ** 0.5)


@pytest.mark.parametrize("objective", [IWAE(num_samples=10), DReG(num_samples=10), StickingTheLanding(), EstimatorA()])
def test_where_q_is_the_posterior_the_bound_is_constant_and_path_gradients_vanish(objective):
    """log w = log p(x) whatever the noise; the total derivative keeps the variance of the score."""
    problem = LinearGaussian.random(D, 1).at_posterior()
    x, model = problem.data(M), problem.model()
    noise = numbers(objective.num_samples, M, 1, seed=4, scale=3)
    got, _ = objective(model, x, {"eps": noise}, {}, 0)
    torch.testing.assert_close(got.bound, problem.log_p_x(x), rtol=1e-11, atol=1e-11)
    got.surrogate.sum().backward()
    largest = max(p.grad.abs().max().item() for p in model.encoder.parameters())
    assert (largest < 1e-12) == isinstance(objective, DReG | StickingTheLanding)


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
        value = -EstimatorB()(model, x, {"eps": noise}, {}, 0)[0].surrogate.mean()
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
