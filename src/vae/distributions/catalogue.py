"""Families of the paper's lists that no model uses: closed forms of one uniform or normal number.

E = -log(1 - u) is the standard exponential variable. -log u has the same distribution, but only E gives the inverse
distribution function, which increases with u (Kingma & Welling 2013, section 2.4).
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vae.distributions.base import Reparameterized, require
from vae.distributions.numerics import EULER, HALF_LOG_2PI, scaled_exponential_integral
from vae.randomness import NoiseKind


@dataclass(frozen=True, slots=True)
class Exponential(Reparameterized):
    """z = E / rate; log p(z) = log rate - rate z, z >= 0."""

    rate: Tensor  # (M, ...)

    support: ClassVar[str] = "nonnegative"
    positive: ClassVar[tuple[str, ...]] = ("rate",)

    @property
    def mean(self) -> Tensor:
        """1 / rate."""
        return 1 / self.rate

    @property
    def variance(self) -> Tensor:
        """1 / rate^2."""
        return self.rate**-2

    @property
    def entropy(self) -> Tensor:
        """1 - log rate."""
        return 1 - self.rate.log()

    def _standard(self, u: Tensor) -> Tensor:
        return -torch.log1p(-u)

    def _to_z(self, e: Tensor) -> Tensor:
        return e / self.rate

    def _from_z(self, z: Tensor) -> Tensor:
        return z * self.rate

    def _log_density(self, e: Tensor) -> Tensor:
        return self.rate.log() - e


@dataclass(frozen=True, slots=True)
class Rayleigh(Reparameterized):
    """The length of a normal vector in the plane, z = scale sqrt(2 E).

    log p(z) = log(z / scale^2) - (z / scale)^2 / 2
    """

    scale: Tensor  # (M, ...)

    support: ClassVar[str] = "positive"
    positive: ClassVar[tuple[str, ...]] = ("scale",)

    @property
    def mean(self) -> Tensor:
        """sqrt(pi / 2) scale."""
        return math.sqrt(math.pi / 2) * self.scale

    @property
    def variance(self) -> Tensor:
        """(2 - pi / 2) scale^2."""
        return (2 - math.pi / 2) * self.scale.square()

    @property
    def entropy(self) -> Tensor:
        """1 + 0.5772 / 2 + log(scale / sqrt 2)."""
        return 1 + EULER / 2 - 0.5 * math.log(2) + self.scale.log()

    def _standard(self, u: Tensor) -> Tensor:
        return (-2 * torch.log1p(-u)).sqrt()

    def _to_z(self, e: Tensor) -> Tensor:
        return self.scale * e

    def _from_z(self, z: Tensor) -> Tensor:
        return z / self.scale

    def _log_density(self, e: Tensor) -> Tensor:
        return e.log() - 0.5 * e.square() - self.scale.log()


@dataclass(frozen=True, slots=True)
class Pareto(Reparameterized):
    """z = scale exp(E / alpha) >= scale; log p(z) = log alpha + alpha log scale - (alpha + 1) log z."""

    scale: Tensor  # (M, ...)
    alpha: Tensor  # (M, ...)

    support: ClassVar[str] = "half_line"
    support_depends_on_parameters: ClassVar[bool] = True
    positive: ClassVar[tuple[str, ...]] = ("scale", "alpha")

    @property
    def mean(self) -> Tensor:
        """alpha scale / (alpha - 1), infinite for alpha <= 1."""
        return self.alpha * self.scale / (self.alpha - 1).clamp(min=0)

    @property
    def variance(self) -> Tensor:
        """alpha scale^2 / ((alpha - 1)^2 (alpha - 2)), infinite for alpha <= 2."""
        return self.alpha * (self.scale / (self.alpha - 1)).square() / (self.alpha - 2).clamp(min=0)

    @property
    def entropy(self) -> Tensor:
        """1 + 1 / alpha + log(scale / alpha)."""
        return 1 + 1 / self.alpha + (self.scale / self.alpha).log()

    def _standard(self, u: Tensor) -> Tensor:
        return -torch.log1p(-u)

    def _to_z(self, e: Tensor) -> Tensor:
        return self.scale * (e / self.alpha).exp()

    def _from_z(self, z: Tensor) -> Tensor:
        return self.alpha * (z.log() - self.scale.log())

    def _log_density(self, e: Tensor) -> Tensor:
        return self.alpha.log() - self.scale.log() - e - e / self.alpha

    def _outside(self, z: Tensor) -> Tensor:
        return z < self.scale

    def _clamp(self, z: Tensor) -> Tensor:
        return z  # e >= 0, and exp(0) is exactly 1

    def _interior_point(self, z: Tensor) -> Tensor:
        return self.scale


@dataclass(frozen=True, slots=True)
class Weibull(Reparameterized):
    """z = scale E^(1/k), k the concentration; log p(z) = log(k / scale) + (k - 1) log(z / scale) - (z / scale)^k.

    Its e is log E = k log(z / scale), since E itself underflows for moderate z.
    """

    scale: Tensor  # (M, ...)
    concentration: Tensor  # (M, ...)

    support: ClassVar[str] = "positive"
    positive: ClassVar[tuple[str, ...]] = ("scale", "concentration")

    @property
    def mean(self) -> Tensor:
        """scale Gamma(1 + 1/k)."""
        return self.scale * self._gamma(1)

    @property
    def variance(self) -> Tensor:
        """scale^2 (Gamma(1 + 2/k) - Gamma(1 + 1/k)^2)."""
        return self.scale.square() * (self._gamma(2) - self._gamma(1).square())

    @property
    def entropy(self) -> Tensor:
        """0.5772 (1 - 1/k) + log(scale / k) + 1."""
        return EULER * (1 - 1 / self.concentration) + (self.scale / self.concentration).log() + 1

    def _gamma(self, power: int) -> Tensor:
        return torch.lgamma(1 + power / self.concentration).exp()

    def _standard(self, u: Tensor) -> Tensor:
        return (-torch.log1p(-u)).log()

    def _to_z(self, e: Tensor) -> Tensor:
        return self.scale * (e / self.concentration).exp()

    def _from_z(self, z: Tensor) -> Tensor:
        return self.concentration * (z.log() - self.scale.log())

    def _log_density(self, e: Tensor) -> Tensor:
        return (self.concentration / self.scale).log() + e - e / self.concentration - e.exp()


@dataclass(frozen=True, slots=True)
class Reciprocal(Reparameterized):
    """The log-uniform distribution: z = low (high / low)^u; log p(z) = -log z - log log(high / low)."""

    low: Tensor  # (M, ...)
    high: Tensor  # (M, ...)

    support: ClassVar[str] = "interval"
    support_depends_on_parameters: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ordered = (self.low > 0) & (self.low < self.high) & (self.high < torch.inf)
        require(self, ordered, "0 < low < high is needed", low=self.low, high=self.high)

    @property
    def mean(self) -> Tensor:
        """(high - low) / log(high / low)."""
        return (self.high - self.low) / self._log_width

    @property
    def variance(self) -> Tensor:
        """(high^2 - low^2) / (2 log(high / low)) minus mean^2."""
        return (self.high.square() - self.low.square()) / (2 * self._log_width) - self.mean.square()

    @property
    def entropy(self) -> Tensor:
        """log(low high) / 2 + log log(high / low)."""
        return 0.5 * (self.low.log() + self.high.log()) + self._log_width.log()

    @property
    def _log_width(self) -> Tensor:
        return self.high.log() - self.low.log()

    def _to_z(self, e: Tensor) -> Tensor:
        return self.low * (e * self._log_width).exp()

    def _from_z(self, z: Tensor) -> Tensor:
        return (z.log() - self.low.log()) / self._log_width

    def _log_density(self, e: Tensor) -> Tensor:
        return -self.low.log() - e * self._log_width - self._log_width.log()

    def _outside(self, z: Tensor) -> Tensor:
        return (z < self.low) | (z > self.high)

    def _clamp(self, z: Tensor) -> Tensor:
        return z.clamp(self.low, self.high)

    def _interior_point(self, z: Tensor) -> Tensor:
        return self.low


@dataclass(frozen=True, slots=True)
class Gompertz(Reparameterized):
    """z = scale log(1 + E / c), c the concentration; its e is z / scale >= 0.

    log p(z) = log(c / scale) + z / scale - c (exp(z / scale) - 1); with shape eta and rate b, c = eta, scale = 1 / b.
    """

    concentration: Tensor  # (M, ...)
    scale: Tensor  # (M, ...)

    support: ClassVar[str] = "nonnegative"
    positive: ClassVar[tuple[str, ...]] = ("concentration", "scale")

    @property
    def mean(self) -> Tensor:
        """scale exp(c) E1(c), E1 the exponential integral."""
        return self.scale * scaled_exponential_integral(self.concentration)

    @property
    def entropy(self) -> Tensor:
        """1 - log(c / scale) - exp(c) E1(c)."""
        scaled_mean = scaled_exponential_integral(self.concentration)
        return 1 - (self.concentration / self.scale).log() - scaled_mean

    def _standard(self, u: Tensor) -> Tensor:
        return torch.log1p(-torch.log1p(-u) / self.concentration)

    def _to_z(self, e: Tensor) -> Tensor:
        return self.scale * e

    def _from_z(self, z: Tensor) -> Tensor:
        return z / self.scale

    def _log_density(self, e: Tensor) -> Tensor:
        return (self.concentration / self.scale).log() + e - self.concentration * torch.expm1(e)


@dataclass(frozen=True, slots=True)
class LogNormal(Reparameterized):
    """z = exp(loc + exp(log_scale) eps), eps ~ N(0, 1); log p(z) = log N(log z; loc, scale^2) - log z."""

    loc: Tensor  # (M, ...)
    log_scale: Tensor  # (M, ...)

    support: ClassVar[str] = "positive"
    kind: ClassVar[NoiseKind] = "normal"

    @property
    def mean(self) -> Tensor:
        """exp(loc + scale^2 / 2)."""
        return (self.loc + 0.5 * (2 * self.log_scale).exp()).exp()

    @property
    def variance(self) -> Tensor:
        """(exp(scale^2) - 1) mean^2."""
        return torch.expm1((2 * self.log_scale).exp()) * self.mean.square()

    @property
    def entropy(self) -> Tensor:
        """(1 + log(2 pi)) / 2 + log_scale + loc."""
        return 0.5 + HALF_LOG_2PI + self.log_scale + self.loc

    def _to_z(self, e: Tensor) -> Tensor:
        return (self.loc + self.log_scale.exp() * e).exp()

    def _from_z(self, z: Tensor) -> Tensor:
        return (z.log() - self.loc) * (-self.log_scale).exp()

    def _log_density(self, e: Tensor) -> Tensor:
        return -0.5 * e.square() - HALF_LOG_2PI - self.log_scale - self.loc - self.log_scale.exp() * e


@dataclass(frozen=True, slots=True)
class Triangular(Reparameterized):
    """A density that rises linearly from low to mode and falls to high, by its inverse distribution function.

    p(z) = 2 (z - low) / ((high - low) (mode - low)) below the mode, 2 (high - z) / ((high - low) (high - mode)) above
    """

    low: Tensor  # (M, ...)
    mode: Tensor  # (M, ...)
    high: Tensor  # (M, ...)

    support: ClassVar[str] = "interval"
    support_depends_on_parameters: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ordered = (self.low < self.mode) & (self.mode < self.high)
        require(self, ordered, "low < mode < high is needed", low=self.low, mode=self.mode, high=self.high)

    @property
    def mean(self) -> Tensor:
        """(low + mode + high) / 3."""
        return (self.low + self.mode + self.high) / 3

    @property
    def variance(self) -> Tensor:
        """(r^2 + f^2 + r f) / 18, where r = mode - low and f = high - mode."""
        rise, fall = self.mode - self.low, self.high - self.mode
        return (rise.square() + fall.square() + rise * fall) / 18

    @property
    def entropy(self) -> Tensor:
        """1/2 + log((high - low) / 2)."""
        return 0.5 + ((self.high - self.low) / 2).log()

    def _standard(self, u: Tensor) -> Tensor:
        width, rise, fall = self.high - self.low, self.mode - self.low, self.high - self.mode
        # Both roots are of positive numbers on either side of the mode, so that their gradients are finite.
        up, down = self.low + (width * rise * u).sqrt(), self.high - (width * fall * (1 - u)).sqrt()
        return torch.where(u * width < rise, up, down)

    def _to_z(self, e: Tensor) -> Tensor:
        return e

    def _from_z(self, z: Tensor) -> Tensor:
        return z

    def _log_density(self, z: Tensor) -> Tensor:
        below = z < self.mode
        height = torch.where(below, z - self.low, self.high - z)  # 0 only at the two ends
        slope = torch.where(below, self.mode - self.low, self.high - self.mode)
        return math.log(2) + height.log() - slope.log() - (self.high - self.low).log()

    def _outside(self, z: Tensor) -> Tensor:
        return (z <= self.low) | (z >= self.high)

    def _clamp(self, z: Tensor) -> Tensor:
        low, high = self.low.detach(), self.high.detach()
        return z.clamp(torch.nextafter(low, high), torch.nextafter(high, low))

    def _interior_point(self, z: Tensor) -> Tensor:
        return self.mode
