"""Floor 1: distributions of one random variable. Densities, samples from explicit noise, and exact divergences.

FAMILIES lists those that can be reparameterized as z = g(eps, parameters); a test checks each against an oracle.
"""

from vae.distributions.base import Family, detached
from vae.distributions.catalogue import (
    Exponential,
    Gompertz,
    LogNormal,
    Pareto,
    Rayleigh,
    Reciprocal,
    Triangular,
    Weibull,
)
from vae.distributions.catalogue_gammas import Beta, ChiSquared, Dirichlet, Erlang, FisherF, Gamma
from vae.distributions.kl import KL, has_exact_kl, kl_divergence, log_ratio
from vae.distributions.location_scale import (
    Cauchy,
    Gumbel,
    Laplace,
    Logistic,
    MultivariateNormal,
    MultivariateT,
    Normal,
    StudentT,
    Uniform,
)
from vae.distributions.numerics import SUPPORTS, Support, sum_from, support_of
from vae.randomness import Noise

# The lists of Kingma & Welling 2013, section 2.4; the elliptical distributions are two rows.
FAMILIES: dict[str, type[Family]] = {
    # by their inverse distribution function
    "exponential": Exponential,
    "cauchy": Cauchy,
    "logistic": Logistic,
    "rayleigh": Rayleigh,
    "pareto": Pareto,
    "weibull": Weibull,
    "reciprocal": Reciprocal,
    "gompertz": Gompertz,
    "gumbel": Gumbel,
    "erlang": Erlang,
    # location + scale * eps
    "normal": Normal,
    "laplace": Laplace,
    "multivariate_normal": MultivariateNormal,
    "multivariate_t": MultivariateT,
    "student_t": StudentT,
    "uniform": Uniform,
    "triangular": Triangular,
    # by composition
    "log_normal": LogNormal,
    "gamma": Gamma,
    "dirichlet": Dirichlet,
    "beta": Beta,
    "chi_squared": ChiSquared,
    "fisher_f": FisherF,
}
