"""Floor 1: one random variable. Densities, samples from explicit noise, and exact divergences, element by element.

FAMILIES lists what can be reparameterized as z = g(eps, parameters); a contract test holds each row to its oracle.
"""

from vae.distributions.base import Family, Noise, detached
from vae.distributions.kl import KL, has_exact_kl, kl_divergence
from vae.distributions.location_scale import Normal
from vae.distributions.numerics import SUPPORTS, Support, sum_from, support_of

FAMILIES: dict[str, type[Family]] = {"normal": Normal}

__all__ = [
    "FAMILIES",
    "KL",
    "SUPPORTS",
    "Family",
    "Noise",
    "Normal",
    "Support",
    "detached",
    "has_exact_kl",
    "kl_divergence",
    "sum_from",
    "support_of",
]
