"""Numerical helpers for densities and bounds."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)
EULER = 0.5772156649015329  # the mean of the standard Gumbel distribution


@dataclass(frozen=True)
class Support:
    """The values that a variable may take: in words, and as a check of all values of a tensor."""

    words: str
    holds: Callable[[Tensor], bool]

    def __call__(self, x: Tensor) -> bool:
        """Whether all values of x are in it."""
        return self.holds(x)


SUPPORTS: dict[str, Support] = {
    "binary": Support("0 or 1", lambda x: bool(((x == 0) | (x == 1)).all())),
    "counts": Support("0, 1, 2, ...", lambda x: bool(((x >= 0) & (x == x.floor()) & torch.isfinite(x)).all())),
    "unit_interval": Support("0 to 1", lambda x: bool(((x >= 0) & (x <= 1)).all())),
    "real": Support("finite numbers", lambda x: bool(torch.isfinite(x).all())),
}

# Which z lie outside; NaN is not among them. None if every number is inside.
OUTSIDE: dict[str, Callable[[Tensor], Tensor | None]] = {
    "real": lambda z: None,
    "positive": lambda z: (z <= 0) | (z == torch.inf),
    "nonnegative": lambda z: (z < 0) | (z == torch.inf),
    "unit_interval": lambda z: (z <= 0) | (z >= 1),
}
# Moves samples that underflowed, or were rounded, to the edge of an open support back inside.
KEEP_INSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "real": lambda z: z,
    "positive": lambda z: z.clamp(min=torch.finfo(z.dtype).tiny),
    "nonnegative": lambda z: z,
    "unit_interval": lambda z: z.clamp(torch.finfo(z.dtype).tiny, 1 - torch.finfo(z.dtype).eps / 2),
    "simplex": lambda z: z.clamp(min=torch.finfo(z.dtype).tiny),
}


def support_of(name: str) -> Support:
    """The row of SUPPORTS, or for a name such as levels_256 the grid of 256 levels: 0, 1/255, 2/255, ..., 1."""
    family, _, levels = name.partition("_")
    return _grid(int(levels)) if family == "levels" else SUPPORTS[name]


def _grid(levels: int) -> Support:
    top = levels - 1

    def holds(x: Tensor) -> bool:
        place = x.double() * top
        near = (place - place.round()).abs() <= top * 2**-23  # up to the rounding of k / top in float32
        return bool((near & (x >= 0) & (x <= 1)).all())

    return Support("0 or 1" if top == 1 else f"0, 1/{top}, 2/{top}, ..., 1", holds)


def sum_from(values: Tensor, axis: int) -> Tensor:
    """Sum over all axes from `axis` on; (L, M, C, H, W) from axis 2 gives (L, M), and (L, M) stays as it is."""
    return values.flatten(axis).sum(-1) if values.ndim > axis else values


def open_uniform(u: Tensor) -> Tensor:
    """Uniform noise moved into (0, 1), where inverse distribution functions are finite.

    Generators give multiples of 2^-24 (float32), and 0 once in 16 million draws. It stands for all numbers below 2^-24,
    so it becomes their middle, 2^-25; the smallest normal number would give a Cauchy sample of 10^37.
    """
    eps = torch.finfo(u.dtype).eps
    return torch.where(u <= 0, eps / 4, u).clamp(max=1 - eps / 2)


def log1p_square(x: Tensor) -> Tensor:
    """log(1 + x^2), also if the square would overflow."""
    large = 1e8  # beyond it, 1 + x^2 is x^2 in double precision
    return torch.log1p(x.clamp(-large, large).square()) + 2 * (x.abs().clamp(min=large) / large).log()


def log_beta(a: Tensor, b: Tensor) -> Tensor:
    """log B(a, b) = log Gamma(a) + log Gamma(b) - log Gamma(a + b)."""
    return torch.lgamma(a) + torch.lgamma(b) - torch.lgamma(a + b)


def gamma_from_uniform(concentration: Tensor, noise: Tensor) -> Tensor:
    """The logarithm of a standard gamma variable, log F^-1(u; concentration), u on (0, 1)."""
    u = noise.double()
    return _log_gamma(concentration, u, 1 - u, noise.dtype)


def gamma_from_normal(concentration: Tensor, noise: Tensor) -> Tensor:
    """The logarithm of a standard gamma variable from a normal number, log F^-1(Phi(e); concentration)."""
    x = noise.double() * math.sqrt(0.5)
    # torch.special.ndtr is (1 + erf) / 2, which has no correct digit below -8.
    return _log_gamma(concentration, 0.5 * torch.erfc(-x), 0.5 * torch.erfc(x), noise.dtype)


def _log_gamma(concentration: Tensor, lower: Tensor, upper: Tensor, dtype: torch.dtype) -> Tensor:
    tensors = torch.broadcast_tensors(concentration.double(), lower, upper)
    return _LogGammaQuantile.apply(*tensors).to(torch.promote_types(concentration.dtype, dtype))


class _LogGammaQuantile(torch.autograd.Function):
    """log z with F(z; a) = u, found by SciPy in float64 on the CPU: for a small concentration z is below every float.

    From F(z(a, u); a) = u: dz/du = 1 / p(z) and dz/da = -(dF/da) / p(z) (implicit reparameterization, Figurnov et al.
    2018). The second is torch's approximation, within 0.4 % of it at each point and 1e-4 of it in the mean.
    """

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        from scipy.special import gammainccinv, gammaincinv, gammaln  # takes 0.2 s, and few models need it

        a, u, v = (tensor.numpy(force=True) for tensor in (concentration, lower, upper))
        z = np.where(u < 0.5, gammaincinv(a, u), gammainccinv(a, v))  # from the nearer tail
        with np.errstate(divide="ignore"):
            # F(z; a) = z^a / Gamma(a + 1) to all digits if z is tiny.
            log_z = np.where(z > 1e-290, np.log(z), (np.log(u) + gammaln(a + 1)) / a)
        out = torch.as_tensor(log_z, device=concentration.device)
        ctx.save_for_backward(concentration, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        a, log_z = ctx.saved_tensors
        z = log_z.exp()
        tiny = z < 1e-6
        d_a = torch._standard_gamma_grad(a, torch.where(tiny, 1.0, z)) / z
        d_a = torch.where(tiny, (torch.digamma(a + 1) - log_z) / a, d_a)
        log_density_of_log_z = a * log_z - z - torch.lgamma(a)
        return grad * d_a, grad * (-log_density_of_log_z).exp(), None


class _ScaledExponentialIntegral(torch.autograd.Function):
    """exp(c) E1(c), the integral of exp(-c t) / (1 + t) over t > 0; its derivative is itself minus 1 / c."""

    @staticmethod
    def forward(ctx: Any, c: Tensor) -> Tensor:
        from scipy.special import exp1, hyperu

        x = c.double().numpy(force=True)
        values = np.where(x < 100, np.exp(np.minimum(x, 100)) * exp1(x), hyperu(1, 1, x))  # exp overflows at 709
        out = torch.as_tensor(values, dtype=c.dtype, device=c.device)
        ctx.save_for_backward(c, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        c, out = ctx.saved_tensors
        return grad * (out - 1 / c)


def scaled_exponential_integral(c: Tensor) -> Tensor:
    """exp(c) E1(c), c > 0."""
    return _ScaledExponentialIntegral.apply(c)
