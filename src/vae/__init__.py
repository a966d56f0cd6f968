"""Auto-encoding variational Bayes (Kingma & Welling 2013), right, fast and pleasant.

    data = vae.load_data("digits", pixels="static")
    model = vae.build("configs/digits_d2.yaml")
    run = vae.fit(model, data, epochs=20, out="runs/x")
    model = vae.load("runs/x")

Names are imported when they are first used, so that `import vae` costs next to nothing.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The public names by the module that holds them, and the classes that go by the name of a function.
_PUBLIC = {
    "vae.models": "VAE EM pca probabilistic_pca factor_analysis",
    "vae.training.build": "build",
    "vae.training": "fit load Run",
    "vae.data": "load_data Data",
    "vae.networks": "mlp_encoder mlp_decoder conv_encoder conv_decoder",
    "vae.posteriors": "DiagonalGaussian FullGaussian LaplacePosterior LogisticPosterior GumbelPosterior "
    "StudentTPosterior MultivariateTPosterior UniformPosterior CauchyPosterior",
    "vae.priors": "StandardNormal",
    "vae.likelihoods": "Bernoulli Categorical ContinuousBernoulli DiscretizedLogistic Gaussian GreyCrossEntropy "
    "NegativeBinomial",
    "vae.objectives": "EstimatorA EstimatorB IWAE DReG StickingTheLanding ScoreFunction",
    "vae.evaluation": "evaluate_bound measure ImportanceSampling FittedDensity Annealed Quadrature Gaps "
    "evaluate_representation",
    "vae.errors": "VaeError",
}
_CLASSES = {
    "mlp_encoder": "MLPEncoder",
    "mlp_decoder": "MLPDecoder",
    "conv_encoder": "ConvEncoder",
    "conv_decoder": "ConvDecoder",
}
_WHERE = {name: module for module, names in _PUBLIC.items() for name in names.split()}

__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:
    from vae.data import Data as Data
    from vae.data import load_data as load_data
    from vae.errors import VaeError as VaeError
    from vae.evaluation import Annealed as Annealed
    from vae.evaluation import FittedDensity as FittedDensity
    from vae.evaluation import Gaps as Gaps
    from vae.evaluation import ImportanceSampling as ImportanceSampling
    from vae.evaluation import Quadrature as Quadrature
    from vae.evaluation import evaluate_bound as evaluate_bound
    from vae.evaluation import evaluate_representation as evaluate_representation
    from vae.evaluation import measure as measure
    from vae.likelihoods import Bernoulli as Bernoulli
    from vae.likelihoods import Categorical as Categorical
    from vae.likelihoods import ContinuousBernoulli as ContinuousBernoulli
    from vae.likelihoods import DiscretizedLogistic as DiscretizedLogistic
    from vae.likelihoods import Gaussian as Gaussian
    from vae.likelihoods import GreyCrossEntropy as GreyCrossEntropy
    from vae.likelihoods import NegativeBinomial as NegativeBinomial
    from vae.models import EM as EM
    from vae.models import VAE as VAE
    from vae.models import factor_analysis as factor_analysis
    from vae.models import pca as pca
    from vae.models import probabilistic_pca as probabilistic_pca
    from vae.networks import ConvDecoder as conv_decoder
    from vae.networks import ConvEncoder as conv_encoder
    from vae.networks import MLPDecoder as mlp_decoder
    from vae.networks import MLPEncoder as mlp_encoder
    from vae.objectives import IWAE as IWAE
    from vae.objectives import DReG as DReG
    from vae.objectives import EstimatorA as EstimatorA
    from vae.objectives import EstimatorB as EstimatorB
    from vae.objectives import ScoreFunction as ScoreFunction
    from vae.objectives import StickingTheLanding as StickingTheLanding
    from vae.posteriors import CauchyPosterior as CauchyPosterior
    from vae.posteriors import DiagonalGaussian as DiagonalGaussian
    from vae.posteriors import FullGaussian as FullGaussian
    from vae.posteriors import GumbelPosterior as GumbelPosterior
    from vae.posteriors import LaplacePosterior as LaplacePosterior
    from vae.posteriors import LogisticPosterior as LogisticPosterior
    from vae.posteriors import MultivariateTPosterior as MultivariateTPosterior
    from vae.posteriors import StudentTPosterior as StudentTPosterior
    from vae.posteriors import UniformPosterior as UniformPosterior
    from vae.priors import StandardNormal as StandardNormal
    from vae.training import Run as Run
    from vae.training import fit as fit
    from vae.training import load as load
    from vae.training.build import build as build


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'vae' has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name]), _CLASSES.get(name, name))
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
