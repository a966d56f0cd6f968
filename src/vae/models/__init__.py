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
from vae.models.vae import VAE, evaluating

__all__ = [
    "EM",
    "LINEAR_MODELS",
    "PCA",
    "VAE",
    "LinearGaussian",
    "NotConverged",
    "evaluating",
    "factor_analysis",
    "pca",
    "probabilistic_pca",
]
