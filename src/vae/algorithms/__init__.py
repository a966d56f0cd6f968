"""Floor 5: algorithms as values with `init` and `step`."""

from vae.algorithms.aevb import AEVB, Gradient, Values, eager
from vae.algorithms.base import Algorithm, State, Sums, check_finite, largest_gradient
from vae.algorithms.mcem import MCEM
from vae.algorithms.optimizers import OPTIMIZERS
from vae.algorithms.rows import ALGORITHMS
from vae.algorithms.schedules import SCHEDULES
