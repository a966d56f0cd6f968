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

__all__ = [
    "LIKELIHOODS",
    "Bernoulli",
    "Categorical",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Gaussian",
    "GreyCrossEntropy",
    "NegativeBinomial",
]
