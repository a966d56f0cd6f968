"""Floor 4: what is maximised. Pure functions of (model, x, noise, memory, step); randomness is an argument."""

from vae.objectives.base import Estimate, Memory, Objective
from vae.objectives.modifiers import Beta
from vae.objectives.sgvb import EstimatorA, EstimatorB

OBJECTIVES = {"sgvb_b": EstimatorB, "sgvb_a": EstimatorA}

__all__ = ["OBJECTIVES", "Beta", "Estimate", "EstimatorA", "EstimatorB", "Memory", "Objective"]
