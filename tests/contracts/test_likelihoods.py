"""Every row of LIKELIHOODS against torch.distributions or SciPy: value, gradient, normalisation, shapes, simulation."""

import decimal
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import distributions as D

from tests.oracles import numbers, trapezoid
from vae.distributions import sum_from, support_of
from vae.errors import ConfigError
from vae.likelihoods import (
    LIKELIHOODS,
    Bernoulli,
    Categorical,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Gaussian,
    GreyCrossEntropy,
    NegativeBinomial,
)
from vae.likelihoods.advice import DEFAULT_LIKELIHOOD, FITTING_SUPPORTS
from vae.likelihoods.binary import ContinuousBernoulliLogits, log_expm1_ratio
from vae.likelihoods.discrete import LogisticLevels, NegativeBinomialCounts

pytestmark = pytest.mark.usefixtures("float64")
L, M, SHAPE = 2, 3, (2, 4, 5)
BITS = (numbers(M, *SHAPE, seed=9) > 0).double()
GREYS = numbers(M, *SHAPE, seed=9).sigmoid()
REALS = numbers(M, *SHAPE, seed=9, scale=2)
K = 6
LEVELS = (GREYS * K).floor() / (K - 1)  # all of 0, 1/5, ..., 1 are among them
COUNTS = (GREYS * 12).floor()
OWNERS = ("per_pixel_and_datum", "per_pixel", "shared")


def gaussian_oracle(likelihood, outputs):
    """The normal that the options say, written out."""
    floor = likelihood.floor**2
    mean = outputs
    if likelihood.variance == "per_pixel_and_datum":
        mean, s = outputs[..., :2, :, :], outputs[..., 2:, :, :]
        std = (s.exp() + floor).sqrt()
    elif likelihood.variance == "fixed":
        std = torch.tensor(likelihood.std)
    else:
        std = (likelihood.log_variance.exp() + floor).sqrt()
    return D.Normal(1 / (1 + (-mean).exp()) if likelihood.mean == "sigmoid" else mean, std)


def continuous_bernoulli_oracle(_, outputs):
    """torch's density (right for these small logits), and the mean by Gauss-Legendre quadrature."""
    nodes, weights = (
        torch.from_numpy((a + b) / 2) for a, b in zip(np.polynomial.legendre.leggauss(40), (1, 0), strict=True)
    )
    masses = weights * (outputs[..., None] * nodes).exp()
    return SimpleNamespace(
        log_prob=D.ContinuousBernoulli(logits=outputs).log_prob, mean=(masses @ nodes) / masses.sum(-1)
    )


def categorical_oracle(likelihood, outputs):
    """torch's categorical of the classes, whose index is a level times K - 1."""
    logits = torch.stack([outputs[..., 2 * k : 2 * k + 2, :, :] for k in range(K)], -1)  # two channels a class
    classes = D.Categorical(logits=logits)
    mean = sum(classes.probs[..., k] * k / (K - 1) for k in range(K))
    return SimpleNamespace(log_prob=lambda x: classes.log_prob((x * (K - 1)).round()), mean=mean)


def two_numbers(likelihood, outputs, owner):
    """The network's numbers, and the second of a pixel from the network or a parameter."""
    if owner == "per_pixel_and_datum":
        return outputs[..., :2, :, :], outputs[..., 2:, :, :]
    return outputs, likelihood.spread


def logistic_oracle(likelihood, outputs):
    """Differences of the distribution function, to -inf below and +inf above; of its complement in the upper tail."""
    location, spread = two_numbers(likelihood, outputs, likelihood.scale)
    scale, h = spread.exp() + 0.1 * 0.5 / (K - 1), 0.5 / (K - 1)

    def probability(x):
        side = torch.where(x > location, -1.0, 1.0)
        upper, lower = (1 / (1 + (side * (location - y) / scale).exp()) for y in (x + h, x - h))
        upper, lower = torch.where(x > 1 - h, (1 + side) / 2, upper), torch.where(x < h, (1 - side) / 2, lower)
        return side * (upper - lower)

    levels = torch.arange(K) / (K - 1)
    mean = sum(level * probability(level) for level in levels)
    return SimpleNamespace(log_prob=lambda x: probability(x).log(), mean=mean)


def negative_binomial_oracle(likelihood, outputs):
    """torch's by r and the logit of mu / (r + mu)."""
    log_mean, spread = two_numbers(likelihood, outputs, likelihood.dispersion)
    r = 1 / ((-spread).exp() + 1e-6)
    return D.NegativeBinomial(r, logits=log_mean - r.log())


# (id, name of the row, options, data, oracle)
CASES = [
    ("bernoulli", "bernoulli", {}, BITS, lambda _, outputs: D.Bernoulli(logits=outputs)),
    ("grey", "grey_cross_entropy", {}, GREYS, lambda _, o: D.Bernoulli(logits=o, validate_args=False)),
    *(
        (f"gaussian-{v}-{m}", "gaussian", {"variance": v, "mean": m, "std": 0.4, "floor": 0.05}, REALS, gaussian_oracle)
        for v in ("per_pixel_and_datum", "per_pixel", "shared", "fixed")
        for m in ("identity", "sigmoid")
    ),
    ("continuous_bernoulli", "continuous_bernoulli", {}, GREYS, continuous_bernoulli_oracle),
    ("categorical", "categorical", {"levels": K}, LEVELS, categorical_oracle),
    *((f"logistic-{o}", "discretized_logistic", {"levels": K, "scale": o}, LEVELS, logistic_oracle) for o in OWNERS),
    *((f"counts-{o}", "negative_binomial", {"dispersion": o}, COUNTS, negative_binomial_oracle) for o in OWNERS),
]
EVERY_CASE = pytest.mark.parametrize(
    ("name", "options", "x", "oracle"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)


def test_every_likelihood_has_an_oracle():
    assert {case[1] for case in CASES} == LIKELIHOODS.keys()
    assert {name: row.is_density for name, row in LIKELIHOODS.items() if not row.is_density} == {
        "grey_cross_entropy": False
    }


def moved(likelihood):
    """The likelihood with parameters that are not all equal, so that an axis mixed up shows."""
    with torch.no_grad():
        for seed, parameter in enumerate(likelihood.parameters()):
            parameter.add_(numbers(parameter.numel(), seed=seed, scale=0.3).view_as(parameter))
    return likelihood


@EVERY_CASE
def test_value_and_gradient_equal_the_oracle(name, options, x, oracle):
    likelihood = moved(LIKELIHOODS[name](SHAPE, **options))
    outputs = numbers(L, M, *likelihood.output_shape, seed=5).requires_grad_()
    parameters = [outputs, *likelihood.parameters()]
    ours = sum_from(likelihood(outputs).log_prob(x), 2)
    theirs = oracle(likelihood, outputs).log_prob(x).sum((2, 3, 4))
    assert ours.shape == (L, M)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    weights = numbers(L, M, seed=6)
    a = torch.autograd.grad((ours * weights).sum(), parameters)
    b = torch.autograd.grad((theirs * weights).sum(), parameters)
    for one, other in zip(a, b, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


@EVERY_CASE
def test_mean_has_the_shape_of_the_data_and_equals_the_oracle(name, options, x, oracle):
    likelihood = moved(LIKELIHOODS[name](SHAPE, **options))
    outputs = numbers(L, M, *likelihood.output_shape, seed=5)
    mean = likelihood(outputs).mean
    assert mean.shape == (L, M, *SHAPE)
    torch.testing.assert_close(mean, oracle(likelihood, outputs).mean.expand(L, M, *SHAPE), rtol=1e-12, atol=1e-12)


def test_bernoulli_sums_to_one_and_grey_levels_do_not_integrate_to_one():
    logits = torch.tensor([[[0.8]]])
    both = [Bernoulli((1,))(logits).log_prob(torch.tensor([[v]])).exp().item() for v in (0.0, 1.0)]
    assert sum(both) == pytest.approx(1, abs=1e-12)
    grey = GreyCrossEntropy((1,))(torch.tensor(0.8))
    assert abs(trapezoid(grey.log_prob, 0, 1) - 1) > 0.3
    assert not GreyCrossEntropy.is_density
    assert Bernoulli.is_density


@EVERY_CASE
def test_one_distribution_takes_other_numbers_of_data(name, options, x, oracle):
    """Elements (L, 1, *SHAPE) against data (M, *SHAPE) give (L, M, *SHAPE), in the dtype of the distribution."""
    likelihood = moved(LIKELIHOODS[name](SHAPE, **options))
    outputs = numbers(L, 1, *likelihood.output_shape, seed=5)
    value = likelihood(outputs).log_prob(x)
    assert value.shape == (L, M, *SHAPE)
    torch.testing.assert_close(
        value, oracle(likelihood, outputs).log_prob(x.expand(L, M, *SHAPE)), rtol=1e-11, atol=1e-11
    )
    assert likelihood.float()(outputs.float()).log_prob(x.float()).dtype == torch.float32


@EVERY_CASE
def test_simulated_data_lie_in_the_support_and_have_the_mean(name, options, x, oracle):
    """4,000 draws an element; the largest of 240 z-scores exceeds 5.5 at a rate of 1e-5."""
    likelihood = moved(LIKELIHOODS[name](SHAPE, **options))
    distribution = likelihood(numbers(L, M, *likelihood.output_shape, seed=5))
    kind, shape, _ = distribution.noise
    assert shape == (L, M, *SHAPE)
    g = torch.Generator().manual_seed(3)
    draw = {"uniform": torch.rand, "normal": torch.randn}[kind]
    draws = distribution.transform(draw(4000, *shape, generator=g))
    assert draws.shape == (4000, L, M, *SHAPE)
    assert draws.dtype == torch.float64
    if name != "grey_cross_entropy":  # it has no distribution of its own: what it draws are bits
        assert support_of(likelihood.support)(draws)
    z = (draws.mean(0) - distribution.mean) / (draws.std(0) / 4000**0.5 + 1 / 4000)  # values rarer than 1/4000
    assert z.abs().max() < 5.5


def test_gaussian_integrates_to_one():
    likelihood = Gaussian((1,), variance="fixed", std=0.3)(torch.tensor(0.2))
    assert trapezoid(likelihood.log_prob, -8, 8) == pytest.approx(1, abs=1e-10)


def test_bernoulli_is_exact_for_logits_of_any_size_in_float32():
    """log(sigmoid) gives -inf here, a clamped probability -15.9, binary_cross_entropy on probabilities -100."""
    logits = torch.tensor([[[-1000.0, 1000.0, -1000.0]]], dtype=torch.float32)
    value = Bernoulli((3,))(logits).log_prob(torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float32))
    assert value.flatten().tolist() == [-1000.0, -1000.0, 0.0]


def test_the_variance_never_falls_below_its_floor_and_keeps_a_gradient():
    likelihood = Gaussian((1,), floor=0.01)
    log_variance = torch.tensor(-12.0, requires_grad=True)
    outputs = torch.stack([torch.tensor(0.0), log_variance]).view(1, 1, 2)
    std = likelihood(outputs).std
    assert std.item() > 0.01
    std.sum().backward()
    assert log_variance.grad.abs() > 0
    # 8-bit data on their grid under the default floor: at most 5.315 nats a pixel, so a bound above it is a mistake.
    densest = Gaussian((1,))(torch.tensor([[[0.0, -100.0]]])).log_prob(torch.zeros(1, 1)).item()
    assert densest == pytest.approx(math.log(510) - 0.5 * math.log(2 * math.pi), abs=1e-6)


def test_supports_cover_every_kind_and_defaults_fit():
    for kind, supports in FITTING_SUPPORTS.items():
        assert LIKELIHOODS[DEFAULT_LIKELIHOOD[kind]].support in supports
    assert {row.support for row in LIKELIHOODS.values()} <= set().union(*FITTING_SUPPORTS.values())


# ------------------------------------------------------------------------------------------------- continuous Bernoulli

SIZES = [0.0, 1e-8, 1e-3, 0.0999, 0.1001, 0.3, 0.7, 0.999, 1.001, 5.0, 17.0, 40.0, 100.0, 316.0, 800.0]
SIGNED = [sign * size for size in SIZES for sign in (-1, 1)]


def exact(function, *arguments):
    """A float of a function of decimals of 60 digits."""
    with decimal.localcontext() as context:
        context.prec = 60
        return float(function(*map(decimal.Decimal, arguments)))


def exact_log_normaliser(t):
    return exact(lambda d: ((d.exp() - 1) / d).ln(), t) if t else 0.0


def exact_mean(t):
    return exact(lambda d: 1 / (1 - (-d).exp()) - 1 / d, t) if t else 0.5


@pytest.mark.parametrize(("dtype", "rtol", "slope"), [(torch.float64, 3e-14, 1e-13), (torch.float32, 6e-7, 7e-7)])
def test_the_normaliser_and_its_gradient_for_logits_of_any_size(dtype, rtol, slope):
    """torch's own is wrong here: its normaliser is stuck at 2.77 from |l| = 16 on (float32) and 37 (float64)."""
    logits = torch.tensor(SIGNED, dtype=dtype, requires_grad=True)
    expected = torch.tensor([exact_log_normaliser(t) for t in logits.tolist()])
    means = torch.tensor([exact_mean(t) for t in logits.tolist()])
    value = log_expm1_ratio(logits)
    torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=0)
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    torch.testing.assert_close(gradient.double(), means, rtol=0, atol=slope)
    torch.testing.assert_close(ContinuousBernoulliLogits(logits).mean.double(), means, rtol=0, atol=slope)


def test_a_saturated_continuous_bernoulli_pixel():
    value = ContinuousBernoulliLogits(torch.tensor(100.0)).log_prob(torch.tensor(0.3))
    assert value.item() == pytest.approx(-65.39483, abs=1e-5)  # torch.distributions says -67.231


@pytest.mark.parametrize("logit", [-20.0, -2.944438979, 0.0, 0.05, 3.0])
def test_continuous_bernoulli_integrates_to_one(logit):
    distribution = ContinuousBernoulli((1,))(torch.tensor(logit))
    assert trapezoid(distribution.log_prob, 0, 1) == pytest.approx(1, abs=1e-7 if abs(logit) > 10 else 3e-9)


def test_continuous_bernoulli_means_by_their_lambda():
    for probability, mean in ((0.1, 0.3301196), (0.3, 0.4302225), (0.9, 0.6698804)):
        logit = torch.tensor(probability).logit()
        assert ContinuousBernoulliLogits(logit).mean.item() == pytest.approx(mean, abs=1e-7)


@pytest.mark.parametrize("logit", [-800.0, -3.0, -1e-5, 0.0, 1e-5, 0.3, 3.0, 800.0])
def test_continuous_bernoulli_draws_follow_their_distribution(logit):
    """Kolmogorov-Smirnov on 20,000 draws; false alarms at a rate of 1e-5. The extreme ends of the noise stay inside."""
    distribution = ContinuousBernoulliLogits(torch.tensor(logit))
    draws = distribution.transform(torch.rand(20_000, generator=torch.Generator().manual_seed(1))).numpy()
    cdf = lambda x: np.expm1(min(logit, -1e-12) * x) / np.expm1(min(logit, -1e-12))  # noqa: E731
    if logit > 0:
        cdf = lambda x: 1 - np.expm1(-logit * (1 - x)) / np.expm1(-logit)  # noqa: E731
    assert scipy.stats.kstest(draws, cdf).pvalue > 1e-5
    for dtype, last in ((torch.float32, 1 - 2**-24), (torch.float64, 1 - 2**-53)):
        ends = ContinuousBernoulliLogits(torch.tensor(logit, dtype=dtype)).transform(
            torch.tensor([0, last], dtype=dtype)
        )
        assert support_of("unit_interval")(ends)
        assert ends[0] < ends[1]


# ------------------------------------------------------------------------------------------------- grey levels

GRID = torch.arange(256, dtype=torch.float64) / 255


def test_categorical_sums_to_one_and_takes_logits_of_any_size():
    """In float32: log(softmax) is -inf here."""
    likelihood = Categorical((1,), levels=17)
    outputs = numbers(17, scale=3)
    levels = torch.arange(17) / 16
    assert likelihood(outputs).log_prob(levels[:, None]).exp().sum().item() == pytest.approx(1, abs=1e-12)
    extreme = likelihood((1000 * outputs).float())
    assert extreme.log_prob(levels[:, None].float()).min() < -1000
    assert torch.isfinite(extreme.log_prob(levels[:, None].float())).all()


def test_a_level_that_was_divided_in_float32_is_found():
    """In float64, 10 times what float32 takes for 7/10 is a little less than 7."""
    rounded, true = (torch.arange(11, dtype=torch.float32) / 10).double(), torch.arange(11) / 10
    assert (rounded * 10 < torch.arange(11)).any()
    log_probs = numbers(11).log_softmax(-1)
    found = Categorical((1,), levels=11)(log_probs).log_prob(rounded[:, None])[:, 0]
    torch.testing.assert_close(found, log_probs, rtol=0, atol=1e-14)
    logistic = LogisticLevels(torch.tensor(0.4), torch.tensor(-9.0), 11)
    torch.testing.assert_close(logistic.log_prob(rounded), logistic.log_prob(true), rtol=0, atol=0)


def test_a_level_without_probability_is_never_drawn():
    draws = Categorical((1,), levels=3)(torch.tensor([-1000.0, 0.0, 0.0])).transform(torch.tensor([[0.0], [0.5]]))
    assert draws[:, 0].tolist() == [0.5, 1.0]


@pytest.mark.parametrize("location", [-0.2, 0.0, 0.4, 1.0, 3.0])
@pytest.mark.parametrize("log_scale", [3.0, -2.0, -5.0, -8.0, -12.0])
def test_discretized_logistic_sums_to_one_and_equals_decimals(location, log_scale):
    distribution = LogisticLevels(torch.tensor(location), torch.tensor(log_scale), 256)
    values = distribution.log_prob(GRID)
    assert values.exp().sum().item() == pytest.approx(1, abs=1e-12)
    single = LogisticLevels(torch.tensor(location).float(), torch.tensor(log_scale).float(), 256).log_prob(GRID.float())
    assert torch.isfinite(single).all()
    assert single.exp().sum().item() == pytest.approx(1, abs=2e-6)

    for k in (0, 1, 100, 102, 254, 255):
        assert values[k].item() == pytest.approx(exact(log_mass, k, location, log_scale), rel=1e-11, abs=1e-11)


def log_mass(k, location, log_scale):
    """The logarithm of the mass of level k of 256 in decimals, by the tail that the level lies in."""
    half = decimal.Decimal("0.5")
    side = -1 if k > 255 * location else 1
    edge = lambda shift: 1 / (1 + (side * (location - (k + shift) / 255) / log_scale.exp()).exp())  # noqa: E731
    above = (1 + side) // 2 if k == 255 else edge(half)
    below = (1 - side) // 2 if k == 0 else edge(-half)
    return (side * (above - below)).ln()


def test_without_open_outermost_bins_half_of_the_mass_is_lost():
    """The closed bins sum to .5098 at location 0, log scale -3: the test of the sum would see it."""
    h, scale = 0.5 / 255, math.exp(-3)
    closed = scipy.stats.logistic.cdf((GRID + h).numpy() / scale) - scipy.stats.logistic.cdf((GRID - h).numpy() / scale)
    assert closed.sum() == pytest.approx(0.5098, abs=5e-5)
    ours = LogisticLevels(torch.tensor(0.0), torch.tensor(-3.0), 256).log_prob(GRID).exp()
    np.testing.assert_allclose(ours[1:-1], closed[1:-1], rtol=1e-10, atol=1e-15)
    assert ours[0] == pytest.approx(0.5 + closed[0] / 2, abs=1e-12)


def test_the_scale_has_a_floor_and_keeps_a_gradient():
    likelihood = DiscretizedLogistic((1,), levels=17)
    outputs = torch.tensor([0.5, -12.0], requires_grad=True)
    value = likelihood(outputs).log_prob(torch.tensor([0.5]))
    assert -1e-4 < value.item() < 0  # all but 1e-4 of the mass in one bin
    assert torch.autograd.grad(value, outputs)[0][1] != 0
    for extreme in (-1000.0, 1000.0):
        value = likelihood(torch.tensor([0.5, extreme], dtype=torch.float32)).log_prob(torch.tensor([0.5]))
        assert torch.isfinite(value)


@pytest.mark.parametrize("row", [DiscretizedLogistic, NegativeBinomial])
def test_whose_parameter_the_second_number_is(row):
    option = "scale" if row is DiscretizedLogistic else "dispersion"
    made = {owner: row(SHAPE, **{option: owner}) for owner in OWNERS}
    assert [made[owner].output_shape for owner in OWNERS] == [(4, 4, 5), SHAPE, SHAPE]
    assert [[tuple(p.shape) for p in made[owner].parameters()] for owner in OWNERS] == [[], [SHAPE], [()]]


def test_a_likelihood_of_levels_knows_their_number():
    with pytest.raises(ConfigError, match="levels: must be at least 2"):
        Categorical((1,), levels=1)
    for row in (Categorical, DiscretizedLogistic):
        support = support_of(row((1,), levels=17).support)
        assert support(torch.arange(17).float() / 16)
        assert not support(torch.tensor(1 / 255))
        assert support.words == "0, 1/16, 2/16, ..., 1"
    for levels in (2, 3, 17, 256, 1000):  # divided in float32, as data are
        assert support_of(f"levels_{levels}")((torch.arange(levels).float() / (levels - 1)).double())
        assert not support_of(f"levels_{levels}")(torch.tensor([0.0, 1 + 1 / (levels - 1)]))


# ------------------------------------------------------------------------------------------------- counts


@pytest.mark.parametrize(("mean", "r"), [(4.0, 2.5), (0.1, 0.01), (30.0, 1.0), (50.0, 1e6)])
def test_negative_binomial_equals_scipy_and_sums_to_one(mean, r):
    """SciPy's p is r / (r + mu), torch's probs the rest."""
    scipys, std = scipy.stats.nbinom(r, r / (r + mean)), math.sqrt(mean + mean**2 / r)
    k = torch.arange(max(mean + 40 * std, scipys.isf(1e-14))).double()  # 40 deviations are few where r is small
    distribution = NegativeBinomialCounts(torch.tensor(mean).log(), torch.tensor(r).log())
    ours, theirs = distribution.log_prob(k), scipys.logpmf(k.numpy())
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-8 if r > 1e5 else 1e-10)
    assert ours.exp().sum().item() == pytest.approx(1, abs=1e-8 if r > 1e5 else 1e-12)
    assert (ours.exp() * k).sum().item() == pytest.approx(mean, rel=1e-8)
    single = NegativeBinomialCounts(*(t.float() for t in distribution)).log_prob(k.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, theirs, rtol=2e-6, atol=1e-5)  # lgamma in float32 is off by 1.4 at r = 1e6


def test_negative_binomial_is_finite_at_the_ends_and_becomes_the_poisson():
    likelihood = NegativeBinomial((1,), dispersion="per_pixel_and_datum")
    for log_mean in (-1000.0, 0.0, 50.0):
        for log_r in (-1000.0, 0.0, 1000.0):
            outputs = torch.tensor([log_mean, log_r], dtype=torch.float32, requires_grad=True)
            value = likelihood(outputs).log_prob(torch.tensor([[0.0], [1.0], [7.0]]))
            assert torch.isfinite(value).all(), (log_mean, log_r)
            assert torch.isfinite(torch.autograd.grad(value.sum(), outputs)[0]).all(), (log_mean, log_r)
    k = torch.arange(30.0)
    poisson = likelihood(torch.tensor([math.log(4), 1000.0])).log_prob(k[:, None])[:, 0]
    np.testing.assert_allclose(poisson, scipy.stats.poisson(4).logpmf(k), atol=1e-3)


# ------------------------------------------------------------------------------------------------- draws of a pixel

ONE_PIXEL = {
    "bernoulli": (Bernoulli((1,)), [0.8], [0.0, 1.0]),
    "categorical": (Categorical((1,), levels=5), [0.2, -1.0, 1.0, -40.0, 0.0], [k / 4 for k in range(5)]),
    "discretized_logistic": (DiscretizedLogistic((1,), levels=6), [0.7, -2.0], [k / 5 for k in range(6)]),
    "negative_binomial": (NegativeBinomial((1,), dispersion="per_pixel_and_datum"), [1.0, 0.4], [*range(60)]),
}


@pytest.mark.parametrize("name", ONE_PIXEL)
def test_draws_of_a_pixel_have_its_probabilities(name):
    """Chi-square on 50,000 draws over the values with at least 5 expected; false alarms at a rate of 1e-5."""
    likelihood, outputs, support = ONE_PIXEL[name]
    distribution, support = likelihood(torch.tensor(outputs)), torch.tensor(support, dtype=torch.float64)
    draws = distribution.transform(torch.rand(50_000, 1, generator=torch.Generator().manual_seed(2)))
    expected = 50_000 * distribution.log_prob(support[:, None]).exp()[:, 0]
    observed = (draws == support).sum(0)
    common = expected >= 5
    assert common.sum() >= 2
    chi2 = ((observed - expected).square() / expected)[common].sum().item()
    assert scipy.stats.chi2(int(common.sum()) - 1).sf(chi2) > 1e-5
    assert (observed[expected < 1e-9] == 0).all()
    ends = distribution.transform(torch.tensor([[0.0], [1 - 2**-53]]))
    assert support_of(likelihood.support)(ends)


def test_every_discrete_likelihood_is_drawn_from():
    discrete = {name for name, row in LIKELIHOODS.items() if row.support in ("binary", "levels", "counts")}
    assert ONE_PIXEL.keys() == discrete
