"""Floor 5: algorithms as values with `init` and `step`."""

from vae.algorithms.aevb import AEVB, Gradient, Values, eager
from vae.algorithms.base import Algorithm, State, Sums, check_finite, largest_gradient
from vae.algorithms.optimizers import OPTIMIZERS
from vae.algorithms.schedules import SCHEDULES

ALGORITHMS = {"aevb": AEVB, "wake_sleep": AEVB, "full_vb": AEVB}  # the same step on other surrogates
