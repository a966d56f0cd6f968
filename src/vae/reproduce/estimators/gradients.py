"""Measured bias and variance of gradient estimators; each comparison is a series of rows (flat dictionaries).

The gradients are of E[x^2] in the mean of a normal variable, whose exact values are known (Wang 2018), and of a VAE,
compared with the mean of many reparameterized samples.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae.data import Split
from vae.distributions import Normal
from vae.errors import UsageError
from vae.models import VAE, evaluating
from vae.objectives import (
    IWAE,
    DReG,
    EstimatorA,
    EstimatorB,
    Memory,
    Objective,
    ScoreFunction,
    StickingTheLanding,
    leave_one_out,
    remember,
    running_mean,
    score_surrogate,
)
from vae.randomness import datum_noise, derive

Row = dict[str, Any]
DECAY = 0.9  # of running baselines
WARM_UP = 50  # steps after which such a baseline has forgotten its start


def moments(values: Tensor) -> Row:  # (n,)
    """Mean and variance of independent values, with their standard errors."""
    n, mean = len(values), values.mean()
    squares = (values - mean).square()
    variance = squares.sum() / (n - 1)
    return {
        "mean": mean.item(),
        "mean_stderr": math.sqrt(variance / n),
        "variance": variance.item(),
        "variance_stderr": (squares.std() / math.sqrt(n)).item(),
    }


def generator(seed: int, *names: str | int) -> torch.Generator:
    """The random generator of a comparison."""
    return torch.Generator().manual_seed(derive(seed, "estimators", *names))


# ------------------------------------------------------------------------------------- E[x^2], x ~ N(theta, 1)


def _past_means(f: Tensor) -> Tensor:  # (L, R) -> (R,)
    """The running mean of f before each column, columns taken as consecutive steps."""
    memory: Memory = {}
    means = torch.zeros_like(f[0])
    for step, values in enumerate(f.T):
        means[step] = running_mean(memory)
        memory = remember(memory, values, DECAY)
    return means


@dataclass(frozen=True)
class Known:
    """An estimator of d E[x^2] / d theta = 2 theta, and its variance in closed form."""

    baseline: Callable[[Tensor, float], Tensor | float] | None  # of f (L, R) and theta; None: reparameterized
    variance: Callable[[float, int], float]  # of theta and L
    least: int = 1  # fewest samples


KNOWN = {
    "no baseline": Known(lambda f, t: 0.0, lambda t, L: (t**4 + 14 * t**2 + 15) / L),
    "b = E f": Known(lambda f, t: t**2 + 1, lambda t, L: (8 * t**2 + 10) / L),
    "running b": Known(
        lambda f, t: _past_means(f),
        lambda t, L: (8 * t**2 + 10 + (1 - DECAY) / (1 + DECAY) * (4 * t**2 + 2) / L) / L,
    ),
    "leave one out": Known(
        lambda f, t: leave_one_out(f), lambda t, L: (8 * t**2 + 10 + (8 * t**2 + 2) / (L - 1)) / L, least=2
    ),
    "optimal b": Known(lambda f, t: t**2 + 3, lambda t, L: (8 * t**2 + 6) / L),
    "reparameterized": Known(None, lambda t, L: 4 / L),
}


def compare_known(theta: float, num_samples: int, gradients: int, seed: int = 0) -> list[Row]:
    """Every estimator of d E[x^2] / d theta from L samples, x ~ N(theta, 1), measured and exact.

    The score function's with a baseline b is (1/L) sum_l (x_l^2 - b) (x_l - theta), the reparameterized one
    (1/L) sum_l 2 x_l (Wang 2018, section 2.2.1).
    """
    noise = torch.randn(
        num_samples, gradients, generator=generator(seed, "known", str(theta), num_samples), dtype=torch.float64
    )
    rows = []
    for name, known in KNOWN.items():
        if num_samples >= known.least:
            place = {"estimator": name, "theta": theta, "num_samples": num_samples, "gradients": gradients}
            exact = {"exact_mean": 2 * theta, "exact_variance": known.variance(theta, num_samples)}
            rows.append(place | moments(_known_gradients(known, theta, noise)) | exact)
    return rows


def _known_gradients(known: Known, theta: float, noise: Tensor) -> Tensor:  # (L, R) -> (R,)
    mean = torch.full_like(noise[0], theta, requires_grad=True)
    x = mean + noise
    if known.baseline is None:
        surrogate = x.square().mean(0)
    else:
        q = Normal(mean, torch.zeros_like(mean))
        x = x.detach()
        f = x.square()
        surrogate = score_surrogate(f, q.log_prob(x), known.baseline(f, theta))
    return torch.autograd.grad(surrogate.sum(), mean)[0]


# ------------------------------------------------------------------------------------- the gradient of a VAE

COMPARED: dict[str, Callable[[int], Objective]] = {
    "score_function": lambda L: ScoreFunction(num_samples=L, baseline="none"),
    "score_function, running": lambda L: ScoreFunction(num_samples=L, baseline="running", decay=DECAY),
    "score_function, leave_one_out": lambda L: ScoreFunction(num_samples=L, baseline="leave_one_out"),
    "sgvb_a": lambda L: EstimatorA(num_samples=L),
    "sgvb_b": lambda L: EstimatorB(num_samples=L),
    "iwae": lambda L: IWAE(num_samples=L),
    "dreg": lambda L: DReG(num_samples=L),
    "stl": lambda L: StickingTheLanding(num_samples=L),
}
OF_THE_BOUND = ("iwae", "dreg", "stl")  # whose exact gradient, for several samples, is that of L_K, not of the ELBO


def _gradients(
    objective: Objective, model: VAE, batch: Callable[[], Tensor], count: int, stream: str, seed: int
) -> Iterator[dict[str, Tensor]]:
    """The gradient of the surrogate's mean over each minibatch, {encoder: (P,), decoder: (P',)}.

    If the objective has a memory, it is first filled on WARM_UP minibatches, which give no gradients.
    """
    networks = {name: list(getattr(model, name).parameters()) for name in ("encoder", "decoder")}
    kind, shape, _ = model.noise
    memory: Memory = {}
    step, start = 0, 0
    while step < start + count:
        x = batch()
        places = range(step * len(x), (step + 1) * len(x))
        noise = datum_noise(kind, seed, stream, places, (objective.num_samples, *shape)).transpose(0, 1).to(x)
        estimate, memory = objective(model, x, {"eps": noise}, memory, step)
        flat = torch.autograd.grad(estimate.surrogate.mean(), [p for ps in networks.values() for p in ps])
        if step == 0 and memory:
            start = WARM_UP
        if step >= start:
            split = len(networks["encoder"])
            yield {
                "encoder": torch.cat([g.flatten() for g in flat[:split]]).double(),
                "decoder": torch.cat([g.flatten() for g in flat[split:]]).double(),
            }
        step += 1


def _gradient_moments(
    model: VAE, stream: Iterator[dict[str, Tensor]], directions: dict[str, Tensor] | None = None
) -> dict[str, Row]:
    """For each network: the trace of the gradient's covariance, and the moments of its component along a direction.

    That trace is the mean of half the squared distance of two independent gradients, so no sum of vectors is kept.
    """
    halves: dict[str, list[Tensor]] = {}
    along: dict[str, list[Tensor]] = {}
    with evaluating(model), torch.enable_grad():
        for one, other in zip(stream, stream, strict=False):
            for part in one:
                halves.setdefault(part, []).append(0.5 * (one[part] - other[part]).square().sum())
                if directions is not None:
                    along.setdefault(part, []).extend(g[part] @ directions[part] for g in (one, other))
    rows = {}
    for part, values in halves.items():
        trace = moments(torch.stack(values))
        rows[part] = {"variance": trace["mean"], "variance_stderr": trace["mean_stderr"]}
        if directions is not None:
            component = moments(torch.stack(along[part]))
            rows[part] |= {"component": component["mean"], "component_stderr": component["mean_stderr"]}
    return rows


def _mean(model: VAE, stream: Iterator[dict[str, Tensor]]) -> dict[str, Tensor]:
    total: dict[str, Tensor] = {}
    with evaluating(model), torch.enable_grad():
        for count, gradient in enumerate(stream, 1):
            total = {part: total.get(part, 0) + (g - total.get(part, 0)) / count for part, g in gradient.items()}
    return total


def _images(model: VAE, split: Split, rows: Tensor) -> Tensor:
    like = model.prior.mean
    return split.images(rows, like.dtype, like.device)


def compare_against_samples(
    model: VAE, split: Split, num_samples: Sequence[int], batch_size: int, gradients: int, seed: int = 0
) -> Iterator[Row]:
    """Bias and variance of each estimator, over the noise alone, on one minibatch, against the number of samples.

    The variance is the trace of the gradient's covariance. The bias is the component along the exact gradient minus
    the length of that, relative to it; the exact one is the mean over many other, reparameterized samples: of the ELBO
    by sgvb_a, of L_K by dreg (by iwae if dreg is biased).
    """
    rows = torch.randperm(len(split), generator=generator(seed, "minibatch"))[:batch_size]
    x = _images(model, split, rows)

    def stream(objective: Objective, name: str, count: int) -> Iterator[dict[str, Tensor]]:
        return _gradients(objective, model, lambda: x, count, f"estimators/{name}", seed)

    references: dict[int, tuple[dict[str, Tensor], dict[str, Row]]] = {}

    def reference(K: int) -> tuple[dict[str, Tensor], dict[str, Row]]:
        """Unit vectors along the gradient of L_K, and its length along them from further samples."""
        if K not in references:
            dreg = DReG(num_samples=K)
            of_k: Objective = dreg if dreg.bias(model) is None else IWAE(num_samples=K)
            best: Objective = of_k if K > 1 else EstimatorA(num_samples=16)
            mean = _mean(model, stream(best, f"direction {K}", 2 * gradients))
            directions = {part: g / g.norm() for part, g in mean.items()}
            references[K] = directions, _gradient_moments(model, stream(best, f"length {K}", 2 * gradients), directions)
        return references[K]

    for L in num_samples:
        for name, made in COMPARED.items():
            if L == 1 and name.endswith("leave_one_out"):
                continue
            objective = made(L)
            directions, lengths = reference(L if name in OF_THE_BOUND else 1)
            try:
                found = _gradient_moments(model, stream(objective, f"noise {L}", gradients), directions)
            except UsageError:  # it needs what this model does not have, such as a KL in closed form
                continue
            for part, row in found.items():
                length = lengths[part]["component"]
                error = math.hypot(row["component_stderr"], lengths[part]["component_stderr"])
                yield {
                    "estimator": name,
                    "network": part,
                    "num_samples": L,
                    "batch_size": batch_size,
                    "gradients": gradients,
                    **row,
                    "exact_component": length,
                    "relative_bias": row["component"] / length - 1,
                    "relative_bias_stderr": error / abs(length),
                    "note": objective.bias(model),
                }


def compare_against_data(
    model: VAE, split: Split, batch_sizes: Sequence[int], samples_of: dict[str, int], gradients: int, seed: int = 0
) -> Iterator[Row]:
    """The variance of each estimator over noise and minibatches, drawn at random from a split, against their size M."""
    for M in batch_sizes:
        for name, L in samples_of.items():
            chosen = generator(seed, "minibatches", M)

            def batch(M: int = M, chosen: torch.Generator = chosen) -> Tensor:
                return _images(model, split, torch.randint(len(split), (M,), generator=chosen))

            stream = _gradients(COMPARED[name](L), model, batch, gradients, f"estimators/minibatches {M}", seed)
            try:
                found = _gradient_moments(model, stream)
            except UsageError:
                continue
            place = {"estimator": name, "num_samples": L, "batch_size": M, "gradients": gradients}
            for part, row in found.items():
                yield {**place, "network": part, **row}
