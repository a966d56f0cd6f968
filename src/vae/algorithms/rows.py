"""The algorithms by name: what each makes of the chosen objective and the number of training data."""

from collections.abc import Callable
from typing import Annotated, Literal

from vae.algorithms.aevb import AEVB
from vae.algorithms.mcem import MCEM
from vae.objectives import CompleteData, FullVB, Objective, WakeSleep
from vae.schema import Count, Interval


def aevb(objective: Objective, num_data: int) -> AEVB:
    """Auto-encoding variational Bayes: encoder and decoder ascend the objective together."""
    return AEVB(objective)


def wake_sleep(objective: Objective, num_data: int, *, dreams: Count = 1) -> AEVB:
    """Hinton et al. 1995: the decoder learns from data, the encoder from dreams, so many for each datum."""
    return AEVB(WakeSleep(num_samples=objective.num_samples, dreams=dreams))


def full_vb(objective: Objective, num_data: int) -> AEVB:
    """Appendix F of the paper: the decoder's weights are random too."""
    return AEVB(FullVB(num_data=num_data, num_samples=objective.num_samples))


def mcem(
    objective: Objective,
    num_data: int,
    *,
    chains: Literal["persistent", "fresh"] = "persistent",
    leapfrog: Count = 10,
    acceptance: Annotated[float, Interval(0.1, 0.99)] = 0.9,
    updates: Count = 5,
) -> MCEM:
    """Monte Carlo EM, appendix E of the paper: draws of p(z|x) by HMC, then updates of the weights with these draws.

    With train.batch_size as large as the training split, all weight updates are those of the whole of it.
    """
    return MCEM(CompleteData(), num_data=num_data, persistent=chains == "persistent", leapfrog=leapfrog,
                acceptance=acceptance, updates=updates)  # fmt: skip


ALGORITHMS: dict[str, Callable[..., AEVB]] = {"aevb": aevb, "wake_sleep": wake_sleep, "full_vb": full_vb, "mcem": mcem}
