"""p(x|z): turns the output of a decoder network into a distribution of the pixels.

A likelihood is built for the shape of a datum. `output_shape` is what the decoder network has to return, `support` is
the set of values that x may take (binary, levels, counts, unit_interval or real), and `is_density` is False if
`log_prob` is not the logarithm of a density or mass function. The distribution has `log_prob`, `mean`, and, to
simulate data, `noise` and `transform`, as the families do.
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
