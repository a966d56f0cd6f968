"""Every row of FAMILIES against SciPy and against its own change of variables.

Expectations are sums over the nodes of the trapezoidal rule, passed as noise: exact numbers instead of draws.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import scipy.stats as st
import torch
from scipy.integrate import quad

from tests.oracles import numbers, trapezoid
from vae.distributions import (
    FAMILIES,
    Beta,
    Cauchy,
    Dirichlet,
    Erlang,
    FisherF,
    Gamma,
    Laplace,
    MultivariateNormal,
    MultivariateT,
    Normal,
    Pareto,
    StudentT,
    Triangular,
    detached,
    sum_from,
)
from vae.distributions.numerics import EULER, gamma_from_normal, log1p_square, scaled_exponential_integral
from vae.errors import UsageError

pytestmark = pytest.mark.usefixtures("float64")
M, L, J, K = 3, 2, 5, 3


@dataclass
class Case:
    make: Callable[..., Any]  # parameters -> the family
    parameters: tuple[torch.Tensor, ...]
    elements: Callable[..., Any]  # the same parameters as arrays -> SciPy's law of each element
    vector: Callable[..., Any] | None = None  # ... of row m -> SciPy's law of the vector
    one_to_one: bool = True  # whether eps -> z is
    smooth: bool = True  # whether eps -> log q(z) is, so that few nodes make an exact sum
    exact: bool = True  # whether the gradient of a sample is; that of a gamma is torch's approximation

    def family(self, dtype=torch.float64):
        return self.make(*(p.to(dtype) for p in self.parameters))

    @property
    def oracle(self):
        return self.elements(*(p.numpy() for p in self.parameters))

    def small(self):
        """One row and, of independent elements, two of them: what a grid of noise has to pay for."""
        rows = slice(1, 2) if self.vector else (slice(1, 2), slice(2))
        return [p[rows].clone().requires_grad_() for p in self.parameters]


def about(value, seed, columns=J):
    return value * numbers(M, columns, seed=seed, scale=0.15).exp()


LOC, LOG_SCALE = numbers(M, J), numbers(M, J, seed=1, scale=0.5)
FACTOR = (0.6 * numbers(M, K, K, seed=2)).tril(-1) + torch.diag_embed(about(0.8, 3, K))
LOWS, UPS, DOWNS = about(1, 4), about(0.7, 5), about(1.6, 6)


def located(law):
    return lambda loc, log_scale: law(loc, np.exp(log_scale))


def spread(factor):
    return np.sqrt(np.square(np.tril(factor)).sum(-1))


CASES = {
    "exponential": Case(FAMILIES["exponential"], (about(1.5, 1),), lambda rate: st.expon(scale=1 / rate)),
    "cauchy": Case(FAMILIES["cauchy"], (LOC, LOG_SCALE), located(st.cauchy)),
    "logistic": Case(FAMILIES["logistic"], (LOC, LOG_SCALE), located(st.logistic)),
    "rayleigh": Case(FAMILIES["rayleigh"], (about(0.8, 1),), lambda scale: st.rayleigh(scale=scale)),
    "pareto": Case(FAMILIES["pareto"], (about(2, 1), about(9, 2)), lambda scale, a: st.pareto(a, scale=scale)),
    "weibull": Case(FAMILIES["weibull"], (about(2, 1), about(1.6, 2)), lambda s, k: st.weibull_min(k, scale=s)),
    "reciprocal": Case(
        lambda low, width: FAMILIES["reciprocal"](low, low + width),
        (LOWS, UPS),
        lambda low, width: st.loguniform(low, low + width),
    ),
    "gompertz": Case(FAMILIES["gompertz"], (about(0.7, 1), about(2, 2)), lambda c, s: st.gompertz(c, scale=s)),
    "gumbel": Case(FAMILIES["gumbel"], (LOC, LOG_SCALE), located(st.gumbel_r)),
    "erlang": Case(lambda rate: Erlang(3, rate), (about(1.5, 1),), lambda rate: st.erlang(3, scale=1 / rate)),
    "normal": Case(FAMILIES["normal"], (LOC, LOG_SCALE), located(st.norm)),
    "laplace": Case(FAMILIES["laplace"], (LOC, LOG_SCALE), located(st.laplace)),
    "multivariate_normal": Case(
        lambda loc, factor: MultivariateNormal(loc, factor.tril()),
        (numbers(M, K), FACTOR),
        lambda loc, factor: st.norm(loc, spread(factor)),
        lambda loc, factor: st.multivariate_normal(loc, np.tril(factor) @ np.tril(factor).T),
    ),
    "multivariate_t": Case(
        lambda loc, factor, df: MultivariateT(loc, factor.tril(), df),
        (numbers(M, 2), FACTOR[:, :2, :2], about(9, 4, 1)[:, 0]),
        lambda loc, factor, df: st.t(df[:, None], loc, spread(factor)),
        lambda loc, factor, df: st.multivariate_t(loc, np.tril(factor) @ np.tril(factor).T, df),
        one_to_one=False,
        exact=False,
    ),
    "student_t": Case(
        FAMILIES["student_t"],
        (LOC, LOG_SCALE, about(9, 2)),
        lambda loc, log_scale, df: st.t(df, loc, np.exp(log_scale)),
        one_to_one=False,
        exact=False,
    ),
    "student_t of fixed df": Case(
        lambda loc, log_scale: StudentT(loc, log_scale, 6.5),
        (LOC, LOG_SCALE),
        lambda loc, log_scale: st.t(6.5, loc, np.exp(log_scale)),
        one_to_one=False,
        exact=False,
    ),
    "uniform": Case(
        FAMILIES["uniform"],
        (LOC, LOG_SCALE),
        lambda loc, log_scale: st.uniform(loc - np.exp(log_scale), 2 * np.exp(log_scale)),
    ),
    "triangular": Case(
        lambda low, up, down: FAMILIES["triangular"](low, low + up, low + up + down),
        (LOWS, UPS, DOWNS),
        lambda low, up, down: st.triang(up / (up + down), low, up + down),
        smooth=False,
    ),
    "log_normal": Case(
        FAMILIES["log_normal"], (LOC, LOG_SCALE - 0.7), lambda m, s: st.lognorm(np.exp(s), scale=np.exp(m))
    ),
    "gamma": Case(Gamma, (about(1.7, 1), about(1.5, 2)), lambda k, rate: st.gamma(k, scale=1 / rate), exact=False),
    "gamma of small shape": Case(
        Gamma, (about(0.3, 1), about(1.5, 2)), lambda k, rate: st.gamma(k, scale=1 / rate), exact=False
    ),
    "gamma as a sum": Case(
        lambda rate: Gamma(2, rate), (about(1.5, 2),), lambda rate: st.gamma(2, scale=1 / rate), one_to_one=False
    ),
    "dirichlet": Case(
        Dirichlet,
        (about(1.5, 1, K),),
        lambda a: st.beta(a, a.sum(-1, keepdims=True) - a),
        lambda a: st.dirichlet(a),
        one_to_one=False,
        exact=False,
    ),
    "beta": Case(Beta, (about(1.4, 1), about(2.5, 2)), st.beta, one_to_one=False, exact=False),
    "chi_squared": Case(FAMILIES["chi_squared"], (about(4.5, 1),), st.chi2, exact=False),
    "fisher_f": Case(FisherF, (about(5, 1), about(18, 2)), st.f, one_to_one=False, exact=False),
}
ONE_TO_ONE = {name: case for name, case in CASES.items() if case.one_to_one}
ELEMENTS = {name: case for name, case in ONE_TO_ONE.items() if not case.vector}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def test_every_family_has_an_oracle():
    assert {name.split(" ")[0] for name in CASES} == FAMILIES.keys()
    for name, case in CASES.items():
        assert type(case.family()) is FAMILIES[name.split(" ")[0]]


def draw(family, *samples, seed=3):
    """Noise from NumPy's generator."""
    kind, shape, _ = family.noise
    generator = np.random.default_rng(seed)
    fill = generator.standard_normal if kind == "normal" else generator.random
    return torch.from_numpy(fill((*samples, *shape)))


def grid(family, smooth=True):
    """Nodes of the trapezoidal rule in the numbers of noise that one z hangs on, and their weights."""
    kind, shape, _ = family.noise
    vector = family.entropy.ndim < family.mean.ndim
    axes = shape[-1] if vector else math.prod(shape[family.mean.ndim :])
    points = {1: 1000 if smooth else 40_000, 2: 90, 3: 34}[axes]
    t = torch.linspace(-8.2, 8.2, points)
    weight = (-0.5 * t.square()).exp() / math.sqrt(2 * math.pi) * (t[1] - t[0])
    nodes = torch.cartesian_prod(*[t] * axes).reshape(-1, axes)
    weights = torch.cartesian_prod(*[weight] * axes).reshape(-1, axes).prod(-1)
    nodes = nodes if kind == "normal" else torch.special.ndtr(nodes)
    if vector:
        return nodes[:, None], weights
    return (nodes[:, None, None] if shape[family.mean.ndim :] else nodes[:, None]), weights


def expectation(values, weights):
    return torch.tensordot(weights, values, 1)


@each_case
class TestAgainstSciPy:
    def test_density(self, case):
        family, oracle = case.family(), case.oracle
        if case.vector:
            z = family.transform(draw(family, L))
            rows = [case.vector(*(p[m].numpy() for p in case.parameters)) for m in range(M)]
            # SciPy wants the points of a Dirichlet as columns.
            points = [z[:, m].numpy().T if isinstance(family, Dirichlet) else z[:, m].numpy() for m in range(M)]
            expected = np.stack([law.logpdf(x) for law, x in zip(rows, points, strict=True)], 1)
        else:
            tails = [np.full((M, J), p) for p in (1e-9, 1 - 1e-9)]
            z = torch.from_numpy(oracle.ppf(np.stack([*np.random.default_rng(2).random((L, M, J)), *tails])))
            expected = oracle.logpdf(z)
        torch.testing.assert_close(family.log_prob(z), torch.from_numpy(expected), rtol=1e-9, atol=1e-9)

    def test_mean_variance_and_entropy(self, case):
        family, oracle = case.family(), case.oracle
        if not isinstance(family, Cauchy):
            torch.testing.assert_close(family.mean, torch.from_numpy(oracle.mean()), rtol=1e-9, atol=1e-9)
        if hasattr(family, "variance"):
            expected = np.nan_to_num(oracle.var(), nan=np.inf)  # SciPy calls that of a Cauchy undefined
            torch.testing.assert_close(family.variance, torch.from_numpy(expected), rtol=1e-8, atol=1e-9)
        if case.vector:
            rows = [case.vector(*(p[m].numpy() for p in case.parameters)) for m in range(M)]
            entropy = np.array([law.entropy() for law in rows])
        else:
            entropy = np.broadcast_to(oracle.entropy(), (M, J)).copy()
        torch.testing.assert_close(family.entropy, torch.from_numpy(entropy), rtol=1e-6, atol=1e-6)  # SciPy integrates

    def test_samples_follow_the_law(self, case):
        """Kolmogorov-Smirnov on 5,000 draws of each element; false alarms at a rate of 1e-4 a case."""
        family, oracle = case.family(), case.oracle
        uniform = oracle.cdf(family.transform(draw(family, 5_000)).numpy())
        p_values = [st.kstest(column, "uniform").pvalue for column in uniform.reshape(5_000, -1).T]
        assert min(p_values) > 1e-4 / len(p_values)


@pytest.mark.parametrize("case", ELEMENTS.values(), ids=ELEMENTS.keys())
def test_one_number_of_noise_is_turned_by_the_inverse_distribution_function(case):
    family = case.family()
    noise = draw(family, L)
    u = noise if family.noise.kind == "uniform" else torch.special.ndtr(noise)
    torch.testing.assert_close(family.transform(noise), torch.from_numpy(case.oracle.ppf(u)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", ONE_TO_ONE.values(), ids=ONE_TO_ONE.keys())
def test_density_by_change_of_variables(case):
    """log q(z) = log p(eps) - log |det dg/d eps|, by automatic differentiation."""
    family = case.family()
    noise = draw(family, L).requires_grad_()
    z = family.transform(noise)
    log_p = -0.5 * noise.square() - 0.5 * math.log(2 * math.pi) if family.noise.kind == "normal" else 0 * noise
    if case.vector:
        rows = [torch.autograd.grad(z[..., k].sum(), noise, retain_graph=True)[0] for k in range(K)]
        expected = log_p.sum(-1) - torch.linalg.slogdet(torch.stack(rows, -2))[1]
    else:
        expected = log_p - torch.autograd.grad(z.sum(), noise)[0].abs().log()
    torch.testing.assert_close(family.log_prob(z), expected, rtol=1e-8, atol=1e-8)


@each_case
class TestFamily:
    def test_noise_has_the_shape_of_the_parameters(self, case):
        family = case.family()
        *leading, last = family.mean.shape
        if case.vector:
            assert family.noise.shape == (*leading, last + isinstance(family, MultivariateT))
        else:
            assert family.noise.shape == (*leading, last, *([] if case.one_to_one else [2]))
        z, log_prob = family.transform_and_log_prob(draw(family, L))
        assert z.shape == (L, *family.mean.shape)
        assert log_prob.shape == (L, *family.entropy.shape) == ((L, M) if case.vector else (L, M, J))

    def test_joint_call_equals_separate_calls(self, case):
        family = case.family()
        noise = draw(family, 50)
        z, log_prob = family.transform_and_log_prob(noise)
        torch.testing.assert_close(z, family.transform(noise), rtol=0, atol=0)
        torch.testing.assert_close(log_prob, family.log_prob(z), rtol=1e-9, atol=1e-9)

    def test_gradients_of_the_density_equal_finite_differences(self, case):
        parameters = case.small()
        family = case.make(*parameters)
        z = family.transform(draw(family, L)).detach().requires_grad_()
        if isinstance(family, Dirichlet):  # a step must not leave the simplex
            logits = z.detach().log().requires_grad_()
            assert torch.autograd.gradcheck(lambda a, x: Dirichlet(a).log_prob(x.softmax(-1)), (*parameters, logits))
        else:
            assert torch.autograd.gradcheck(lambda *p: case.make(*p[:-1]).log_prob(p[-1]), (*parameters, z))

    def test_gradients_of_samples_equal_finite_differences(self, case):
        """Those of log gamma with respect to its concentration are within 0.4 % at each point; in an F, terms cancel."""
        parameters = case.small()
        noise = draw(case.make(*parameters), 20)
        within = {"rtol": 1e-6, "atol": 1e-6} if case.exact else {"rtol": 4e-3, "atol": 2e-4}
        assert torch.autograd.gradcheck(lambda *p: case.make(*p).transform(noise), parameters, **within)

    def test_gradients_of_expectations_equal_those_of_closed_forms(self, case):
        """d E[z], d E[z^2] and d E[-log q(z)] by the reparameterization (of a Cauchy, d E[1 / (1 + z^2)])."""
        parameters = case.small()
        family = case.make(*parameters)
        noise, weights = grid(family, case.smooth)
        assert weights.sum().item() == pytest.approx(1, abs=1e-11)
        z, log_prob = family.transform_and_log_prob(noise)
        pairs = [(-log_prob, family.entropy)]
        if isinstance(family, Cauchy):
            wide = 1 + family.log_scale.exp()
            pairs.append((1 / (1 + z.square()), wide / (wide.square() + family.loc.square())))
        else:
            pairs.append((z, family.mean))
            if hasattr(family, "variance"):
                pairs.append((z.square(), family.variance + family.mean.square()))
        for values, closed_form in pairs:
            got = expectation(values, weights)
            torch.testing.assert_close(got, closed_form, rtol=1e-5, atol=1e-5)
            cotangent = numbers(*closed_form.shape, seed=8)
            ours = torch.autograd.grad(got, parameters, cotangent, retain_graph=True, materialize_grads=True)
            exact = torch.autograd.grad(closed_form, parameters, cotangent, retain_graph=True, materialize_grads=True)
            for a, b in zip(ours, exact, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

    def test_expected_score_is_zero_unless_the_support_moves(self, case):
        """The ends of a triangle move too, but its density is 0 there."""
        parameters = case.small()
        family = case.make(*parameters)
        noise, weights = grid(family, case.smooth)
        z = family.transform(noise).detach()
        scores = torch.autograd.grad(expectation(family.log_prob(z), weights).sum(), parameters)
        biased = max(score.abs().max().item() for score in scores) > 1e-3
        assert biased == (family.support_depends_on_parameters and not isinstance(family, Triangular))

    def test_edges_of_float32_noise_give_finite_values_and_gradients(self, case):
        """Uniform generators reach 0 and 1 - 2^-24; normal ones, 6."""
        parameters = [p.float().requires_grad_() for p in case.parameters]
        family = case.make(*parameters)
        kind, shape, _ = family.noise
        edges = (0.0, 1 - 2.0**-24, 1.0) if kind == "uniform" else (-6.0, 0.0, 6.0)
        last = shape[-1] if len(shape) > 2 or case.vector else 1
        for corner in itertools.product(edges, repeat=last):
            noise = torch.tensor(corner, dtype=torch.float32).expand(*shape[:-1], last).expand(shape)
            z, log_prob = family.transform_and_log_prob(noise)
            for value in (z, log_prob, family.log_prob(z), *torch.autograd.grad(z.sum() + log_prob.sum(), parameters)):
                assert value.isfinite().all(), corner
                assert value.dtype == torch.float32

    def test_outside_the_support_the_density_is_zero(self, case):
        parameters = [p.clone().requires_grad_() for p in case.parameters]
        family = case.make(*parameters)
        low, high = (torch.from_numpy(end + 0 * case.oracle.mean()) for end in case.oracle.support())
        if isinstance(family, Dirichlet):
            flipped = family.mean.detach() * torch.tensor([1.0, -1.0, 1.0])
            outside = [low, 2 * family.mean.detach(), flipped / flipped.sum(-1, keepdim=True)]
        else:
            outside = [end for end in (low - 0.5, high + 0.5) if end.isfinite().all()]
            outside += {"positive": [low, high], "nonnegative": [high], "unit_interval": [low, high]}.get(
                family.support, []
            )
        assert bool(outside) == (family.support != "real")
        for z in outside:
            z = z.clone().requires_grad_()
            log_prob = family.log_prob(z)
            assert (log_prob == -torch.inf).all()
            for gradient in torch.autograd.grad(log_prob.sum(), (z, *parameters)):
                assert (gradient == 0).all()
        assert family.log_prob(torch.full_like(family.mean, torch.nan)).isnan().all()

    def test_detached_parameters_leave_the_path_through_z(self, case):
        parameters = case.small()
        family = case.make(*parameters)
        held = detached(family)
        z = family.transform(draw(family, L))
        torch.testing.assert_close(held.log_prob(z), family.log_prob(z), rtol=0, atol=0)
        assert not held.log_prob(z.detach()).requires_grad
        path = torch.autograd.grad(held.log_prob(z).sum(), parameters, retain_graph=True, materialize_grads=True)
        leaf = z.detach().requires_grad_()
        (direction,) = torch.autograd.grad(family.log_prob(leaf).sum(), leaf)
        expected = torch.autograd.grad(z, parameters, direction)
        for a, b in zip(path, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


# ------------------------------------------------------------------------------------------------- single families


@pytest.mark.parametrize(
    ("family", "f", "expected"),
    [
        (lambda k, rate: Gamma(k, rate), (2.0, 1.5), (0.6667, -0.8889)),
        (lambda a, b: FisherF(a, b), (4.0, 12.0), (0.0, -0.02)),
        (lambda *a: Dirichlet(torch.cat(a, -1)), (1.0, 2.0, 3.0), (5 / 36, -1 / 36, -1 / 36)),
    ],
    ids=["gamma", "fisher_f", "dirichlet"],
)
def test_reference_gradients_of_means(family, f, expected):
    parameters = [torch.full((1, 1), value, requires_grad=True) for value in f]
    made = family(*parameters)
    noise, weights = grid(made)
    gradients = torch.autograd.grad(expectation(made.transform(noise)[..., 0], weights).sum(), parameters)
    assert [g.item() for g in gradients] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    "make", [lambda a: Gamma(a, a / a), lambda a: Beta(a, a), Dirichlet], ids=["gamma", "beta", "dirichlet"]
)
def test_small_concentrations_stay_inside_the_support_in_float32(make):
    """At concentration 1e-3 most gammas are below 1e-300: densities come from their logarithms."""
    concentration = torch.full((4, 3), 1e-3, dtype=torch.float32, requires_grad=True)
    family = make(concentration)
    z, log_prob = family.transform_and_log_prob(draw(family, 100).float())
    assert (z > 0).all()
    assert ((z < 1).all()) or isinstance(family, Gamma | Dirichlet)
    assert log_prob.isfinite().all()
    assert torch.autograd.grad((z.sum() + log_prob.sum()), concentration)[0].isfinite().all()


def test_samples_near_the_end_of_a_box_have_a_density_in_float32():
    """Where the numbers are coarse beside the width, rounding must not carry a sample out of its own support."""
    u = torch.cat([torch.linspace(0, 1, 4001), 1 - torch.logspace(-7, -3, 500)]).float()[:, None]
    low = torch.tensor([1000.0, 3.7, 1e-3], dtype=torch.float32)
    width = low * 1e-4
    for family in (
        FAMILIES["uniform"](low, width.log()),
        FAMILIES["reciprocal"](low, low + width),
        FAMILIES["triangular"](low, low + width / 2, low + width),
        Pareto(low, low.new_full((), 1e4)),
    ):
        assert family.log_prob(family.transform(u)).isfinite().all(), family


def test_tails_keep_their_sign_and_their_density_in_float32():
    cauchy = Cauchy(torch.zeros((), dtype=torch.float32), torch.zeros((), dtype=torch.float32))
    ends = torch.tensor([0.0, 2.0**-24, 1 - 2.0**-24], dtype=torch.float32)
    assert cauchy.transform(ends).tolist() == pytest.approx([-(2**25) / math.pi, -(2**24) / math.pi, 2**24 / math.pi])
    far = torch.tensor(1e-30, dtype=torch.float32)
    assert cauchy.transform(far).item() == pytest.approx(-1e30 / math.pi)
    assert Laplace(cauchy.loc, cauchy.log_scale).transform(far).item() == pytest.approx(math.log(2e-30))
    z = torch.tensor([1e30, 1e12], dtype=torch.float32, requires_grad=True)
    log_prob = cauchy.log_prob(z)
    torch.testing.assert_close(log_prob, -math.log(math.pi) - 2 * z.log())
    torch.testing.assert_close(torch.autograd.grad(log_prob.sum(), z)[0], -2 / z.detach())
    x = torch.tensor([0.0, 1e-9, 0.3, 2.0, 1e7, 1e9, 1e200])
    torch.testing.assert_close(
        log1p_square(x), torch.from_numpy(2 * np.log(np.hypot(1, x.numpy()))), rtol=1e-14, atol=1e-17
    )


def test_a_normal_number_reaches_both_tails_of_a_gamma():
    """At 12, Phi rounds to 1."""
    k = torch.tensor([0.8, 3.0])
    for e, quantile in ((-12.0, st.gamma.ppf), (12.0, st.gamma.isf)):
        expected = np.log(quantile(st.norm.cdf(-12), k.numpy()))
        got = gamma_from_normal(k, torch.tensor(e))
        torch.testing.assert_close(got, torch.from_numpy(expected), rtol=1e-10, atol=0)


def test_large_degrees_of_freedom_are_a_normal_also_in_float32():
    loc, z = torch.zeros(1, dtype=torch.float32), torch.linspace(-3, 3, 7, dtype=torch.float32)
    expected = Normal(loc, loc).log_prob(z)
    torch.testing.assert_close(StudentT(loc, loc, 1e7).log_prob(z), expected, rtol=1e-5, atol=1e-5)


def test_elliptical_covariance():
    """E[(z - loc)(z - loc)'] = L L' (of a t, times df / (df - 2)), over a grid of noise."""
    loc, factor = numbers(1, 2), FACTOR[:1, :2, :2]
    for family, scale in ((MultivariateNormal(loc, factor), 1.0), (MultivariateT(loc, factor, 9.0), 9 / 7)):
        noise, weights = grid(family)
        centred = family.transform(noise)[:, 0] - loc
        covariance = torch.einsum("n,ni,nj->ij", weights, centred, centred)
        torch.testing.assert_close(covariance, scale * factor[0] @ factor[0].T, rtol=1e-7, atol=1e-7)


def test_exponential_integral():
    c = torch.tensor([1e-8, 0.3, 5.0, 99.0, 101.0, 1e4], requires_grad=True)
    expected = [quad(lambda t, c=c: math.exp(-t) / (c + t), 0, math.inf, limit=200)[0] for c in c.tolist()[1:]]
    value = scaled_exponential_integral(c)
    assert value.tolist()[1:] == pytest.approx(expected, rel=1e-9)
    assert value[0].item() == pytest.approx(-math.log(1e-8) - EULER, rel=1e-7)
    assert torch.autograd.gradcheck(scaled_exponential_integral, (c[1:4].detach().requires_grad_(),))


BAD = [
    ("exponential", (torch.tensor([1.0, -2.0]),), "Exponential: rate must be positive and finite; here rate = -2"),
    ("rayleigh", (torch.tensor([0.0]),), "Rayleigh: scale must be positive and finite; here scale = 0"),
    ("pareto", (torch.ones(2), torch.tensor(torch.nan)), "Pareto: alpha must be positive and finite; here alpha = nan"),
    ("weibull", (torch.tensor(torch.inf), torch.ones(1)), "Weibull: scale must be .* here scale = inf"),
    ("reciprocal", (torch.zeros(1), torch.ones(1)), "Reciprocal: 0 < low < high is needed; here low = 0, high = 1"),
    ("gompertz", (torch.ones(1), -torch.ones(1)), "Gompertz: scale must be"),
    ("erlang", (2.5, torch.ones(1)), r"Erlang: concentration must be a whole number \(int\); here 2.5"),
    ("erlang", (0, torch.ones(1)), "Erlang: concentration must be positive and finite; here concentration = 0"),
    ("erlang", (2, -torch.ones(1)), "Erlang: rate must be"),
    ("student_t", (torch.zeros(1), torch.zeros(1), -1.0), "StudentT: df must be positive and finite; here df = -1"),
    ("multivariate_t", (torch.zeros(1), torch.ones(1, 1), torch.zeros(())), "MultivariateT: df must be"),
    ("triangular", (torch.zeros(2), torch.ones(1), torch.ones(1)), "low < mode < high is needed; here low = 0, mode = 1, high = 1"),
    ("gamma", (torch.ones(1), torch.zeros(1)), "Gamma: rate must be"),
    ("gamma", (0, torch.ones(1)), "Gamma: concentration must be"),
    ("dirichlet", (torch.tensor([1.0, -1.0]),), "Dirichlet: concentration must be"),
    ("beta", (torch.ones(1), torch.zeros(1)), "Beta: concentration0 must be"),
    ("chi_squared", (torch.zeros(1),), "ChiSquared: df must be"),
    ("fisher_f", (torch.ones(1), torch.zeros(1)), "FisherF: df2 must be"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "parameters", "message"), BAD)
def test_a_bad_parameter_is_named(name, parameters, message):
    with pytest.raises(UsageError, match=message):
        FAMILIES[name](*parameters)


def test_every_family_checks_its_parameters_unless_they_are_on_a_log_scale():
    unchecked = {"cauchy", "logistic", "gumbel", "normal", "laplace", "uniform", "log_normal", "multivariate_normal"}
    assert {name for name, *_ in BAD} == FAMILIES.keys() - unchecked


def test_density_of_a_normal_integrates_to_one():
    family = Normal(torch.tensor(0.3), torch.tensor(-0.4))
    assert trapezoid(family.log_prob, -12, 12) == pytest.approx(1, abs=1e-10)


def test_sum_from_sums_the_last_axes_only():
    values = numbers(2, 3, 4, 5)
    torch.testing.assert_close(sum_from(values, 2), values.sum((2, 3)))
    assert sum_from(values[:, :, 0, 0], 2).shape == (2, 3)
