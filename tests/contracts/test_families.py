"""Every row of FAMILIES against an independent library: density, gradient, samples from noise. Exact KL pairs too."""

import pytest
import scipy.stats
import torch

from tests.oracles import numbers, trapezoid
from vae.distributions import FAMILIES, KL, Normal, kl_divergence, sum_from
from vae.errors import UsageError

pytestmark = pytest.mark.usefixtures("float64")
M, L, J = 3, 2, 5

# name -> (the family with parameters (M, J), SciPy's counterpart)
CASES = {
    "normal": lambda: (
        Normal(numbers(M, J), numbers(M, J, seed=1, scale=0.5)),
        scipy.stats.norm(numbers(M, J).numpy(), numbers(M, J, seed=1, scale=0.5).exp().numpy()),
    )
}


def test_every_family_has_an_oracle():
    assert CASES.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
class TestFamily:
    def test_density_equals_the_oracle(self, name):
        family, oracle = CASES[name]()
        z = numbers(L, M, J, seed=2, scale=3)
        torch.testing.assert_close(family.log_prob(z), torch.from_numpy(oracle.logpdf(z)), rtol=1e-12, atol=1e-12)

    def test_samples_follow_the_oracle(self, name):
        """Kolmogorov-Smirnov on 20,000 draws; false alarms at a rate of 1e-4."""
        family, oracle = CASES[name]()
        noise = numbers(20_000, M, J, seed=3)
        z = family.transform(noise).numpy()
        uniform = oracle.cdf(z)
        p_values = [scipy.stats.kstest(uniform[:, m, j], "uniform").pvalue for m in range(M) for j in range(J)]
        assert min(p_values) > 1e-4 / len(p_values)

    def test_joint_call_equals_separate_calls(self, name):
        family, _ = CASES[name]()
        noise = numbers(L, M, J, seed=4)
        z, log_prob = family.transform_and_log_prob(noise)
        torch.testing.assert_close(z, family.transform(noise), rtol=0, atol=0)
        torch.testing.assert_close(log_prob, family.log_prob(z), rtol=1e-10, atol=1e-10)

    def test_noise_has_the_shape_of_the_parameters(self, name):
        family, _ = CASES[name]()
        assert family.noise.shape == (M, J)

    def test_density_integrates_to_one(self, name):
        family = FAMILIES[name](torch.tensor(0.3), torch.tensor(-0.4))
        assert trapezoid(family.log_prob, -12, 12) == pytest.approx(1, abs=1e-10)


def test_normal_gradients_equal_torch_distributions():
    mean, log_std = numbers(M, J).requires_grad_(), numbers(M, J, seed=1).requires_grad_()
    z = numbers(L, M, J, seed=2)
    ours = torch.autograd.grad(Normal(mean, log_std).log_prob(z).sum(), (mean, log_std))
    theirs = torch.autograd.grad(torch.distributions.Normal(mean, log_std.exp()).log_prob(z).sum(), (mean, log_std))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------------------- KL

KL_CASES = {
    (Normal, Normal): lambda: (
        Normal(numbers(M, J), numbers(M, J, seed=1)),
        Normal(numbers(J, seed=2), numbers(J, seed=3)),
        lambda f: torch.distributions.Normal(f.mean, f.std),
    )
}


def test_every_kl_pair_has_an_oracle():
    assert KL_CASES.keys() == KL.keys()


@pytest.mark.parametrize("pair", KL, ids=lambda pair: "-".join(f.__name__ for f in pair))
def test_kl_equals_torch_distributions(pair):
    q, p, convert = KL_CASES[pair]()
    expected = torch.distributions.kl_divergence(convert(q), convert(p))
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-11, atol=1e-11)


def test_kl_to_the_standard_normal_is_the_papers_formula():
    """Appendix B: -KL = (1 + log s^2 - m^2 - s^2) / 2."""
    q, zero = Normal(numbers(M, J), numbers(M, J, seed=1)), torch.zeros(J)
    papers = -0.5 * (1 + 2 * q.log_std - q.mean**2 - (2 * q.log_std).exp())
    torch.testing.assert_close(kl_divergence(q, Normal(zero, zero)), papers, rtol=1e-12, atol=1e-12)


def test_kl_is_never_negative_near_equal_distributions():
    """In float32, where exp(r) - 1 - r would round below zero."""
    log_std = torch.linspace(-1e-3, 1e-3, 4001, dtype=torch.float32)
    zero = torch.zeros(4001, dtype=torch.float32)
    assert (kl_divergence(Normal(zero, log_std), Normal(zero, zero)) >= 0).all()


def test_a_missing_kl_pair_is_an_error_and_no_guess():
    class Unknown:
        pass

    with pytest.raises(UsageError, match="no exact KL divergence from Unknown to Normal"):
        kl_divergence(Unknown(), Normal(torch.zeros(1), torch.zeros(1)))


def test_sum_from_sums_the_last_axes_only():
    values = numbers(2, 3, 4, 5)
    torch.testing.assert_close(sum_from(values, 2), values.sum((2, 3)))
    assert sum_from(values[:, :, 0, 0], 2).shape == (2, 3)
