"""p(x|z): from the numbers that a decoder network gives to a distribution of the pixels.

A likelihood is built on the shape of a datum. It says what the decoder network has to give (`output_shape`), which
values it can be asked about (`support`: binary, unit_interval or real), and whether its value is a density at all.
"""

from vae.likelihoods.binary import Bernoulli, GreyCrossEntropy
from vae.likelihoods.gaussian import Gaussian

LIKELIHOODS = {"bernoulli": Bernoulli, "grey_cross_entropy": GreyCrossEntropy, "gaussian": Gaussian}

# Which supports hold the values of data of a kind, and the likelihood that is taken where the user names none.
FITTING_SUPPORTS = {
    "binary": ("binary", "unit_interval", "real"),
    "grey": ("unit_interval", "real"),
    "real": ("real",),
}
DEFAULT_LIKELIHOOD = {"binary": "bernoulli", "grey": "grey_cross_entropy", "real": "gaussian"}

__all__ = [
    "DEFAULT_LIKELIHOOD",
    "FITTING_SUPPORTS",
    "LIKELIHOODS",
    "Bernoulli",
    "Gaussian",
    "GreyCrossEntropy",
]
