"""Pareto k-hat: how heavy the tail of importance weights is, from the largest of them (Vehtari et al. 2024)."""

import math

import torch
from torch import Tensor

SHORTEST = 5  # fewer tail weights are too few for a fit


def tail_length(num_samples: int) -> int:
    """How many of the largest weights make up the tail: min(S / 5, 3 sqrt(S)), rounded up."""
    return min(math.ceil(num_samples / 5), math.ceil(3 * math.sqrt(num_samples)))


def usable(num_samples: int) -> float:
    """The largest k-hat at which S samples are enough: min(1 - 1 / log10 S, 0.7)."""
    return -math.inf if tail_length(num_samples) < SHORTEST else min(1 - 1 / math.log10(num_samples), 0.7)


def k_hat(largest: Tensor, num_samples: int) -> Tensor:  # (T + 1, M) or more -> (M,)
    """The shape of a generalized Pareto distribution fitted to the tail of the weights, given the largest log weights.

    The fit is that of Zhang & Stephens (2009): the posterior mean of the profile likelihood on a grid, with a weak
    prior at 0.5. Weights of tail index k have a finite variance for k < 0.5 and a mean for k < 1; below 0 they are
    bounded. +inf if the tail is too short or all equal.
    """
    n = tail_length(num_samples)
    if n < SHORTEST:
        return torch.full_like(largest[0], torch.inf)
    top = torch.topk(largest.double(), n + 1, dim=0).values  # (n + 1, M), descending
    weights = (top - top[0]).exp()  # a constant in all log weights cancels here
    x = (weights[:n] - weights[n]).flip(0)  # (n, M) ascending exceedances
    largest_x, quartile = x[-1], x[int(n / 4 + 0.5) - 1]
    m = 30 + math.isqrt(n)
    j = torch.arange(1, m + 1, dtype=x.dtype, device=x.device)[:, None]
    theta = 1 / largest_x + (1 - (m / (j - 0.5)).sqrt()) / (3 * quartile)  # (m, M)
    shape = torch.stack([torch.log1p(-row * x).mean(0) for row in theta])  # (m, M)
    profile = n * ((-theta / shape).log() - shape - 1)
    best = (profile.softmax(0) * theta).sum(0)  # (M,)
    k = torch.log1p(-best * x).mean(0)
    k = (n * k + 10 * 0.5) / (n + 10)
    return torch.where(torch.isfinite(k) & (quartile > 0), k, torch.inf)
