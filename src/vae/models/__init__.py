"""Floor 3: parts composed into models."""

from vae.models.bayesian import (
    Sampling,
    VariationalLinear,
    drawn,
    networks,
    randomise,
    variational_layers,
    weights_kl,
    weights_noises,
)
from vae.models.linear import EM, PCA, LinearGaussian, NotConverged, factor_analysis, pca, probabilistic_pca
from vae.models.regression import Predictive, Regression
from vae.models.vae import VAE, Standardise, device_of, evaluating, example

Model = VAE | Regression
MODELS = {"regression": Regression}  # besides the VAE, whose parts have tables of their own
