"""q(z|x): turns the output of an encoder network into a distribution of z.

Scales are given as logarithms, so that any output is valid and needs no check. An output of zeros gives a distribution
with centre 0 and scale 1.
"""

import functools
from collections.abc import Callable
from typing import Annotated, Any, ClassVar

import torch
from torch import Tensor, nn

from vae.distributions import (
    Cauchy,
    Family,
    Gumbel,
    Laplace,
    Logistic,
    MultivariateNormal,
    MultivariateT,
    Noise,
    Normal,
    StudentT,
    Uniform,
)
from vae.errors import UsageError
from vae.schema import Interval, validated

Degrees = Annotated[float, Interval(0.1, 1e6), "degrees of freedom"]


class Posterior(nn.Module):
    """The base of all heads: latent_dim, the size of the encoder's output, and the noise of one sample of one datum."""

    output_size: int  # numbers per datum that the encoder network has to return

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if not isinstance(latent_dim, int) or latent_dim < 1:
            raise UsageError(f"latent_dim must be a whole number of at least 1, not {latent_dim!r}")
        self.latent_dim = latent_dim

    @functools.cached_property
    def noise(self) -> Noise:
        """The distribution of eps for one sample of one datum, and its shape."""
        return self._at_zero.noise

    @property
    def kl_is_infinite(self) -> bool:
        """Whether KL(q || p) to a normal p is infinite, because q has no finite variance: estimator B cannot use q."""
        return bool(torch.isinf(self._at_zero.variance).any())

    @property
    def support_depends_on_parameters(self) -> bool:
        """Whether the support of q depends on its parameters, so that a score function would be biased."""
        return bool(self._at_zero.support_depends_on_parameters)

    @property
    def _at_zero(self) -> Any:
        return self(torch.zeros(self.output_size))


class DiagonalGaussian(Posterior):
    """q(z|x) = N(mean, diag(std^2)); the network gives the means, then the log-variances (paper, equation 9)."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.output_size = 2 * latent_dim

    def forward(self, outputs: Tensor) -> Normal:  # (M, 2J) -> elements (M, J)
        """The posterior of each datum."""
        mean, log_variance = outputs.chunk(2, dim=-1)
        return Normal(mean, 0.5 * log_variance)


class LocationScalePosterior(Posterior):
    """Independent elements z_j = loc_j + exp(log_scale_j) e; the network gives the locs, then the log-scales."""

    family: ClassVar[Callable[..., Family]]

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.output_size = 2 * latent_dim

    def forward(self, outputs: Tensor) -> Any:  # (M, 2J) -> elements (M, J)
        """The posterior of each datum."""
        loc, log_scale = outputs.chunk(2, dim=-1)
        return self.family(loc, log_scale)


class LaplacePosterior(LocationScalePosterior):
    """q(z|x) of independent Laplace elements; the network gives locs, then log-scales."""

    family = Laplace


class LogisticPosterior(LocationScalePosterior):
    """q(z|x) of independent logistic elements; the network gives locs, then log-scales."""

    family = Logistic


class GumbelPosterior(LocationScalePosterior):
    """q(z|x) of independent Gumbel elements, skewed to the right; the network gives locs, then log-scales."""

    family = Gumbel


class UniformPosterior(LocationScalePosterior):
    """q(z|x) uniform on a box; the network gives its centre, then the logarithms of half its widths."""

    family = Uniform


class CauchyPosterior(LocationScalePosterior):
    """q(z|x) of independent Cauchy elements, whose KL to a normal is infinite; the network gives locs, log-scales."""

    family = Cauchy


@validated
class StudentTPosterior(LocationScalePosterior):
    """q(z|x) of independent Student's t elements; the network gives locs, then log-scales."""

    def __init__(self, latent_dim: int, *, df: Degrees = 5.0) -> None:
        super().__init__(latent_dim)
        self.df = df

    def family(self, loc: Tensor, log_scale: Tensor) -> StudentT:
        """Student's t with df degrees of freedom."""
        return StudentT(loc, log_scale, self.df)


class EllipticalPosterior(Posterior):
    """q(z|x) of dependent elements, z = loc + L e, L lower triangular.

    The network gives the J locs, the J logarithms of the diagonal of L, then the elements below it, row by row.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.output_size = 2 * latent_dim + latent_dim * (latent_dim - 1) // 2

    def factor(self, outputs: Tensor) -> tuple[Tensor, Tensor]:  # (M, output_size) -> (M, J), (M, J, J)
        """loc and L."""
        J = self.latent_dim
        loc, log_diagonal, below = outputs.split([J, J, J * (J - 1) // 2], dim=-1)
        L = torch.diag_embed(log_diagonal.exp())
        row, column = torch.tril_indices(J, J, -1, device=outputs.device)
        L[..., row, column] = below
        return loc, L


class FullGaussian(EllipticalPosterior):
    """q(z|x) = N(loc, L L'); the network gives J locs, J log-diagonals of L, and its J (J - 1) / 2 other elements."""

    def forward(self, outputs: Tensor) -> MultivariateNormal:  # -> vectors (M, J)
        """The posterior of each datum."""
        return MultivariateNormal(*self.factor(outputs))


@validated
class MultivariateTPosterior(EllipticalPosterior):
    """q(z|x) = multivariate Student's t; L as in full_gaussian."""

    def __init__(self, latent_dim: int, *, df: Degrees = 5.0) -> None:
        super().__init__(latent_dim)
        self.df = df

    def forward(self, outputs: Tensor) -> MultivariateT:  # -> vectors (M, J)
        """The posterior of each datum."""
        return MultivariateT(*self.factor(outputs), self.df)


POSTERIORS: dict[str, type[Posterior]] = {
    "diagonal_gaussian": DiagonalGaussian,
    "full_gaussian": FullGaussian,
    "laplace": LaplacePosterior,
    "logistic": LogisticPosterior,
    "gumbel": GumbelPosterior,
    "student_t": StudentTPosterior,
    "multivariate_t": MultivariateTPosterior,
    "uniform": UniformPosterior,
    "cauchy": CauchyPosterior,
}
