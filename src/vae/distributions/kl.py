"""Exact Kullback-Leibler divergences: a table of pairs. A missing pair is an error, never a Monte Carlo guess."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vae.distributions.location_scale import Normal
from vae.errors import UsageError


def _normal_normal(q: Normal, p: Normal) -> Tensor:
    """KL(q || p) = log s_p - log s_q + (s_q^2 + (m_q - m_p)^2) / (2 s_p^2) - 1/2   (paper, appendix B: p = N(0, I))."""
    ratio = 2 * (q.log_std - p.log_std)  # log of the ratio of the variances
    # expm1(r) - r keeps its digits, and its sign, where the two variances nearly agree.
    return 0.5 * (torch.expm1(ratio) - ratio + ((q.mean - p.mean) * (-p.log_std).exp()).square())


KL: dict[tuple[type, type], Callable[[Any, Any], Tensor]] = {(Normal, Normal): _normal_normal}


def has_exact_kl(q: Any, p: Any) -> bool:
    """Whether an exact KL(q || p) is known."""
    return (type(q), type(p)) in KL


def kl_divergence(q: Any, p: Any) -> Tensor:
    """KL(q || p) in nats, element by element, never negative; UsageError where no exact formula is known."""
    formula = KL.get((type(q), type(p)))
    if formula is None:
        raise UsageError(
            f"no exact KL divergence from {type(q).__name__} to {type(p).__name__} is known; "
            "use the objective sgvb_a, which needs none"
        )
    return formula(q, p)
