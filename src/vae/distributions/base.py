"""The contract of a family: a random variable z = g(eps, parameters) with eps from a fixed distribution."""

from dataclasses import fields, replace
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from vae.randomness import NoiseKind


class Noise(NamedTuple):
    """What eps is drawn from, and the shape of one draw."""

    kind: NoiseKind
    shape: tuple[int, ...]


class Family(Protocol):
    """A reparameterized random variable (Kingma & Welling 2013, section 2.4).

    Parameters have shape (M, ...); noise and samples may carry samples first, (L, M, ...). Values of densities are in
    nats and element by element, so that a sum over the last axes gives the joint density of independent elements.
    """

    @property
    def support(self) -> str:
        """Where z lives: real, positive, unit_interval, ..."""

    @property
    def moves(self) -> bool:
        """Whether the support moves with the parameters."""

    @property
    def noise(self) -> Noise:
        """The distribution p(eps) and the shape of its draw for these parameters."""

    def transform(self, noise: Tensor) -> Tensor:
        """z = g(eps, parameters)."""

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), element by element, nats."""

    def transform_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z and log p(z), the density computed from the noise in hand."""

    @property
    def mean(self) -> Tensor:
        """E[z]."""


def detached(family: Any) -> Any:
    """The same random variable with its parameters held constant, for derivatives along the path of z alone."""
    tensors = {f.name: getattr(family, f.name) for f in fields(family)}
    return replace(family, **{name: value.detach() for name, value in tensors.items() if isinstance(value, Tensor)})
