"""The prior p(z)."""

import torch
from torch import nn

from vae.distributions import Normal


class StandardNormal(nn.Module):
    """p(z) = N(0, I) (paper, section 3)."""

    zeros: torch.Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        # A buffer, so that it follows the model's device and dtype; neither a parameter nor in checkpoints.
        self.register_buffer("zeros", torch.zeros(latent_dim), persistent=False)

    def forward(self) -> Normal:  # elements (J,)
        """The prior of one z."""
        return Normal(self.zeros, self.zeros)


PRIORS = {"standard_normal": StandardNormal}
