"""All that must hold before training, checked once: parts that go together, and data that fit them."""

import copy

import torch
from torch import Tensor, nn

from vae.data import Data, Loader, Split, kind_of
from vae.distributions import kl_divergence, support_of
from vae.errors import ConfigError, UsageError
from vae.likelihoods import FITTING_SUPPORTS, LIKELIHOODS
from vae.models import VAE
from vae.objectives import Objective, WeighedKL
from vae.training.build import build_algorithm
from vae.training.settings import Settings


def check(settings: Settings, data: Data | Loader, model: VAE) -> None:
    """ConfigError or UsageError if a model cannot be trained on data as the settings say.

    The values of a DataLoader are looked at minibatch by minibatch, when it gives them.
    """
    if isinstance(data, Data):
        if data.shape != model.data_shape:
            raise UsageError(f"the data have shape {data.shape}, and the model is of {model.data_shape}")
        for split in (data.train, data.validation, data.test):
            if split is not None:
                check_support(split, data.name, model)
        size = settings.train.batch_size
        smallest = len(data.train) % size or size
    else:
        smallest = data.smallest_batch
    check_batch_norm(model, smallest, settings.objective.options["num_samples"])
    check_parts(settings, model)


def check_parts(settings: Settings, model: VAE) -> None:
    """ConfigError if model, objective and optimizer do not go together."""
    algorithm = build_algorithm(settings, 1, 1)
    check_objective(algorithm.objective, model)
    algorithm.init(model)  # torch may refuse the optimizer's options


def check_objective(objective: Objective, model: VAE) -> None:
    """ConfigError where the bound is minus infinity, or the objective's gradient biased, for this model."""
    if model.posterior_head.kl_is_infinite:
        raise ConfigError(
            "model.posterior: it has no variance, so that its KL to the prior is infinite; use laplace or logistic, "
            "or a student_t with df above 2"
        )
    reason = objective.bias(model)
    if reason is not None:
        raise ConfigError(f"objective: {reason}")
    if isinstance(objective, WeighedKL) and objective.free_bits:
        size: int = model.posterior_head.output_size  # type: ignore[assignment]
        q = model.posterior_head(torch.zeros(1, size).to(model.prior.mean))
        if kl_divergence(q, model.prior).ndim < 2:
            raise ConfigError(
                f"modifiers.free_bits: the latents of a {type(q).__name__} have no KL of their own; use a posterior of "
                "independent latents, such as diagonal_gaussian"
            )


def check_support(split: Split, source: str, model: VAE) -> None:
    """ConfigError where values of the data lie outside the likelihood's support: range, kind, and what fits."""
    check_kind(kind_of(split), split.range, source, model)
    levels = getattr(model.likelihood_head, "levels", None)
    if levels is not None and not split.dynamic:
        _check_levels(levels, split.values, source, model)


def _check_levels(levels: int, values: Tensor, source: str, model: VAE) -> None:
    """ConfigError where values lie off the grid of so many levels: one of them, and the grid that they do lie on."""
    support = support_of(f"levels_{levels}")
    if support(values):
        return
    values = values.unique()
    off = next(value.item() for value in values if not support(value))
    fitting = (k for k in range(2, 257) if support_of(f"levels_{k}")(values))
    cure = next((f"model.likelihood.levels={k} fits them" for k in fitting), None)
    name = _row(model)
    raise ConfigError(
        f"model.likelihood: {name} of {levels} levels needs {support.words}, and among the data of {source} is "
        f"{off:g}; {cure or 'they lie on no grid of up to 256 levels, so take a likelihood of values on [0, 1]'}"
    )


def check_kind(kind: str, value_range: tuple[float, float], source: str, model: VAE) -> None:
    """ConfigError where data of a kind do not fit the likelihood."""
    head, fits = model.likelihood_head, FITTING_SUPPORTS[kind]
    support = type(head).support  # type: ignore[attr-defined]  # of the row; an instance may name its own grid
    if support in fits:
        return
    low, high = value_range
    within = "" if kind == "counts" else f", on [{low:g}, {high:g}]"
    fitting = [key for key, row in LIKELIHOODS.items() if row.support in fits]  # type: ignore[attr-defined]
    grey = kind in ("grey", "levels") and support == "binary"
    cure = ", or binarize them: data.pixels threshold, static or dynamic" if grey else ""
    raise ConfigError(
        f"model.likelihood: {_row(model)} needs {support_of(str(head.support)).words}, and the data of {source} are "
        f"{kind}{within}; likelihoods that fit: {', '.join(fitting)}{cure}"
    )


def _row(model: VAE) -> str:
    """The name of the likelihood in LIKELIHOODS."""
    return next(key for key, row in LIKELIHOODS.items() if type(model.likelihood_head) is row)


def check_batch_norm(
    model: VAE, smallest_batch: int, num_samples: int, where: str = "the last minibatch of an epoch"
) -> None:
    """ConfigError where a training step would normalise over a single value, which has no variance."""
    shapes = ((model.encoder, smallest_batch, model.data_shape), (model.decoder, smallest_batch * num_samples, None))
    for network, rows, shape in shapes:
        if rows == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
            one = torch.zeros(1, *(shape or (model.latent_dim,))).to(model.prior.mean)
            try:
                copy.deepcopy(network).train()(one)
            except ValueError:
                raise ConfigError(
                    f"train.batch_size: {where} holds a single datum, which batch normalisation cannot take; change "
                    "batch_size, or data.train_size by one"
                ) from None
