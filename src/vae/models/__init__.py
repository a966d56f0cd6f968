"""Floor 3: parts composed into models."""

from vae.models.linear import (
    EM,
    LINEAR_MODELS,
    PCA,
    LinearGaussian,
    NotConverged,
    factor_analysis,
    pca,
    probabilistic_pca,
)
from vae.models.vae import VAE, Standardise, evaluating
