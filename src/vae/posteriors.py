"""q(z|x): from the numbers that an encoder network gives to a distribution of z."""

from typing import ClassVar

from torch import Tensor, nn

from vae.distributions import Noise, Normal
from vae.errors import UsageError


class DiagonalGaussian(nn.Module):
    """q(z|x) = N(mean, diag(std^2)); the network gives the means, then the log-variances (paper, equation 9)."""

    family: ClassVar[type] = Normal

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if not isinstance(latent_dim, int) or latent_dim < 1:
            raise UsageError(f"latent_dim must be a whole number of at least 1, not {latent_dim!r}")
        self.latent_dim = latent_dim
        self.output_size = 2 * latent_dim  # how many numbers a datum the encoder network has to give
        self.noise = Noise("normal", (latent_dim,))  # eps of one sample of one datum

    def forward(self, outputs: Tensor) -> Normal:  # (M, 2J) -> elements (M, J)
        """The posterior of each datum."""
        mean, log_variance = outputs.chunk(2, dim=-1)
        return Normal(mean, 0.5 * log_variance)


POSTERIORS = {"diagonal_gaussian": DiagonalGaussian}
