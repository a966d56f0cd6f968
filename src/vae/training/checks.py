"""All that must hold before training, checked once: parts that go together, and data that fit them."""

import copy

import torch
from torch import nn

from vae.data import Data, Loader, Split, kind_of
from vae.distributions import kl_divergence
from vae.errors import ConfigError, UsageError
from vae.likelihoods.advice import check_kind, check_levels
from vae.models import VAE
from vae.objectives import Objective, WeightedKL
from vae.training.build import build_algorithm
from vae.training.settings import Settings


def check(settings: Settings, data: Data | Loader, model: VAE) -> None:
    """ConfigError or UsageError if a model cannot be trained on the data with these settings.

    The values of a DataLoader are looked at minibatch by minibatch, when it gives them.
    """
    if isinstance(data, Data):
        if data.shape != model.data_shape:
            raise UsageError(f"the data have shape {data.shape}, and the model is of {model.data_shape}")
        for split in (data.train, data.validation, data.test):
            if split is not None:
                check_support(split, data.name, model)
        smallest = len(data.train) % settings.train.batch_size or settings.train.batch_size
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
    """ConfigError if the bound is minus infinity, or the objective's gradient biased, for this model."""
    if model.posterior_head.kl_is_infinite:
        raise ConfigError(
            "model.posterior: it has no variance, so that its KL to the prior is infinite; use laplace or logistic, "
            "or a student_t with df above 2"
        )
    reason = objective.bias(model)
    if reason is not None:
        raise ConfigError(f"objective: {reason}")
    if isinstance(objective, WeightedKL) and objective.free_bits:
        size: int = model.posterior_head.output_size  # type: ignore[assignment]
        q = model.posterior_head(torch.zeros(1, size).to(model.prior.mean))
        if kl_divergence(q, model.prior).ndim < 2:
            raise ConfigError(
                f"modifiers.free_bits: the latents of a {type(q).__name__} have no KL of their own; use a posterior of "
                "independent latents, such as diagonal_gaussian"
            )


def check_support(split: Split, source: str, model: VAE) -> None:
    """ConfigError if values of the data lie outside the likelihood's support: range, kind, and what fits."""
    head = model.likelihood_head
    check_kind(head, kind_of(split), split.range, source)
    if hasattr(head, "levels") and not split.dynamic:
        check_levels(head, split.values, source)


def check_batch_norm(
    model: VAE, smallest_batch: int, num_samples: int, where: str = "the last minibatch of an epoch"
) -> None:
    """ConfigError if a training step would normalise over a single value, which has no variance."""
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
