"""Likelihoods of real-valued pixels."""

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from vae.distributions import Normal
from vae.errors import ConfigError
from vae.schema import Positive, validated


@validated
class Gaussian(nn.Module):
    """Real pixels: log p(x|z) = sum_d log N(x_d; mean_d(z), std_d^2), std^2 = exp(s) + floor^2 (paper, appendix C.2).

    `variance` chooses s: the network's second output (per_pixel_and_datum), one parameter per pixel (per_pixel), one in
    all (shared), or a constant (fixed). `std` is the fixed standard deviation, or the initial one. `mean` can pass
    through a sigmoid, as in the paper's Frey Face decoder. The floor, half a grey level by default, bounds the density
    on data that lie on a grid; without it a constant pixel drives the bound to infinity. With `standardise` the decoder
    works in standard deviations from the mean of the training data (of each column of vectors, of all pixels together):
    x_d ~ N(location_d + scale_d mean_d, (scale_d std_d)^2), so that the density is that of x as given.
    """

    support: ClassVar[str] = "real"
    is_density: ClassVar[bool] = True
    location: Tensor  # data_shape, of the training data
    scale: Tensor

    def __init__(
        self,
        data_shape: tuple[int, ...],
        *,
        variance: Literal["per_pixel_and_datum", "per_pixel", "shared", "fixed"] = "per_pixel_and_datum",
        mean: Literal["identity", "sigmoid"] = "identity",
        std: Positive = 1.0,
        floor: Positive = 1 / 510,
        standardise: bool = False,
    ) -> None:
        super().__init__()
        if variance == "fixed" and std < floor:
            raise ConfigError(f"model.likelihood.std: {std:g} lies below the floor of {floor:g}; lower the floor too")
        self.data_shape = tuple(data_shape)
        self.variance: str = variance
        self.mean: str = mean
        self.std, self.floor, self.standardise = std, floor, standardise
        if standardise:
            self.register_buffer("location", torch.zeros(data_shape))
            self.register_buffer("scale", torch.ones(data_shape))
        self.output_shape = self.data_shape
        if variance == "per_pixel_and_datum":  # means, then s, stacked along the first axis of a datum
            self.output_shape = (2 * data_shape[0], *data_shape[1:])
        elif variance != "fixed":
            shape = self.data_shape if variance == "per_pixel" else ()
            self.log_variance = nn.Parameter(torch.full(shape, 2 * math.log(std)))

    def forward(self, outputs: Tensor) -> Normal:  # (L, M, *output_shape) -> elements (L, M, *data_shape)
        """The distribution of the pixels."""
        mean, log_std = outputs, outputs.new_full((), math.log(self.std))
        if self.variance == "per_pixel_and_datum":
            mean, log_variance = outputs.chunk(2, dim=-len(self.data_shape))
            log_std = self._floored(log_variance)
        elif self.variance != "fixed":
            log_std = self._floored(self.log_variance)
        mean = mean.sigmoid() if self.mean == "sigmoid" else mean
        if self.standardise:
            mean, log_std = self.location + self.scale * mean, log_std + self.scale.log()
        return Normal(mean, log_std)

    def _floored(self, log_variance: Tensor) -> Tensor:
        """log std of std^2 = exp(s) + floor^2: smooth, so that the gradient does not vanish at the floor."""
        return 0.5 * torch.logaddexp(log_variance, log_variance.new_full((), 2 * math.log(self.floor)))
