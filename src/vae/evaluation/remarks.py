"""What the numbers of an evaluation mean, in sentences: collapsed latents, overfitting, training that was short."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from vae.evaluation.base import mean_and_stderr
from vae.schema import names_of

COLLAPSED = 0.01  # nats of KL, the mean over the data, below which a latent says nothing
RISING = 0.1  # nats by which the training ELBO has to rise to be worth a word


def on_collapse(kl_per_dimension: Sequence[float]) -> Iterator[str]:
    """Names the latents that carry nothing, unless all do (of which PosteriorCollapse warns)."""
    none = [j for j, kl in enumerate(kl_per_dimension) if kl < COLLAPSED]
    used = len(kl_per_dimension) - len(none)
    if none and used:
        what = f"latent {none[0] + 1} has" if len(none) == 1 else f"latents {names_of([j + 1 for j in none], 8)} have"
        yield (
            f"{what} collapsed (KL below {COLLAPSED:g} nats), so a model of {used} latents would do as well; to use "
            "more, try modifiers.warm_up=10 (epochs), modifiers.free_bits=0.1, or a smaller modifiers.beta"
        )


def on_fit(held_out: Tensor, train: Tensor, name: str, lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Whether the ELBO of training data (M,) is above that of held-out data (N,), with a 95 % interval; if not, whether
    it still rose in training."""
    held, seen = mean_and_stderr(held_out), mean_and_stderr(train)
    if held["stderr"] is None or seen["stderr"] is None:
        return
    gap, reach = seen["mean"] - held["mean"], 1.96 * math.hypot(held["stderr"], seen["stderr"])
    facts = f"the first {len(train)} training data have an ELBO {abs(gap):.2f} nats {'above' if gap > 0 else 'below'}"
    facts += f" that of the {name} data (95 % interval of the difference {gap - reach:.2f} to {gap + reach:.2f})"
    if gap > reach:
        yield f"overfitting: {facts}; more data, train.patience with validation data, or smaller networks lessen it"
        return
    yield f"no overfitting to be seen: {facts}"
    curve = [line["elbo"] for line in lines if line.get("split") == "train"]
    if fifth := len(curve) // 5:
        last, before = (sum(curve[rows]) / fifth for rows in (slice(-fifth, None), slice(-2 * fifth, -fifth)))
        if last - before > max(RISING, 2 * seen["stderr"] / math.sqrt(fifth)):
            yield (
                f"underfitting: the training ELBO still rose by {last - before:.2f} nats over the last {fifth} of "
                f"{len(curve)} epochs; train longer"
            )
