"""The slow, obvious forms."""

import math

import numpy as np
import torch


def finite_difference(function, x, step=1e-6):
    """The gradient of a scalar function by central differences, element by element."""
    gradient = torch.zeros_like(x)
    for i in range(x.numel()):
        up, down = x.clone(), x.clone()
        up.view(-1)[i] += step
        down.view(-1)[i] -= step
        gradient.view(-1)[i] = (function(up) - function(down)) / (2 * step)
    return gradient


def trapezoid(log_density, low, high, points=20001):
    """The integral of exp(log_density) over an interval."""
    x = torch.linspace(low, high, points, dtype=torch.float64)
    return torch.trapezoid(log_density(x).exp(), x).item()


def numbers(*shape, seed=0, scale=1.0):
    """Reproducible numbers that know nothing of the library's generators."""
    return torch.from_numpy(scale * np.random.default_rng(seed).standard_normal(shape))


def z_score(values, expected):
    """How many standard errors the mean of independent values is from what is expected."""
    return ((values.mean() - expected) / (values.std() / math.sqrt(len(values)))).item()


def gauss_hermite(points, L, J=1):
    """Noise (L, points^(L J), J) and weights: the exact normal mean of any polynomial of degree 2 points - 1 in each."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return product(torch.from_numpy(nodes), torch.from_numpy(weights / weights.sum()), L, J)


def normal_grid(L, step=0.1, limit=9.0):
    """The same by the trapezoid rule, for what is analytic: exact to rounding once the step is small."""
    nodes = torch.arange(-limit, limit + step / 2, step, dtype=torch.float64)
    weights = (-0.5 * nodes.square()).exp()
    return product(nodes, weights / weights.sum(), L, 1)


def product(nodes, weights, L, J):
    """The product rule in L J dimensions of a rule in one."""
    axes = L * J
    noise = torch.cartesian_prod(*[nodes] * axes).view(-1, L, J).transpose(0, 1)
    return noise, torch.cartesian_prod(*[weights] * axes).view(-1, axes).prod(1)


def importance_gap(log_v, K, step=0.2):
    """log p(x) - L_K for K samples of one latent, log_v(eps) = log w - log p(x); no simulation.

    log mean w = integral of (exp(-e^u) - exp(-e^u mean v)) du, by Frullani; over independent samples the mean of the
    last is phi(e^u / K)^K with phi(t) = E exp(-t v), an integral over eps.
    """
    eps = torch.linspace(-12, 12, 2401, dtype=torch.float64)
    weights = (-0.5 * eps.square()).exp()
    u = torch.arange(-40, 58, step, dtype=torch.float64)
    missing = -torch.expm1(-(u.exp() / K)[:, None] * log_v(eps).exp()) @ (weights / weights.sum())  # 1 - phi
    powers = torch.expm1(K * torch.log1p(-missing.clamp(max=1)))  # phi^K - 1
    return (powers - torch.expm1(-u.exp())).sum() * step
