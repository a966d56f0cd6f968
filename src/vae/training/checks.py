"""All that must hold before training, checked once: parts that go together, and data that fit them."""

import copy

import numpy as np
import torch
from torch import Tensor, nn

from vae.data import SINGLE, Data, Doubt, Loader, Split, kind_of
from vae.distributions import kl_divergence
from vae.errors import ConfigError, DataError, UsageError, tell
from vae.likelihoods import Gaussian
from vae.likelihoods.advice import check_kind, check_levels
from vae.models import VAE, Model, Regression, example
from vae.objectives import Objective, WeightedKL
from vae.training.build import build_algorithm
from vae.training.settings import Settings


def check(settings: Settings, data: Data | Loader, model: Model) -> None:
    """ConfigError or UsageError if a model cannot be trained on the data with these settings.

    The values of a DataLoader are looked at minibatch by minibatch, when it gives them.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UsageError("no parameter of the model requires a gradient, so there is nothing to train")
    if isinstance(data, Data) and data.shape != model.data_shape:
        raise UsageError(f"the data have shape {data.shape}, and the model is of {model.data_shape}")
    if isinstance(model, Regression):
        assert isinstance(data, Data), "begin takes no loader for a regression"
        check_targets(data, model)
        return check_parts(settings, model)
    if isinstance(data, Data):
        if data.train.y is not None and data.train.labels is None:
            raise DataError(
                f"{data.source}: y are targets of a regression (real numbers, or several per datum); labels are whole "
                "numbers, one per datum: leave y out, or train with model.name: regression"
            )
        for split in (data.train, data.validation, data.test):
            if split is not None:
                check_support(split, data.source, model, data.doubt)
                check_labels(split.labels, data.source, model)
        smallest: int | None = len(data.train) % settings.train.batch_size or settings.train.batch_size
        data.tell()
        if isinstance(head := model.likelihood_head, Gaussian) and data.kind == "real" and not head.standardise:
            tell_scale(data, head)
    else:
        smallest = data.smallest_batch
    if settings.train.patience is not None and getattr(data, "validation", None) is None:
        raise ConfigError("train.patience stops early by the validation ELBO: set data.validation_size too")
    if isinstance(data, Loader) and settings.train.algorithm.name == "mcem":
        raise UsageError(
            "algorithm: mcem keeps a chain for each datum, and a DataLoader does not say which it gives; use data of "
            "vae.load_data or vae.Data.from_arrays"
        )
    samples = settings.objective.options["num_samples"]
    if isinstance(data, Loader) and smallest is None:
        data.needs_two = single_datum_fails(model, samples)
    elif smallest == 1 and single_datum_fails(model, samples):
        raise ConfigError(SINGLE.format("the last minibatch of an epoch"))
    check_parts(settings, model)


def check_parts(settings: Settings, model: Model) -> None:
    """ConfigError if model, objective and optimizer do not go together."""
    algorithm = build_algorithm(settings, 1, 1)
    if isinstance(model, VAE):
        check_objective(algorithm.objective, model)
    algorithm.init(model)  # torch may refuse the optimizer's options


def check_targets(data: Data, model: Regression) -> None:
    """DataError if the data are none for a regression: no targets, or targets that do not vary."""
    if data.classes:
        raise DataError(f"{data.source}: the targets y are words; a regression predicts numbers")
    for split in filter(None, (data.train, data.validation, data.test)):
        y = model.as_targets(split.y)
        if split is data.train and len(y) < 2:
            raise DataError(f"{data.source}: one row to train on; a regression needs two or more")
        if split is data.train and bool((constant := (y == y[0]).all(0)).any()):
            column = int(constant.int().argmax())
            raise DataError(
                f"{data.source}: target {column} is {y[0, column]:g} in every row; there is nothing to learn"
            )


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


def check_support(split: Split, source: str, model: VAE, doubt: Doubt | None = None) -> None:
    """ConfigError if values of the data lie outside the likelihood's support: range, kind, and what fits."""
    head = model.likelihood_head
    check_kind(head, kind_of(split), split.range, source, f"{doubt.what}: {doubt.mend}" if doubt else "")
    if hasattr(head, "levels") and not split.dynamic:
        check_levels(head, split.values, source)


def tell_scale(data: Data, head: Gaussian) -> None:
    """Warn of columns whose spread is far from the decoder's standard deviation, so that training takes long."""
    if data.train.x.ndim != 2:
        return
    low, high = np.quantile(data.train.x[:10_000].numpy(), (0.25, 0.75), axis=0)  # which a few far out do not move
    if (std := (high - low) / 1.349).max() > 100 * head.std:
        column = int(std.argmax())
        name = data.columns[column] if data.columns else column
        tell(
            f"{data.source}: column {name} has a standard deviation of {std[column]:.3g}, and the Gaussian likelihood "
            f"begins with {head.std:g}; set model.likelihood.standardise=true to train in few epochs"
        )


def check_labels(labels: Tensor | None, source: str, model: VAE) -> None:
    """DataError if a conditional model lacks a label, or there is one that it does not have."""
    if model.classes and labels is None:
        raise DataError(f"{source}: a conditional model needs a label for each datum, and there are none")
    low, high = (0, 0) if labels is None else (int(labels.min()), int(labels.max()))
    if model.classes and not 0 <= low <= high < model.classes:
        raise DataError(f"{source}: has labels from {low} to {high}, and the model those from 0 to {model.classes - 1}")


def single_datum_fails(model: Model, num_samples: int) -> bool:
    """Whether a training step on one datum would normalise over a single value, which has no variance."""
    if isinstance(model, Regression):
        return False
    shapes = ((model.encoder, 1, model.data_shape), (model.decoder, num_samples, (model.latent_dim,)))
    for network, rows, shape in shapes:
        if rows == 1 and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules()):
            try:
                copy.deepcopy(network).train()(*example(shape, model.classes, 1, model.prior.mean))
            except ValueError:
                return True
    return False
