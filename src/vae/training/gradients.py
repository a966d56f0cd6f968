"""The form of a run's gradient: eager, compiled or data-parallel. This is the only place that chooses."""

import warnings
from typing import Any

from torch import nn

from vae.algorithms import AEVB, Gradient, State, eager
from vae.models import Model, device_of
from vae.precision import ROUNDOFF, parameter_dtype
from vae.randomness import Streams
from vae.ranks import Stop
from vae.training.build import uses_library_networks
from vae.training.compiled import CompiledGradient, disagreement
from vae.training.parallel import data_parallel
from vae.training.settings import TrainSettings

CALLS = 4  # of the comparison: a CUDA graph is recorded in the second, and replayed from then on
ENOUGH_STEPS = 8_000  # compiling takes 3 to 17 seconds, and saves about 1 to 2 ms per step of the dense configs


def form_of_run(setting: str, model: Model, batches: Any, steps: int) -> str:
    """`compiled` or `plain`: a function of the config, the length of the run and the kind of device, never of a timing.

    `auto` compiles the library's own networks if the run is long enough to win by it; on a CPU, dense ones only.
    """
    if setting == "never" or batches.batch_size is None:
        return "plain"
    dense = not any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules())
    wins = uses_library_networks(model) and steps >= ENOUGH_STEPS and (dense or device_of(model).type == "cuda")
    return "compiled" if setting == "always" or wins else "plain"


def choose(
    form: str, algorithm: AEVB, state: State, batches: Any, train: TrainSettings, stop: Stop
) -> tuple[Gradient, str]:
    """The gradient of a form, and the form that it really has.

    A compiled gradient is taken only if it agrees with the eager one on the first minibatch. Otherwise a warning gives
    the reason and the gradient is eager: what a machine cannot run, or runs wrongly, costs a line and no result.
    """
    if stop.ranks.several:
        return data_parallel(algorithm, state, stop, train.seed), "parallel"
    if form == "compiled":
        streams = Streams(train.seed, device_of(state.model))  # those of the run stay as they are
        try:
            batch = batches.example(streams)
            needed = algorithm.objective.noises(state.model, len(batch.x))
            noises = [streams.draw(needed, parameter_dtype(train.precision)) for _ in range(CALLS)]
            gradient = CompiledGradient(algorithm, state.model, len(batch.x))
            reason = disagreement(gradient, algorithm, state, batch, noises, ROUNDOFF[train.precision])
        except Exception as error:  # whatever a compiler, or a user's own module, may raise
            reason = one_line(error)
        if reason is None:
            return gradient, "compiled"
        warnings.warn(f"the step is not compiled, because that fails: {reason}", stacklevel=2)
    return eager, "plain"


def one_line(error: Exception) -> str:
    """The first line of an error, and the second if the first only announces it."""
    first, *more = str(error).strip().splitlines() or [type(error).__name__]
    return f"{first} {more[0]}" if more and first.endswith(":") else first
