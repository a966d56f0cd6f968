"""p(x|z): from the numbers that a decoder network gives to a distribution of the pixels.

A likelihood is built on the shape of a datum. It says what the decoder network has to give (`output_shape`), which
values it can be asked about (`support`: binary, levels, counts, unit_interval or real), and whether its value is the
logarithm of a density, or of a mass function, at all. The distribution that it gives has `log_prob`, `mean`, and for
simulation `noise` and `transform`, as the families have them.
"""

from vae.likelihoods.binary import Bernoulli, ContinuousBernoulli, GreyCrossEntropy
from vae.likelihoods.discrete import Categorical, DiscretizedLogistic, NegativeBinomial
from vae.likelihoods.gaussian import Gaussian

LIKELIHOODS = {
    "bernoulli": Bernoulli,
    "grey_cross_entropy": GreyCrossEntropy,
    "gaussian": Gaussian,
    "continuous_bernoulli": ContinuousBernoulli,
    "categorical": Categorical,
    "discretized_logistic": DiscretizedLogistic,
    "negative_binomial": NegativeBinomial,
}

# Which supports can hold the values of data of a kind (levels where the values lie on the likelihood's own grid), and
# the likelihood that is taken where the user names none.
FITTING_SUPPORTS = {
    "binary": ("binary", "unit_interval", "real", "levels", "counts"),
    "grey": ("unit_interval", "real", "levels"),
    "levels": ("unit_interval", "real", "levels"),
    "counts": ("counts", "real"),
    "real": ("real",),
}
DEFAULT_LIKELIHOOD = {
    "binary": "bernoulli",
    "grey": "grey_cross_entropy",
    "levels": "discretized_logistic",
    "counts": "negative_binomial",
    "real": "gaussian",
}

__all__ = [
    "DEFAULT_LIKELIHOOD",
    "FITTING_SUPPORTS",
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "GreyCrossEntropy",
    "NegativeBinomial",
]
