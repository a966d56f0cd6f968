"""Floor 5: algorithms as values, init and step. State is what a checkpoint holds, Info what a log line holds."""

from vae.algorithms.aevb import AEVB, Info, State, check_finite, largest_gradient
from vae.algorithms.optimizers import OPTIMIZERS, SCHEDULES

ALGORITHMS = {"aevb": AEVB}

__all__ = ["AEVB", "ALGORITHMS", "OPTIMIZERS", "SCHEDULES", "Info", "State", "check_finite", "largest_gradient"]
