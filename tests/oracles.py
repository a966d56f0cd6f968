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
