"""The contract of a family: a random variable z = g(eps, parameters) with eps from a fixed distribution."""

from dataclasses import fields, replace
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor

from vae.distributions.numerics import KEEP_INSIDE, OUTSIDE, open_uniform
from vae.errors import UsageError
from vae.randomness import Noise, NoiseKind


class Family(Protocol):
    """A reparameterized random variable (Kingma & Welling 2013, section 2.4).

    Parameters have shape (M, ...), and samples add an axis in front, (L, M, ...). If one element of z needs k numbers
    of eps, noise has a last axis of k: (L, M, ..., k). A family draws no random numbers. Densities are in nats.
    Independent elements have one density each, so that the sum over the last axes is the joint density; a family of
    vectors gives (L, M) for z (L, M, J). Outside the support (for a positive variable also at 0, for the unit interval
    at both ends) log p(z) is -inf with gradient 0; NaN stays NaN.

    Uniform noise may contain 0 and 1 (numerics.open_uniform moves them inside). Parameters that must be positive or
    ordered are checked on construction (UsageError); those on a log scale need no check.
    """

    @property
    def support(self) -> str:
        """One of real, positive, nonnegative, unit_interval, simplex; interval and half_line depend on parameters."""

    @property
    def support_depends_on_parameters(self) -> bool:
        """Whether the support depends on a parameter, so that score-function gradients are biased.

        For Triangular, whose density is 0 at its ends, they are unbiased but have infinite variance.
        """

    @property
    def noise(self) -> Noise:
        """The distribution p(eps) and the shape of one draw for these parameters."""

    def transform(self, noise: Tensor) -> Tensor:
        """z = g(eps, parameters)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), element by element or of each vector, nats."""

    def transform_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z and log p(z), with the density computed from the noise instead of z."""

    @property
    def mean(self) -> Tensor:
        """E[z], infinite if it diverges; of a Cauchy, or a t without a mean, the centre.

        All but Gompertz, which has no closed form, also have `variance` (of each element, infinite if it diverges).
        """

    @property
    def entropy(self) -> Tensor:
        """E[-log p(z)], nats, with the shape of log p(z)."""


class Reparameterized:
    """The base of every family but Normal: a standard variable e is computed from eps, and z from e.

    e = _standard(eps), z = _to_z(e), e = _from_z(z), and _log_density(e) is log p(z) as a function of e (not the
    density of e). The density of a sample is computed from its e, so that the rounding of z does not matter.
    """

    __slots__ = ()
    support: ClassVar[str] = "real"
    support_depends_on_parameters: ClassVar[bool] = False
    kind: ClassVar[NoiseKind] = "uniform"
    numbers: ClassVar[tuple[int, ...]] = ()  # the last axis of noise, if an element needs several numbers
    positive: ClassVar[tuple[str, ...]] = ()  # the parameters that must be positive

    def __post_init__(self) -> None:
        for name in self.positive:
            value = getattr(self, name)
            finite = (value > 0) & (value < float("inf"))
            require(self, finite, f"{name} must be positive and finite", **{name: value})

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one z, to which the parameters broadcast."""
        return tuple(torch.broadcast_shapes(*(p.shape for p in parameters(self).values())))

    @property
    def noise(self) -> Noise:
        """Independent numbers, one or several per element."""
        return Noise(self.kind, (*self.shape, *self.numbers))

    def transform(self, noise: Tensor) -> Tensor:
        """z = g(eps, parameters)."""
        return self._clamp(self._to_z(self._from_noise(noise)))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), nats; -inf outside the support."""
        outside = self._outside(z)
        if outside is None:
            return self._log_density(self._from_z(z))
        # The density is computed at a point inside instead, so that no NaN reaches the gradient through `where`.
        log_prob = self._log_density(self._from_z(torch.where(outside, self._interior_point(z), z)))
        return torch.where(outside, -torch.inf, log_prob)

    def transform_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z and log p(z), both from e."""
        e = self._from_noise(noise)
        return self._clamp(self._to_z(e)), self._log_density(e)

    def _from_noise(self, noise: Tensor) -> Tensor:
        return self._standard(open_uniform(noise) if self.kind == "uniform" else noise)

    def _standard(self, noise: Tensor) -> Tensor:
        return noise

    def _to_z(self, e: Tensor) -> Tensor:
        raise NotImplementedError

    def _from_z(self, z: Tensor) -> Tensor:
        raise NotImplementedError

    def _log_density(self, e: Tensor) -> Tensor:
        raise NotImplementedError

    def _outside(self, z: Tensor) -> Tensor | None:
        """Which z lie outside the support; None if every z is inside."""
        return OUTSIDE[self.support](z)

    def _clamp(self, z: Tensor) -> Tensor:
        """z, moved back inside if rounding has carried it out of the support."""
        return KEEP_INSIDE[self.support](z)

    def _interior_point(self, z: Tensor) -> Tensor:
        """A point inside the support."""
        return torch.full_like(z, 0.5)


def parameters(family: Any) -> dict[str, Tensor]:
    """The parameters that are tensors."""
    values = {f.name: getattr(family, f.name) for f in fields(family)}
    return {name: value for name, value in values.items() if isinstance(value, Tensor)}


F = TypeVar("F")


def detached(family: F) -> F:
    """The same distribution with its parameters held constant: the gradient of log p(z) then flows through z alone.

    That is the path derivative of Roeder et al. 2017.
    """
    return replace(family, **{name: value.detach() for name, value in parameters(family).items()})  # type: ignore[type-var]


def require(family: Any, holds: Any, demand: str, **values: Any) -> None:
    """UsageError unless a condition holds for all parameters; it gives the first values that break it."""
    holds = torch.as_tensor(holds)
    if not holds.all():
        columns = (torch.broadcast_to(torch.as_tensor(v, device=holds.device), holds.shape) for v in values.values())
        shown = (f"{name} = {column[~holds][0]:g}" for name, column in zip(values, columns, strict=True))
        raise UsageError(f"{type(family).__name__}: {demand}; here {', '.join(shown)}")
