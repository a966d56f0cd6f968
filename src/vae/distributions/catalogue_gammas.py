"""Families of the paper's lists that no model uses: those made of gamma variables (Kingma & Welling 2013, section 2.4).

The gammas are kept as logarithms to the end, because those of small concentration are smaller than any float.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vae.distributions.base import Reparameterized
from vae.distributions.numerics import gamma_from_uniform, log_beta
from vae.errors import UsageError
from vae.randomness import Noise


class GammaLaw(Reparameterized):
    """The base of the gamma distributions: e is the logarithm of a standard gamma variable, z = exp(e) / rate.

    It comes from one uniform number by the inverse distribution function, which SciPy computes on the CPU in float64;
    gradients with respect to the concentration are implicit (Figurnov et al. 2018).
    """

    __slots__ = ()
    support: ClassVar[str] = "positive"

    @property
    def _k(self) -> Tensor:
        raise NotImplementedError

    @property
    def _rate(self) -> Tensor:
        raise NotImplementedError

    @property
    def mean(self) -> Tensor:
        """k / rate."""
        return self._k / self._rate

    @property
    def variance(self) -> Tensor:
        """k / rate^2."""
        return self._k / self._rate.square()

    @property
    def entropy(self) -> Tensor:
        """k - log rate + log Gamma(k) + (1 - k) psi(k)."""
        k = self._k
        return k - self._rate.log() + torch.lgamma(k) + (1 - k) * torch.digamma(k)

    def _standard(self, u: Tensor) -> Tensor:
        return gamma_from_uniform(self._k, u)

    def _to_z(self, e: Tensor) -> Tensor:
        return e.exp() / self._rate

    def _from_z(self, z: Tensor) -> Tensor:
        return z.log() + self._rate.log()

    def _log_density(self, e: Tensor) -> Tensor:
        return (self._k - 1) * e - e.exp() + self._rate.log() - torch.lgamma(self._k)


@dataclass(frozen=True, slots=True)
class Gamma(GammaLaw):
    """The gamma distribution; log p(z) = k log rate - log Gamma(k) + (k - 1) log z - rate z, k the concentration.

    For an int k, this is the paper's composition: a sum of k exponential variables, from k uniform numbers per
    element. For a tensor k, z comes from one uniform number by the inverse distribution function.
    """

    concentration: Tensor | int  # (M, ...) or one whole number
    rate: Tensor  # (M, ...)

    positive: ClassVar[tuple[str, ...]] = ("concentration", "rate")

    @property
    def noise(self) -> Noise:
        """Uniform, one number per element, or k if k is an int."""
        k = self.concentration
        return Noise("uniform", (*self.shape, k) if isinstance(k, int) else self.shape)

    @property
    def _k(self) -> Tensor:
        k = self.concentration
        return k if isinstance(k, Tensor) else self.rate.new_full((), k)

    @property
    def _rate(self) -> Tensor:
        return self.rate

    def _standard(self, u: Tensor) -> Tensor:
        if isinstance(self.concentration, int):
            return (-torch.log1p(-u)).sum(-1).log()
        return gamma_from_uniform(self.concentration, u)


@dataclass(frozen=True, slots=True)
class Erlang(GammaLaw):
    """The sum of k exponential variables, k a whole number: Gamma(k, rate), but from one uniform number.

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


@dataclass(frozen=True, slots=True)
class ChiSquared(GammaLaw):
    """The squared length of a normal vector of df dimensions, df any positive number: Gamma(df / 2, 1 / 2)."""

    df: Tensor  # (M, ...)

    positive: ClassVar[tuple[str, ...]] = ("df",)

    @property
    def _k(self) -> Tensor:
        return self.df / 2

    @property
    def _rate(self) -> Tensor:
        return self.df.new_full((), 0.5)


def log_gamma_ratio(a: Tensor, b: Tensor, u: Tensor) -> Tensor:
    """log(G_a / G_b) of two standard gamma variables, u (..., 2)."""
    first, second = u.unbind(-1)
    return gamma_from_uniform(a, first) - gamma_from_uniform(b, second)


@dataclass(frozen=True, slots=True)
class Beta(Reparameterized):
    """z = G_a / (G_a + G_b) of two gammas; its e is logit z, the log-ratio of the two.

    log p(z) = (a - 1) log z + (b - 1) log(1 - z) - log B(a, b)
    """

    concentration1: Tensor  # (M, ...), a
    concentration0: Tensor  # (M, ...), b

    support: ClassVar[str] = "unit_interval"
    numbers: ClassVar[tuple[int, ...]] = (2,)
    positive: ClassVar[tuple[str, ...]] = ("concentration1", "concentration0")

    @property
    def mean(self) -> Tensor:
        """a / (a + b)."""
        return self.concentration1 / (self.concentration1 + self.concentration0)

    @property
    def variance(self) -> Tensor:
        """a b / ((a + b)^2 (a + b + 1))."""
        a, b = self.concentration1, self.concentration0
        return a * b / ((a + b).square() * (a + b + 1))

    @property
    def entropy(self) -> Tensor:
        """log B(a, b) - (a - 1) psi(a) - (b - 1) psi(b) + (a + b - 2) psi(a + b)."""
        a, b = self.concentration1, self.concentration0
        digammas = (a - 1) * torch.digamma(a) + (b - 1) * torch.digamma(b) - (a + b - 2) * torch.digamma(a + b)
        return log_beta(a, b) - digammas

    def _standard(self, u: Tensor) -> Tensor:
        return log_gamma_ratio(self.concentration1, self.concentration0, u)

    def _to_z(self, e: Tensor) -> Tensor:
        return e.sigmoid()

    def _from_z(self, z: Tensor) -> Tensor:
        return z.log() - torch.log1p(-z)

    def _log_density(self, e: Tensor) -> Tensor:
        a, b = self.concentration1, self.concentration0
        return (a - 1) * F.logsigmoid(e) + (b - 1) * F.logsigmoid(-e) - log_beta(a, b)


@dataclass(frozen=True, slots=True)
class FisherF(Reparameterized):
    """z = (chi^2_1 / df1) / (chi^2_2 / df2); its e is log(df1 z / df2), the log-ratio of two gammas.

    log p(z) = df1/2 e - (df1 + df2)/2 log(1 + exp(e)) - log B(df1/2, df2/2) - log z
    """

    df1: Tensor  # (M, ...)
    df2: Tensor  # (M, ...)

    support: ClassVar[str] = "positive"
    numbers: ClassVar[tuple[int, ...]] = (2,)
    positive: ClassVar[tuple[str, ...]] = ("df1", "df2")

    @property
    def mean(self) -> Tensor:
        """df2 / (df2 - 2), infinite for df2 <= 2, whatever df1."""
        return (self.df2 / (self.df2 - 2).clamp(min=0)).expand(self.shape)

    @property
    def variance(self) -> Tensor:
        """2 (df1 + df2 - 2) / (df1 (df2 - 4)) mean^2, infinite for df2 <= 4."""
        return 2 * (self.df1 + self.df2 - 2) / (self.df1 * (self.df2 - 4).clamp(min=0)) * self.mean.square()

    @property
    def entropy(self) -> Tensor:
        """log(b/a) + log B(a, b) + (1 - a)(psi(a) - psi(b)) + (a + b)(psi(a + b) - psi(b)), a = df1/2, b = df2/2."""
        a, b = self.df1 / 2, self.df2 / 2
        psi_a, psi_b, psi_sum = torch.digamma(a), torch.digamma(b), torch.digamma(a + b)
        return self._log_scale + log_beta(a, b) + (1 - a) * (psi_a - psi_b) + (a + b) * (psi_sum - psi_b)

    @property
    def _log_scale(self) -> Tensor:
        return (self.df2 / self.df1).log()

    def _standard(self, u: Tensor) -> Tensor:
        return log_gamma_ratio(self.df1 / 2, self.df2 / 2, u)

    def _to_z(self, e: Tensor) -> Tensor:
        return (e + self._log_scale).exp()

    def _from_z(self, z: Tensor) -> Tensor:
        return z.log() - self._log_scale

    def _log_density(self, e: Tensor) -> Tensor:
        a, b = self.df1 / 2, self.df2 / 2
        return (a - 1) * e - (a + b) * F.softplus(e) - log_beta(a, b) - self._log_scale


@dataclass(frozen=True, slots=True)
class Dirichlet(Reparameterized):
    """A point of the simplex: K gammas divided by their sum, z = softmax of their logarithms.

    log p(z) = sum_k (a_k - 1) log z_k - log B(a), a density of the first K - 1 elements. Its e is log z.
    """

    concentration: Tensor  # (M, K), a

    support: ClassVar[str] = "simplex"
    positive: ClassVar[tuple[str, ...]] = ("concentration",)

    @property
    def mean(self) -> Tensor:
        """a_k / sum a."""
        return self.concentration / self.concentration.sum(-1, keepdim=True)

    @property
    def variance(self) -> Tensor:
        """mean (1 - mean) / (1 + sum a)."""
        return self.mean * (1 - self.mean) / (1 + self.concentration.sum(-1, keepdim=True))

    @property
    def entropy(self) -> Tensor:  # (M,)
        """log B(a) + (sum a - K) psi(sum a) - sum_k (a_k - 1) psi(a_k)."""
        a, total = self.concentration, self.concentration.sum(-1)
        own = ((a - 1) * torch.digamma(a)).sum(-1)
        return self._log_normalizer + (total - a.shape[-1]) * torch.digamma(total) - own

    @property
    def _log_normalizer(self) -> Tensor:  # (M,), log B(a)
        return torch.lgamma(self.concentration).sum(-1) - torch.lgamma(self.concentration.sum(-1))

    def log_prob(self, z: Tensor) -> Tensor:  # (L, M, K) -> (L, M)
        """log p(z), nats; -inf off the simplex (elements that are not positive, or do not sum to 1 within rounding)."""
        tolerance = torch.finfo(z.dtype).eps ** 0.5
        outside = (z <= 0).any(-1) | ((z.sum(-1) - 1).abs() > tolerance)
        inside = torch.where(outside[..., None], 1 / z.shape[-1], z)
        return torch.where(outside, -torch.inf, self._log_density(inside.log()))

    def _standard(self, u: Tensor) -> Tensor:
        return gamma_from_uniform(self.concentration, u).log_softmax(-1)

    def _to_z(self, e: Tensor) -> Tensor:
        return e.exp()

    def _log_density(self, e: Tensor) -> Tensor:  # (L, M, K) -> (L, M)
        return ((self.concentration - 1) * e).sum(-1) - self._log_normalizer
