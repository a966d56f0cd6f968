"""Every row of LIKELIHOODS against torch.distributions or SciPy: value, gradient, normalisation, shapes."""

import math

import pytest
import torch
from torch import distributions as D

from tests.oracles import numbers, trapezoid
from vae.distributions import sum_from
from vae.likelihoods import DEFAULT_LIKELIHOOD, FITTING_SUPPORTS, LIKELIHOODS, Bernoulli, Gaussian, GreyCrossEntropy

pytestmark = pytest.mark.usefixtures("float64")
L, M, SHAPE = 2, 3, (2, 4, 5)
BITS = (numbers(M, *SHAPE, seed=9) > 0).double()
GREYS = numbers(M, *SHAPE, seed=9).sigmoid()
REALS = numbers(M, *SHAPE, seed=9, scale=2)


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


# (id, name of the row, options, data, oracle)
CASES = [
    ("bernoulli", "bernoulli", {}, BITS, lambda _, outputs: D.Bernoulli(logits=outputs)),
    ("grey", "grey_cross_entropy", {}, GREYS, lambda _, o: D.Bernoulli(logits=o, validate_args=False)),
    *(
        (f"gaussian-{v}-{m}", "gaussian", {"variance": v, "mean": m, "std": 0.4, "floor": 0.05}, REALS, gaussian_oracle)
        for v in ("per_pixel_and_datum", "per_pixel", "shared", "fixed")
        for m in ("identity", "sigmoid")
    ),
]


def test_every_likelihood_has_an_oracle():
    assert {case[1] for case in CASES} == LIKELIHOODS.keys()


@pytest.mark.parametrize(("name", "options", "x", "oracle"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_value_and_gradient_equal_the_oracle(name, options, x, oracle):
    likelihood = LIKELIHOODS[name](SHAPE, **options)
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


@pytest.mark.parametrize(("name", "options", "x", "oracle"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_mean_has_the_shape_of_the_data_and_equals_the_oracle(name, options, x, oracle):
    likelihood = LIKELIHOODS[name](SHAPE, **options)
    outputs = numbers(L, M, *likelihood.output_shape, seed=5)
    mean = likelihood(outputs).mean
    assert mean.shape == (L, M, *SHAPE)
    torch.testing.assert_close(mean, oracle(likelihood, outputs).mean.expand(L, M, *SHAPE), rtol=1e-12, atol=1e-12)


def test_bernoulli_sums_to_one_and_grey_levels_do_not_integrate_to_one():
    logits = torch.tensor([[[0.8]]])
    both = [Bernoulli((1,))(logits).log_prob(torch.tensor([[v]])).exp().item() for v in (0.0, 1.0)]
    assert sum(both) == pytest.approx(1, abs=1e-12)
    grey = GreyCrossEntropy((1,))(torch.tensor(0.8))
    assert abs(trapezoid(lambda x: grey.log_prob(x) if x.ndim == 0 else _each(grey, x), 0, 1) - 1) > 0.3
    assert not GreyCrossEntropy.is_density
    assert Bernoulli.is_density


def _each(distribution, x):
    return type(distribution)(distribution.logits.expand(x.shape)).log_prob(x)


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
