"""The families that posteriors and likelihoods use: z = location + scale * eps (Kingma & Welling 2013, section 2.4)."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vae.distributions.base import Reparameterized
from vae.distributions.numerics import EULER, HALF_LOG_2PI, gamma_from_normal, log1p_square
from vae.randomness import Noise, NoiseKind


@dataclass(frozen=True, slots=True)
class Normal:
    """The normal distribution, z = mean + exp(log_std) * eps with eps ~ N(0, 1).

    log p(z) = -log(2 pi)/2 - log_std - (z - mean)^2 / (2 std^2)     (Kingma & Welling 2013, appendix C.2)

    It is parameterized by log_std because a bound needs log std, and exp is defined for every number, as log is not.
    """

    mean: Tensor  # (M, ...)
    log_std: Tensor  # (M, ...), or any shape that broadcasts with it

    support: ClassVar[str] = "real"
    support_depends_on_parameters: ClassVar[bool] = False

    @property
    def noise(self) -> Noise:
        """Standard normal, one number per element."""
        return Noise("normal", tuple(torch.broadcast_shapes(self.mean.shape, self.log_std.shape)))

    @property
    def std(self) -> Tensor:
        """The standard deviation."""
        return self.log_std.exp()

    @property
    def variance(self) -> Tensor:
        """std^2."""
        return (2 * self.log_std).exp()

    @property
    def entropy(self) -> Tensor:
        """(1 + log(2 pi)) / 2 + log_std."""
        return 0.5 + HALF_LOG_2PI + self.log_std

    def transform(self, noise: Tensor) -> Tensor:  # (L, M, ...) -> (L, M, ...)
        """z = mean + std * eps."""
        return torch.addcmul(self.mean, self.std, noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, std^2), element by element, nats."""
        standardised = (z - self.mean) * (-self.log_std).exp()
        return -0.5 * standardised.square() - self.log_std - HALF_LOG_2PI

    def transform_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z and log p(z) from the noise: (z - mean) / std is eps itself."""
        return self.transform(noise), -0.5 * noise.square() - self.log_std - HALF_LOG_2PI


@dataclass(frozen=True, slots=True)
class LocationScale(Reparameterized):
    """z = loc + exp(log_scale) * e; a family gives the standard variable e = (z - loc) / scale and its log-density."""

    loc: Tensor  # (M, ...)
    log_scale: Tensor  # (M, ...)

    @property
    def mean(self) -> Tensor:
        """The centre of symmetry."""
        return self.loc

    def _to_z(self, e: Tensor) -> Tensor:
        return torch.addcmul(self.loc, self.log_scale.exp(), e)

    def _from_z(self, z: Tensor) -> Tensor:
        return (z - self.loc) * (-self.log_scale).exp()

    def _log_density(self, e: Tensor) -> Tensor:
        return self._log_standard(e) - self.log_scale

    def _log_standard(self, e: Tensor) -> Tensor:
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class Laplace(LocationScale):
    """The double exponential: e = log(2 u) for u < 1/2, else -log(2 (1 - u)).

    log p(z) = -log(2) - log_scale - |z - loc| / scale
    """

    @property
    def variance(self) -> Tensor:
        """2 scale^2."""
        return 2 * (2 * self.log_scale).exp()

    @property
    def entropy(self) -> Tensor:
        """1 + log(2 scale)."""
        return 1 + math.log(2) + self.log_scale

    def _standard(self, u: Tensor) -> Tensor:
        return torch.where(u < 0.5, (2 * u).log(), -(2 * (1 - u)).log())

    def _log_standard(self, e: Tensor) -> Tensor:
        return -e.abs() - math.log(2)


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
    """The distribution of the largest of many values: e = -log(-log u); log p(z) = -e - exp(-e) - log_scale."""

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
class Uniform(LocationScale):
    """Uniform on [loc - scale, loc + scale]: loc is the centre, scale half the width. e = 2 u - 1.

    log p(z) = -log(2) - log_scale
    """

    support: ClassVar[str] = "interval"
    support_depends_on_parameters: ClassVar[bool] = True

    @property
    def variance(self) -> Tensor:
        """scale^2 / 3."""
        return (2 * self.log_scale).exp() / 3

    @property
    def entropy(self) -> Tensor:
        """log(2 scale)."""
        return math.log(2) + self.log_scale

    @property
    def ends(self) -> tuple[Tensor, Tensor]:
        """loc - scale and loc + scale."""
        scale = self.log_scale.exp()
        return self.loc - scale, self.loc + scale

    def _standard(self, u: Tensor) -> Tensor:
        return 2 * u - 1

    def _log_standard(self, e: Tensor) -> Tensor:
        return 0 * e - math.log(2)  # constant, but NaN stays NaN

    def _outside(self, z: Tensor) -> Tensor:
        low, high = self.ends
        return (z < low) | (z > high)

    def _clamp(self, z: Tensor) -> Tensor:
        return z  # |e| <= 1, and rounding keeps the order

    def _interior_point(self, z: Tensor) -> Tensor:
        return self.loc


@dataclass(frozen=True, slots=True)
class Cauchy(LocationScale):
    """e = tan(pi (u - 1/2)), taken as 1 / tan of the nearer tail; log p(z) = -log pi - log_scale - log(1 + e^2).

    It has no mean; `mean` is the centre, its principal value. Its variance is infinite.
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


def chi_radius(df: Tensor, noise: Tensor) -> Tensor:
    """sqrt(df / chi^2), chi^2 with df degrees of freedom from a normal number: it turns a normal into Student's t."""
    return (0.5 * ((df / 2).log() - gamma_from_normal(df / 2, noise))).exp()


def log_gamma_step(x: Tensor, step: float) -> Tensor:
    """log Gamma(x + step) - log Gamma(x), in float64 because both are large and nearly equal."""
    return (torch.lgamma(x.double() + step) - torch.lgamma(x.double())).to(x.dtype)


@dataclass(frozen=True, slots=True)
class StudentT(LocationScale):
    """Student's t: e = eps_1 / sqrt(chi^2 / df), from two normal numbers, the second turned into chi^2.

    log p(z) = log Gamma((df + 1)/2) - log Gamma(df/2) - log(pi df)/2 - log_scale - (df + 1)/2 log(1 + e^2 / df)
    """

    df: Tensor | float  # (M, ...) or one number

    kind: ClassVar[NoiseKind] = "normal"
    numbers: ClassVar[tuple[int, ...]] = (2,)
    positive: ClassVar[tuple[str, ...]] = ("df",)

    @property
    def variance(self) -> Tensor:
        """scale^2 df / (df - 2), infinite for df <= 2."""
        df = self._df
        return (2 * self.log_scale).exp() * df / (df - 2).clamp(min=0)

    @property
    def entropy(self) -> Tensor:
        """(df + 1)/2 (psi((df + 1)/2) - psi(df/2)) + log B(df/2, 1/2) + log(df)/2 + log_scale."""
        half = self._df / 2
        digammas = torch.digamma(half + 0.5) - torch.digamma(half)
        log_b = 0.5 * math.log(math.pi) - log_gamma_step(half, 0.5)
        return (half + 0.5) * digammas + log_b + 0.5 * self._df.log() + self.log_scale

    @property
    def _df(self) -> Tensor:
        return self.df if isinstance(self.df, Tensor) else self.loc.new_full((), self.df)

    def _standard(self, noise: Tensor) -> Tensor:
        e, chi = noise.unbind(-1)
        return e * chi_radius(self._df, chi)

    def _log_standard(self, e: Tensor) -> Tensor:
        df = self._df
        constant = log_gamma_step(df / 2, 0.5) - 0.5 * (math.pi * df).log()
        return constant - 0.5 * (df + 1) * log1p_square(e * df.rsqrt())


@dataclass(frozen=True, slots=True)
class Elliptical(Reparameterized):
    """z = loc + L e: a vector e whose density depends on |e| alone, and a lower-triangular L with a positive diagonal.

    L is not checked: that would wait for the device at every step.
    """

    loc: Tensor  # (M, J)
    scale_tril: Tensor  # (M, J, J)

    kind: ClassVar[NoiseKind] = "normal"

    @property
    def shape(self) -> tuple[int, ...]:
        """(M, J)."""
        return tuple(torch.broadcast_shapes(self.loc.shape, self.scale_tril.shape[:-1]))

    @property
    def mean(self) -> Tensor:
        """The centre of symmetry."""
        return self.loc

    @property
    def variance(self) -> Tensor:  # (M, J)
        """The diagonal of L L'."""
        return self.scale_tril.square().sum(-1)

    @property
    def covariance(self) -> Tensor:  # (M, J, J)
        """L L' times the second moment of an element of e."""
        product = self.scale_tril @ self.scale_tril.mT
        return product * (self.variance / product.diagonal(dim1=-2, dim2=-1))[..., None]

    @property
    def log_diagonal(self) -> Tensor:  # (M, J)
        """The logarithms of the diagonal of L; their sum is log |det L|."""
        return self.scale_tril.diagonal(dim1=-2, dim2=-1).log()

    def _to_z(self, e: Tensor) -> Tensor:
        with torch.autocast(e.device.type, enabled=False):  # it is meant for the products of networks
            return self.loc + (self.scale_tril @ e[..., None])[..., 0]

    def _from_z(self, z: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.scale_tril, (z - self.loc)[..., None], upper=False)[..., 0]


@dataclass(frozen=True, slots=True)
class MultivariateNormal(Elliptical):
    """The normal distribution of a vector with covariance L L'; e = eps ~ N(0, I).

    log p(z) = -J log(2 pi)/2 - sum_j log L_jj - |e|^2 / 2
    """

    @property
    def entropy(self) -> Tensor:  # (M,)
        """J (1 + log(2 pi)) / 2 + sum_j log L_jj."""
        return (0.5 + HALF_LOG_2PI + self.log_diagonal).sum(-1)

    def _log_density(self, e: Tensor) -> Tensor:  # (L, M, J) -> (L, M)
        return (-0.5 * e.square() - HALF_LOG_2PI - self.log_diagonal).sum(-1)


@dataclass(frozen=True, slots=True)
class MultivariateT(Elliptical):
    """Student's t of a vector: e = eps_1..J / sqrt(chi^2 / df); the last of J + 1 normal numbers gives chi^2.

    log p(z) = log Gamma((df + J)/2) - log Gamma(df/2) - J log(pi df)/2 - sum_j log L_jj - (df + J)/2 log(1 + |e|^2/df)
    """

    df: Tensor | float  # (M,) or one number

    positive: ClassVar[tuple[str, ...]] = ("df",)

    @property
    def noise(self) -> Noise:
        """Standard normal, J + 1 numbers per vector."""
        *shape, J = self.shape
        return Noise("normal", (*shape, J + 1))

    @property
    def variance(self) -> Tensor:  # (M, J)
        """The diagonal of the covariance L L' df / (df - 2), infinite for df <= 2."""
        df = self._df[..., None]
        return self.scale_tril.square().sum(-1) * df / (df - 2).clamp(min=0)

    @property
    def entropy(self) -> Tensor:  # (M,)
        """(df + J)/2 (psi((df + J)/2) - psi(df/2)) minus the part of log p(z) without e."""
        half, half_dim = self._df / 2, self.loc.shape[-1] / 2
        digammas = torch.digamma(half + half_dim) - torch.digamma(half)
        return (half + half_dim) * digammas - self._constant

    @property
    def _df(self) -> Tensor:
        return self.df if isinstance(self.df, Tensor) else self.loc.new_full((), self.df)

    @property
    def _constant(self) -> Tensor:  # (M,)
        df, J = self._df, self.loc.shape[-1]
        return log_gamma_step(df / 2, J / 2) - 0.5 * J * (math.pi * df).log() - self.log_diagonal.sum(-1)

    def _standard(self, noise: Tensor) -> Tensor:  # (L, M, J + 1) -> (L, M, J)
        return noise[..., :-1] * chi_radius(self._df, noise[..., -1])[..., None]

    def _log_density(self, e: Tensor) -> Tensor:  # (L, M, J) -> (L, M)
        df = self._df
        radius = torch.linalg.vector_norm(e, dim=-1) * df.rsqrt()
        return self._constant - 0.5 * (df + self.loc.shape[-1]) * log1p_square(radius)
