"""Families whose inverse distribution function is known: z = F^-1(u), u uniform (Kingma & Welling 2013, section 2.4).

E = -log(1 - u) is the standard exponential variable; of the two in law equal forms, it alone is the inverse of F.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vae.distributions.base import Reparameterized, require
from vae.distributions.composition import GammaLaw
from vae.distributions.location_scale import LocationScale
from vae.distributions.numerics import EULER, log1p_square, scaled_exponential_integral
from vae.errors import UsageError


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

    def _push(self, e: Tensor) -> Tensor:
        return e / self.rate

    def _pull(self, z: Tensor) -> Tensor:
        return z * self.rate

    def _log_density(self, e: Tensor) -> Tensor:
        return self.rate.log() - e


@dataclass(frozen=True, slots=True)
class Cauchy(LocationScale):
    """e = tan(pi (u - 1/2)), taken as 1 / tan of the nearer tail; log p(z) = -log pi - log_scale - log(1 + e^2).

    It has no mean: what stands for it is the centre, the principal value. Its variance is infinite.
    """

    @property
    def variance(self) -> Tensor:
        """Infinite."""
        return torch.full_like(self.log_scale, torch.inf)

    @property
    def entropy(self) -> Tensor:
        """log(4 pi scale)."""
        return math.log(4 * math.pi) + self.log_scale

    def _standard(self, u: Tensor) -> Tensor:
        # Near 0, u - 1/2 would round to -1/2, whose tangent has the wrong sign.
        return torch.where(u < 0.5, -1 / (math.pi * u).tan(), 1 / (math.pi * (1 - u)).tan())

    def _log_standard(self, e: Tensor) -> Tensor:
        return -math.log(math.pi) - log1p_square(e)


@dataclass(frozen=True, slots=True)
class Logistic(LocationScale):
    """e = log u - log(1 - u); log p(z) = log sigmoid(e) + log sigmoid(-e) - log_scale."""

    @property
    def variance(self) -> Tensor:
        """(pi scale)^2 / 3."""
        return math.pi**2 / 3 * (2 * self.log_scale).exp()

    @property
    def entropy(self) -> Tensor:
        """2 + log_scale."""
        return 2 + self.log_scale

    def _standard(self, u: Tensor) -> Tensor:
        return u.log() - torch.log1p(-u)

    def _log_standard(self, e: Tensor) -> Tensor:
        return F.logsigmoid(e) + F.logsigmoid(-e)


@dataclass(frozen=True, slots=True)
class Gumbel(LocationScale):
    """The law of the largest of many: e = -log(-log u); log p(z) = -e - exp(-e) - log_scale."""

    @property
    def mean(self) -> Tensor:
        """loc + 0.5772 scale."""
        return self.loc + EULER * self.log_scale.exp()

    @property
    def variance(self) -> Tensor:
        """(pi scale)^2 / 6."""
        return math.pi**2 / 6 * (2 * self.log_scale).exp()

    @property
    def entropy(self) -> Tensor:
        """1.5772 + log_scale."""
        return 1 + EULER + self.log_scale

    def _standard(self, u: Tensor) -> Tensor:
        return -(-u.log()).log()

    def _log_standard(self, e: Tensor) -> Tensor:
        return -e - (-e).exp()


@dataclass(frozen=True, slots=True)
class Rayleigh(Reparameterized):
    """The length of a normal vector of the plane, z = scale sqrt(2 E).

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

    def _push(self, e: Tensor) -> Tensor:
        return self.scale * e

    def _pull(self, z: Tensor) -> Tensor:
        return z / self.scale

    def _log_density(self, e: Tensor) -> Tensor:
        return e.log() - 0.5 * e.square() - self.scale.log()


@dataclass(frozen=True, slots=True)
class Pareto(Reparameterized):
    """z = scale exp(E / alpha) >= scale; log p(z) = log alpha + alpha log scale - (alpha + 1) log z."""

    scale: Tensor  # (M, ...)
    alpha: Tensor  # (M, ...)

    support: ClassVar[str] = "half_line"
    moves: ClassVar[bool] = True
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

    def _push(self, e: Tensor) -> Tensor:
        return self.scale * (e / self.alpha).exp()

    def _pull(self, z: Tensor) -> Tensor:
        return self.alpha * (z.log() - self.scale.log())

    def _log_density(self, e: Tensor) -> Tensor:
        return self.alpha.log() - self.scale.log() - e - e / self.alpha

    def _outside(self, z: Tensor) -> Tensor:
        return z < self.scale

    def _inside(self, z: Tensor) -> Tensor:
        return z  # e >= 0, and exp(0) is exactly 1

    def _typical(self, z: Tensor) -> Tensor:
        return self.scale


@dataclass(frozen=True, slots=True)
class Weibull(Reparameterized):
    """z = scale E^(1/k), k the concentration; log p(z) = log(k / scale) + (k - 1) log(z / scale) - (z / scale)^k.

    Its e is log E = k log(z / scale), since E itself underflows for z of a moderate size.
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

    def _push(self, e: Tensor) -> Tensor:
        return self.scale * (e / self.concentration).exp()

    def _pull(self, z: Tensor) -> Tensor:
        return self.concentration * (z.log() - self.scale.log())

    def _log_density(self, e: Tensor) -> Tensor:
        return (self.concentration / self.scale).log() + e - e / self.concentration - e.exp()


@dataclass(frozen=True, slots=True)
class Reciprocal(Reparameterized):
    """The log-uniform distribution: z = low (high / low)^u; log p(z) = -log z - log log(high / low)."""

    low: Tensor  # (M, ...)
    high: Tensor  # (M, ...)

    support: ClassVar[str] = "interval"
    moves: ClassVar[bool] = True

    def __post_init__(self) -> None:
        ordered = (self.low > 0) & (self.low < self.high) & (self.high < torch.inf)
        require(self, ordered, "0 < low < high is needed", low=self.low, high=self.high)

    @property
    def mean(self) -> Tensor:
        """(high - low) / log(high / low)."""
        return (self.high - self.low) / self._log_ratio

    @property
    def variance(self) -> Tensor:
        """(high^2 - low^2) / (2 log(high / low)) less the square of the mean."""
        return (self.high.square() - self.low.square()) / (2 * self._log_ratio) - self.mean.square()

    @property
    def entropy(self) -> Tensor:
        """log(low high) / 2 + log log(high / low)."""
        return 0.5 * (self.low.log() + self.high.log()) + self._log_ratio.log()

    @property
    def _log_ratio(self) -> Tensor:
        return self.high.log() - self.low.log()

    def _push(self, e: Tensor) -> Tensor:
        return self.low * (e * self._log_ratio).exp()

    def _pull(self, z: Tensor) -> Tensor:
        return (z.log() - self.low.log()) / self._log_ratio

    def _log_density(self, e: Tensor) -> Tensor:
        return -self.low.log() - e * self._log_ratio - self._log_ratio.log()

    def _outside(self, z: Tensor) -> Tensor:
        return (z < self.low) | (z > self.high)

    def _inside(self, z: Tensor) -> Tensor:
        return z.clamp(self.low, self.high)

    def _typical(self, z: Tensor) -> Tensor:
        return self.low


@dataclass(frozen=True, slots=True)
class Gompertz(Reparameterized):
    """z = scale log(1 + E / c), c the concentration; its e is z / scale >= 0.

    log p(z) = log(c / scale) + z / scale - c (exp(z / scale) - 1)

    In the form of the shape eta and the rate b: c = eta, scale = 1 / b. Its variance has no closed form.
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

    def _push(self, e: Tensor) -> Tensor:
        return self.scale * e

    def _pull(self, z: Tensor) -> Tensor:
        return z / self.scale

    def _log_density(self, e: Tensor) -> Tensor:
        return (self.concentration / self.scale).log() + e - self.concentration * torch.expm1(e)


@dataclass(frozen=True, slots=True)
class Erlang(GammaLaw):
    """The sum of k exponential variables / rate, k a whole number: Gamma(k, rate) in law, from one uniform number.

    Its inverse distribution function has no closed form; SciPy computes it on the CPU.
    """

    concentration: int
    rate: Tensor  # (M, ...)

    positive: ClassVar[tuple[str, ...]] = ("concentration", "rate")

    def __post_init__(self) -> None:
        if not isinstance(self.concentration, int):
            raise UsageError(f"Erlang: concentration must be a whole number (int); here {self.concentration!r}")
        GammaLaw.__post_init__(self)

    @property
    def _k(self) -> Tensor:
        return self.rate.new_full((), self.concentration)

    @property
    def _rate(self) -> Tensor:
        return self.rate
