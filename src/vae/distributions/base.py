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

    Parameters have shape (M, ...); samples may come first, (L, M, ...). Where one number of z takes k numbers of eps,
    noise has a last axis of k: (L, M, ..., k); a family never draws. Densities are in nats. Those of independent
    elements are element by element, so that a sum over the last axes is their joint density; a family of vectors gives
    (L, M) for z (L, M, J). Outside the support (of a positive variable, also at 0; of the unit interval, at both ends)
    log p(z) is -inf with gradient 0; NaN stays NaN.

    Uniform noise may hold 0 and 1, where the transformation might be infinite (numerics.open_uniform). Positive
    parameters, and ends in order, are checked on construction (UsageError); those on a log scale need no check.
    """

    @property
    def support(self) -> str:
        """Where z lives: real, positive, nonnegative, unit_interval, simplex; interval or half_line if it moves."""

    @property
    def support_depends_on_parameters(self) -> bool:
        """Whether the support depends on a parameter: the score-function estimator of a gradient is biased there.

        (Of infinite variance instead for Triangular, whose density vanishes at its ends.)
        """

    @property
    def noise(self) -> Noise:
        """The distribution p(eps) and the shape of its draw for these parameters."""

    def transform(self, noise: Tensor) -> Tensor:
        """z = g(eps, parameters)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), element by element or of each vector, nats."""

    def transform_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z and log p(z), the density computed from the noise in hand."""

    @property
    def mean(self) -> Tensor:
        """E[z], infinite where it diverges; as a principal value, the centre, of a Cauchy or t without mean.

        Beside it, `variance` (of each element, infinite where it diverges; Gompertz alone has no closed form).
        """

    @property
    def entropy(self) -> Tensor:
        """E[-log p(z)], nats, of the shape of log p(z)."""


class Reparameterized:
    """The engine of every family but Normal: each says how a standard variable e comes from eps and goes to z.

    e = standard(eps), z = to_z(e), e = from_z(z), and log p(z) as a function of e (not the density of e itself). Going
    through e, the density of a sample is computed from the noise in hand, without the digits that z may have lost.
    """

    __slots__ = ()
    support: ClassVar[str] = "real"
    support_depends_on_parameters: ClassVar[bool] = False
    kind: ClassVar[NoiseKind] = "uniform"
    numbers: ClassVar[tuple[int, ...]] = ()  # the last axis of noise, where an element takes several numbers
    positive: ClassVar[tuple[str, ...]] = ()  # the parameters that must be

    def __post_init__(self) -> None:
        for name in self.positive:
            value = getattr(self, name)
            finite = (value > 0) & (value < float("inf"))
            require(self, finite, f"{name} must be positive and finite", **{name: value})

    @property
    def shape(self) -> tuple[int, ...]:
        """What the parameters broadcast to: the shape of one z."""
        return tuple(torch.broadcast_shapes(*(p.shape for p in parameters(self).values())))

    @property
    def noise(self) -> Noise:
        """Independent numbers, one an element or a few."""
        return Noise(self.kind, (*self.shape, *self.numbers))

    def transform(self, noise: Tensor) -> Tensor:
        """z = g(eps, parameters)."""
        return self._clamp(self._to_z(self._from_noise(noise)))

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), nats; -inf outside the support."""
        outside = self._outside(z)
        if outside is None:
            return self._log_density(self._from_z(z))
        # The density is taken at a point inside instead, so that no NaN comes back through `where`.
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
        """Which z lie outside the support; None where there is no outside."""
        return OUTSIDE[self.support](z)

    def _clamp(self, z: Tensor) -> Tensor:
        """z where rounding has carried it out of the support, moved back."""
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
    """The same distribution with its parameters held constant: a gradient then reaches log p(z) through z alone.

    That is the path derivative of Roeder et al. 2017.
    """
    return replace(family, **{name: value.detach() for name, value in parameters(family).items()})  # type: ignore[type-var]


def require(family: Any, holds: Any, demand: str, **values: Any) -> None:
    """UsageError unless a condition on parameters holds everywhere: the family, the demand, and the first misfit."""
    holds = torch.as_tensor(holds)
    if not holds.all():
        columns = (torch.broadcast_to(torch.as_tensor(v, device=holds.device), holds.shape) for v in values.values())
        shown = (f"{name} = {column[~holds][0]:g}" for name, column in zip(values, columns, strict=True))
        raise UsageError(f"{type(family).__name__}: {demand}; here {', '.join(shown)}")
