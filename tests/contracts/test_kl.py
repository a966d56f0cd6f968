"""Every row of KL against quadrature in the noise, its gradient too; some against torch.distributions."""

import pytest
import torch
from torch import distributions as D

from tests.contracts.test_families import CASES, FACTOR, expectation, grid
from tests.oracles import numbers
from vae.distributions import (
    KL,
    Cauchy,
    FisherF,
    Laplace,
    MultivariateNormal,
    MultivariateT,
    Normal,
    Pareto,
    StudentT,
    has_exact_kl,
    kl_divergence,
    sum_from,
)
from vae.errors import UsageError

pytestmark = pytest.mark.usefixtures("float64")
M, J = 3, 5

P = Normal(numbers(J, seed=2), numbers(J, seed=3, scale=0.4))
VECTORS = {
    Normal: lambda loc, factor: Normal(loc, factor.diagonal(dim1=-2, dim2=-1).log()),
    MultivariateNormal: MultivariateNormal,
    MultivariateT: lambda loc, factor: MultivariateT(loc, factor, 9.0),
}


def pair_of(q, p):
    """(q, p) with elements (M, J) and (J,); of vectors, (M, 2) and (2,); q's parameters; whether it is smooth."""
    if {q, p} & {MultivariateNormal, MultivariateT}:
        loc, factor = numbers(M, 2).requires_grad_(), FACTOR[:, :2, :2].clone().requires_grad_()
        return VECTORS[q](loc, factor), VECTORS[p](numbers(2, seed=5), FACTOR[0, 1:, 1:]), (loc, factor), True
    case = next(case for case in CASES.values() if isinstance(case.family(), q))
    parameters = [p.clone().requires_grad_() for p in case.parameters]
    return case.make(*parameters), P, parameters, case.smooth


@pytest.mark.parametrize("pair", KL, ids=lambda pair: "-".join(f.__name__ for f in pair))
class TestKL:
    def test_equals_the_expected_log_ratio_also_in_its_gradient(self, pair):
        """E_q[log q(z) - log p(z)] over a grid of noise."""
        q, p, parameters, smooth = pair_of(*pair)
        kl = kl_divergence(q, p)
        joint = bool(set(pair) & {MultivariateNormal, MultivariateT})
        assert kl.shape == ((M,) if joint else (M, J))
        assert has_exact_kl(q, p)
        if pair[0] is Cauchy:
            assert (kl == torch.inf).all()
            return
        noise, weights = grid(
            MultivariateNormal(q.mean, FACTOR[:, :2, :2]) if joint and pair[0] is Normal else q, smooth
        )
        z, log_q = q.transform_and_log_prob(noise)
        log_p = p.log_prob(z)
        if joint:
            log_q, log_p = sum_from(log_q, 2), sum_from(log_p, 2)
        expected = expectation(log_q - log_p, weights)
        torch.testing.assert_close(kl, expected, rtol=1e-5, atol=1e-5)
        cotangent = numbers(*kl.shape, seed=8)
        ours = torch.autograd.grad(kl, parameters, cotangent, retain_graph=True)
        theirs = torch.autograd.grad(expected, parameters, cotangent)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.tril() if joint else a, b.tril() if joint else b, rtol=2e-4, atol=2e-4)


def torch_form(f):
    if isinstance(f, MultivariateNormal):
        return D.MultivariateNormal(f.loc, scale_tril=f.scale_tril)
    return {Normal: D.Normal, Laplace: D.Laplace}[type(f)](
        f.mean, (f.std if isinstance(f, Normal) else f.log_scale.exp())
    )


@pytest.mark.parametrize("pair", [(Normal, Normal), (MultivariateNormal, MultivariateNormal), (Laplace, Normal)])
def test_kl_equals_torch_distributions(pair):
    q, p, *_ = pair_of(*pair)
    expected = D.kl_divergence(torch_form(q), torch_form(p))
    torch.testing.assert_close(kl_divergence(q, p), expected, rtol=1e-11, atol=1e-11)


def test_kl_to_the_standard_normal_is_the_papers_formula():
    """Appendix B: -KL = (1 + log s^2 - m^2 - s^2) / 2."""
    q, zero = Normal(numbers(M, J), numbers(M, J, seed=1)), torch.zeros(J)
    papers = -0.5 * (1 + 2 * q.log_std - q.mean**2 - (2 * q.log_std).exp())
    torch.testing.assert_close(kl_divergence(q, Normal(zero, zero)), papers, rtol=1e-12, atol=1e-12)


def test_kl_of_dependent_normals_with_a_diagonal_factor_is_that_of_independent_ones():
    q, p = Normal(numbers(M, J), numbers(M, J, seed=1)), Normal(numbers(J, seed=2), numbers(J, seed=3))
    joint = [MultivariateNormal(f.mean, torch.diag_embed(f.std)) for f in (q, p)]
    expected = kl_divergence(q, p).sum(-1)
    for a, b in ((joint[0], p), (q, joint[1]), joint):
        torch.testing.assert_close(kl_divergence(a, b), expected, rtol=1e-12, atol=1e-12)


def test_kl_is_never_negative_near_equal_distributions():
    """In float32, where exp(r) - 1 - r, or a cross entropy less an entropy, would round below zero."""
    log_std = torch.linspace(-1e-3, 1e-3, 4001, dtype=torch.float32)
    zero = torch.zeros(4001, dtype=torch.float32)
    standard = Normal(zero, zero)
    assert (kl_divergence(Normal(zero, log_std), standard) >= 0).all()
    rows = MultivariateNormal(zero[:, None], log_std.exp()[:, None, None])
    assert (kl_divergence(rows, Normal(zero[:1], zero[:1])) >= 0).all()
    nearly = StudentT(zero, log_std.requires_grad_(), torch.linspace(1e4, 1e7, 4001, dtype=torch.float32))
    kl = kl_divergence(nearly, standard)
    assert (kl >= 0).all()
    torch.testing.assert_close(torch.autograd.grad(kl.sum(), log_std)[0], 2 * log_std.detach(), rtol=1e-2, atol=1e-3)


def test_kl_is_infinite_where_q_has_no_variance():
    zero = torch.zeros(J)
    for q in (
        StudentT(zero, zero, 2.0),
        StudentT(zero, zero, 0.7),
        Pareto(zero + 1, zero + 1.5),
        FisherF(zero + 3, zero + 4),
    ):
        assert (kl_divergence(q, P) == torch.inf).all()
    assert kl_divergence(MultivariateT(zero, torch.eye(J), 1.9), P) == torch.inf


def test_a_missing_kl_pair_is_an_error_and_no_guess():
    class Unknown:
        pass

    assert not has_exact_kl(Unknown(), P)
    with pytest.raises(UsageError, match="no exact KL divergence from Unknown to Normal"):
        kl_divergence(Unknown(), P)
