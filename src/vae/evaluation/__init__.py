"""Floor 5: how good a model is. Evaluators leave the model, its modes and every generator unchanged."""

from vae.evaluation.annealed import Annealed, SandwichedAnnealing, simulated
from vae.evaluation.base import DatumNoise, mean_and_stderr
from vae.evaluation.bound import Evaluation, evaluate_bound, evaluation_line, posterior_codes, warn_of_collapse
from vae.evaluation.density import FittedDensity
from vae.evaluation.gaps import Gaps
from vae.evaluation.importance import ImportanceSampling
from vae.evaluation.log_likelihood import LOG_LIKELIHOODS, Columns, measure
from vae.evaluation.quadrature import Quadrature
from vae.evaluation.regression import crps, evaluate_regression
from vae.evaluation.representation import evaluate_representation, representation_table
