"""Families of the form z = location + scale * eps."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vae.distributions.base import Noise

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, slots=True)
class Normal:
    """The normal distribution, z = mean + exp(log_std) * eps with eps ~ N(0, 1).

    log p(z) = -log(2 pi)/2 - log_std - (z - mean)^2 / (2 std^2)     (Kingma & Welling 2013, appendix C.2)

    It is parameterized by log_std because every term of a bound needs log std, and exp is safe where log is not.
    """

    mean: Tensor  # (M, ...)
    log_std: Tensor  # (M, ...), or what broadcasts with it

    support: ClassVar[str] = "real"
    moves: ClassVar[bool] = False  # the support, with the parameters

    @property
    def noise(self) -> Noise:
        """Standard normal, one number an element."""
        return Noise("normal", tuple(torch.broadcast_shapes(self.mean.shape, self.log_std.shape)))

    @property
    def std(self) -> Tensor:
        """The standard deviation."""
        return self.log_std.exp()

    def transform(self, noise: Tensor) -> Tensor:  # (L, M, ...) -> (L, M, ...)
        """z = mean + std * eps."""
        return torch.addcmul(self.mean, self.std, noise)

    def log_prob(self, z: Tensor) -> Tensor:
        """log N(z; mean, std^2), element by element, nats."""
        standardised = (z - self.mean) * (-self.log_std).exp()
        return -0.5 * standardised.square() - self.log_std - HALF_LOG_2PI

    def transform_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """z and log p(z) from the noise in hand: (z - mean) / std is eps itself."""
        return self.transform(noise), -0.5 * noise.square() - self.log_std - HALF_LOG_2PI
