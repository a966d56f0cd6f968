"""What a colleague would say of a config and its data before the training: sentences, each a fact and what it means."""

import copy
import itertools
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae.data import Data, Split
from vae.likelihoods import LIKELIHOODS, Gaussian
from vae.likelihoods.advice import FITTING_SUPPORTS
from vae.models import VAE, Model, Standardise
from vae.precision import parameter_dtype
from vae.ranks import Ranks
from vae.schema import names_of
from vae.training.run import begin, plan_of, settings_of
from vae.training.settings import Settings
from vae.training.trainer import Stepper

STEPS = 5  # that are timed, after two that are not
ROWS = 4_000  # training data whose covariance is taken, about


def diagnose(
    model: Model,
    data: Data,
    *,
    objective: str | dict[str, Any] = "sgvb_b",
    modifiers: dict[str, Any] | None = None,
    **train: Any,
) -> list[str]:
    """What a colleague would say before `vae.fit` with the same arguments: sentences on data, likelihood, and time.

    The model stays as it is. ConfigError, DataError or UsageError if it cannot be trained on the data.
    """
    settings = settings_of(model, data, objective, modifiers or {}, train)
    return list(diagnosis(settings, data, copy.deepcopy(model)))


def diagnosis(settings: Settings, data: Data, model: Model) -> Iterator[str]:
    """Sentences on the data, on how likelihood and latents suit them, and on the time that training will take.

    ConfigError or DataError if the model cannot be trained on the data. The model is trained for a few steps.
    """
    yield str(data)
    yield f"{sum(p.numel() for p in model.parameters()):,} parameters"
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        run, algorithm = begin(settings, model, data, Ranks.joined())  # with all checks of a training run
    yield from (str(warning.message) for warning in told)
    if isinstance(model, VAE):
        yield _likelihoods(data.kind, settings.model)
    yield from _labels(data)
    yield from _constant(data, model)
    yield from _copies(data)
    if isinstance(model, VAE) and isinstance(model.likelihood_head, Gaussian):
        head, beta = model.likelihood_head, settings.modifiers.beta
        some = slice(None, None, max(1, len(data.train) // ROWS))
        x = data.train.images(some).double()
        x = Standardise.of(x)(x) if head.standardise else x
        variances = principal_variances(x.flatten(1), model.latent_dim)
        yield variance_advice(variances, head.std**2, beta, learned=head.variance != "fixed")
    stepper = Stepper(algorithm, run.state, run.batches, run.streams, parameter_dtype(settings.train.precision))
    yield _duration(stepper, settings)


def principal_variances(x: Tensor, latents: int) -> Tensor:  # (N, D) -> (at most J,)
    """The largest eigenvalues of the covariance of data, as many as latents, largest first."""
    centred = x - x.mean(0)
    if x.shape[1] > len(x):  # the same eigenvalues, from the smaller matrix
        centred = centred.T
    return torch.linalg.eigvalsh(centred.T @ centred / len(x)).flip(0)[:latents].clamp(min=0)


def used_latents(variances: Tensor, noise: float, beta: float = 1.0) -> int:
    """How many latents a linear VAE uses whose decoder has the variance `noise`, at the optimum of its bound.

    A latent is worth its KL along an eigenvector of the data's covariance if the eigenvalue exceeds beta times the
    decoder's variance (Lucas et al. 2019, "Don't blame the ELBO!": the optimum is probabilistic PCA's).
    """
    return int((variances > beta * noise).sum())


def variance_advice(variances: Tensor, noise: float, beta: float, *, learned: bool) -> str:
    """What a Gaussian decoder of this variance can learn of data with these principal variances."""
    used, of = used_latents(variances, noise, beta), len(variances)
    largest, begins = variances[0].item(), "begins with" if learned else "has"
    level = f"the decoder {begins} a variance of {noise:.3g}" + (f", times beta {beta:g}" if beta != 1 else "")
    if used == of:
        return f"{level}; the data vary by more along {of} directions, so every latent has something to say"
    what = f"{level}; the covariance of the data has the largest eigenvalue {largest:.3g}, and {used} of the first {of}"
    what += f" are above: a linear VAE would use {used} of {of} latents"
    if learned:
        return f"{what} at first; the variance is learned, so more come later, sooner if std begins lower"
    return f"{what}, however long it is trained; standardise the data, or set a smaller model.likelihood.std"


def _likelihoods(kind: str, model: Any) -> str:
    fitting = [name for name, row in LIKELIHOODS.items() if getattr(row, "support", None) in FITTING_SUPPORTS[kind]]
    return f"likelihoods that fit {kind} values: {', '.join(fitting)}; chosen: {model.likelihood.name}"


def _labels(data: Data) -> Iterator[str]:
    if data.train.labels is not None:
        counts = data.train.labels.unique(return_counts=True)[1]
        yield f"{len(counts)} labels, on {int(counts.min())} to {int(counts.max())} training data each"


def _constant(data: Data, model: Model) -> Iterator[str]:
    """Elements that never vary, and pictures of a single colour."""
    split, x = data.train, data.train.x.flatten(1)
    same = (x == x[0]).all(0)
    if same.any():
        places = same.nonzero().flatten().tolist()
        names = names_of([data.columns[i] for i in places] if data.columns else places, 5)
        learned = isinstance(model, VAE) and isinstance(model.likelihood_head, Gaussian)
        limit = "; their density grows until the floor of the decoder's variance" if learned else ""
        which = f" ({names})" if split.x.ndim == 2 else ""
        yield f"{len(places)} of {x.shape[1]} elements are the same in all training data{which}{limit}"
    blank = (x == x[:, :1]).all(1)
    if x.shape[1] > 1 and blank.any():
        yield f"{int(blank.sum())} training data are blank, the same value everywhere, such as {_places(split, blank)}"


def _copies(data: Data) -> Iterator[str]:
    """Data that come twice, within the training data and between them and the others."""
    seen = set[bytes]()
    counts = dict[str, tuple[int, str]]()
    for name, split in (("training", data.train), ("validation", data.validation), ("test", data.test)):
        if split is not None:
            again = list[bool]()
            for row in split.x.flatten(1).numpy():
                value = row.tobytes()
                again.append(value in seen)
                if name == "training":
                    seen.add(value)
            if any(again):
                counts[name] = sum(again), _places(split, torch.tensor(again))
    for name, (count, places) in counts.items():
        of = "repeat an earlier one" if name == "training" else "are also among the training data"
        yield f"{count} {name} data {of}, such as {places}"


def _places(split: Split, which: Tensor) -> str:
    return names_of(split.index[which].tolist(), 3)


def _duration(stepper: Stepper, settings: Settings) -> str:
    """How long an epoch will take, by the median of a few steps."""
    batches, plan, times = stepper.batches, plan_of(settings), list[float]()
    for _ in itertools.islice(itertools.chain.from_iterable(stepper.epoch(e, 0) for e in itertools.count()), STEPS + 3):
        times.append(time.perf_counter())
    epoch = float(np.median(np.diff(times)[2:])) * batches.num_batches
    steps = plan.steps(batches.num_batches, batches.num_data)
    total = epoch * steps / batches.num_batches
    return (
        f"an epoch of {batches.num_batches} steps takes about {_seconds(epoch)} here, and all {steps} steps "
        f"{_seconds(total)} (without compiling, evaluation and figures)"
    )


def _seconds(value: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if value > 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.2g} s"
