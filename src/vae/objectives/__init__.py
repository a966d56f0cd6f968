"""Floor 4: what is maximised. Pure functions of (model, x, noise, memory, step); randomness is an argument."""

from vae.objectives.base import Estimate, Memory, Objective
from vae.objectives.complete_data import CompleteData
from vae.objectives.full_vb import FullVB
from vae.objectives.importance import IWAE, DReG, LogWeights, StickingTheLanding, log_weights
from vae.objectives.modifiers import SharedNoise, WeightedKL
from vae.objectives.regression import RegressionBound
from vae.objectives.score_function import ScoreFunction, leave_one_out, remember, running_mean, score_surrogate
from vae.objectives.sgvb import EstimatorA, EstimatorB
from vae.objectives.wake_sleep import WakeSleep

OBJECTIVES = {
    "sgvb_b": EstimatorB,
    "sgvb_a": EstimatorA,
    "iwae": IWAE,
    "dreg": DReG,
    "stl": StickingTheLanding,
    "score_function": ScoreFunction,
}
