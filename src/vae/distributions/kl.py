"""Exact Kullback-Leibler divergences: a table of pairs. A missing pair is an error, never a Monte Carlo estimate."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae.distributions.catalogue import Exponential, LogNormal, Pareto, Rayleigh, Reciprocal, Triangular, Weibull
from vae.distributions.catalogue_gammas import Beta, ChiSquared, Erlang, FisherF, Gamma
from vae.distributions.location_scale import (
    Cauchy,
    Gumbel,
    Laplace,
    Logistic,
    MultivariateNormal,
    MultivariateT,
    Normal,
    StudentT,
    Uniform,
)
from vae.distributions.numerics import HALF_LOG_2PI, sum_from
from vae.errors import UsageError


def _normal_normal(q: Normal, p: Normal) -> Tensor:
    """KL(q || p) = log s_p - log s_q + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2   (paper, appendix B: p = N(0, I))."""
    ratio = 2 * (q.log_std - p.log_std)  # log of the ratio of the variances
    # expm1(r) - r stays accurate, and never negative, if the two variances nearly agree.
    return 0.5 * (torch.expm1(ratio) - ratio + ((q.mean - p.mean) * (-p.log_std).exp()).square())


def _vectors(factor: Tensor, log_diagonal: Tensor, shift: Tensor) -> Tensor:  # (M, J, J), (M, J), (M, J) -> (M,)
    """KL(N(shift, A A') || N(0, I)) = (|A|^2 - J + |shift|^2) / 2 - sum_j log A_jj, A lower triangular.

    Summed over the elements of A, so that each term is at least 0 even if A is nearly the identity.
    """
    ratio = 2 * log_diagonal
    off_diagonal = factor.tril(-1).square().sum(-1)
    return 0.5 * (torch.expm1(ratio) - ratio + off_diagonal + shift.square()).sum(-1)


def _whiten(p: MultivariateNormal, columns: Tensor) -> Tensor:
    return torch.linalg.solve_triangular(p.scale_tril, columns, upper=False)


def _multivariate_multivariate(q: MultivariateNormal, p: MultivariateNormal) -> Tensor:
    shift = _whiten(p, (q.loc - p.loc)[..., None])[..., 0]
    return _vectors(_whiten(p, q.scale_tril), q.log_diagonal - p.log_diagonal, shift)


def _multivariate_normal(q: MultivariateNormal, p: Normal) -> Tensor:
    inverse = (-p.log_std).exp()
    return _vectors(inverse[..., None] * q.scale_tril, q.log_diagonal - p.log_std, inverse * (q.loc - p.mean))


def _normal_multivariate(q: Normal, p: MultivariateNormal) -> Tensor:
    shift = _whiten(p, (q.mean - p.loc)[..., None])[..., 0]
    factor = _whiten(p, torch.diag_embed(q.std.expand(q.noise.shape)))
    return _vectors(factor, q.log_std - p.log_diagonal, shift)


def _cross_entropy(q: Any, p: Normal) -> Tensor:
    """-E_q[log p(z)] = log(2 pi)/2 + log s + (Var_q[z] + (E_q[z] - m)^2) / (2 s^2), element by element."""
    return HALF_LOG_2PI + p.log_std + 0.5 * (q.variance + (q.mean - p.mean).square()) * (-2 * p.log_std).exp()


def _to_normal(q: Any, p: Normal) -> Tensor:
    """KL(q || p) = cross entropy - entropy, which needs only the first two moments and the entropy of q.

    Infinite if q has no finite variance (Cauchy; Student's t with df <= 2).
    """
    return _not_negative(_cross_entropy(q, p) - q.entropy)


def _vector_to_normal(q: MultivariateT, p: Normal) -> Tensor:  # -> (M,)
    """KL(q || p) of vectors; the elements of p are independent, so its cross entropy is a sum."""
    return _not_negative(_cross_entropy(q, p).sum(-1) - q.entropy)


def _not_negative(kl: Tensor) -> Tensor:
    """The KL, raised to 0 if rounding has carried it below; its gradient is unchanged."""
    return kl - kl.detach().clamp(max=0)


# Families whose mean, variance and entropy have closed forms.
_LOCATION_SCALE = (Cauchy, Gumbel, Laplace, Logistic, StudentT, Uniform)
_CATALOGUE = (Exponential, LogNormal, Pareto, Rayleigh, Reciprocal, Triangular, Weibull)
_GAMMAS = (Beta, ChiSquared, Erlang, FisherF, Gamma)
KL: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {
    (Normal, Normal): _normal_normal,
    (MultivariateNormal, MultivariateNormal): _multivariate_multivariate,
    (MultivariateNormal, Normal): _multivariate_normal,
    (Normal, MultivariateNormal): _normal_multivariate,
    (MultivariateT, Normal): _vector_to_normal,
    **{(q, Normal): _to_normal for q in (*_LOCATION_SCALE, *_CATALOGUE, *_GAMMAS)},
}


def has_exact_kl(q: Any, p: Any) -> bool:
    """Whether kl_divergence(q, p) has a formula; its value may still be infinite."""
    return (type(q), type(p)) in KL


def kl_divergence(q: Any, p: Any) -> Tensor:
    """KL(q || p) in nats, never negative; UsageError if no exact formula is known.

    One value per element (M, J), or, if q or p is a distribution of vectors, one per vector (M,).
    """
    formula = KL.get((type(q), type(p)))
    if formula is None:
        raise UsageError(
            f"no exact KL divergence from {type(q).__name__} to {type(p).__name__} is known; "
            "use the objective sgvb_a, which needs none"
        )
    return formula(q, p)


def log_ratio(log_q: Tensor, p: Any, z: Tensor) -> Tensor:  # log q(z) and z (L, M, J), or log q (L, M) -> (L, M)
    """log q(z) - log p(z), whose mean over z ~ q is KL(q || p), nats."""
    return sum_from(log_q, 2) - sum_from(p.log_prob(z), 2)
