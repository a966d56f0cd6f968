"""From settings to objects."""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vae.algorithms import AEVB, ALGORITHMS, OPTIMIZERS, SCHEDULES
from vae.config import plain
from vae.data import DATASETS, PIXELS, Data, Doubt, load_data
from vae.errors import ConfigError
from vae.likelihoods import LIKELIHOODS
from vae.likelihoods.advice import default_likelihood
from vae.models import MODELS, VAE, Model, Regression, randomise
from vae.networks import DECODERS, ENCODERS
from vae.objectives import OBJECTIVES, Objective, RegressionBound, SharedNoise, WeightedKL
from vae.posteriors import POSTERIORS
from vae.precision import AUTOCAST
from vae.priors import PRIORS
from vae.randomness import seeded
from vae.schema import Part, describe
from vae.training.settings import ModelSettings, ModifierSettings, Settings, read_settings


def build(config: str | Path | dict[str, Any] | Settings, overrides: str | Sequence[str] = ()) -> Any:
    """The model of a config (a YAML file, a mapping, or settings), untrained, its weights drawn from train.seed.

    The data are read only if they alone tell their shape, kind, targets or labels (npz, csv, folder; regression; a
    condition).
    """
    raw = plain(config) if isinstance(config, Settings) else config
    settings = read_settings(raw, [overrides] if isinstance(overrides, str) else overrides)
    if isinstance(settings.model, Part) or settings.model.condition:
        data = load_data(settings.data)
        return build_for(with_likelihood(settings, data.kind, data.shape, data.doubt), data)
    settings, shape, _ = resolve(settings)
    return build_model(settings.model, shape, settings.train.seed)


def build_for(settings: Settings, data: Data) -> Any:
    """The model of settings, with their likelihood, for data that were read."""
    seed = settings.train.seed
    return build_model(settings.model, data.shape, seed, targets=data.targets, classes=data.num_labels)


def resolve(settings: Settings) -> tuple[Settings, tuple[int, ...], str]:
    """The settings of a VAE with their likelihood, the shape of a datum, and the kind of its values."""
    shape, pixels = DATASETS[settings.data.name].shape, settings.data.pixels
    if shape is not None:
        kind = "binary" if PIXELS[pixels] else "levels" if pixels == "levels" else "grey"
        return with_likelihood(settings, kind, shape), shape, kind
    data = load_data(settings.data)
    return with_likelihood(settings, data.kind, data.shape, data.doubt), data.shape, data.kind


def with_likelihood(settings: Settings, kind: str, shape: tuple[int, ...], doubt: Doubt | None = None) -> Settings:
    """The settings with the likelihood that suits data of a kind and shape, if none was named.

    ConfigError if the kind is in doubt, so that a likelihood has to be named.
    """
    if isinstance(settings.model, Part) or settings.model.likelihood is not None:
        return settings
    if doubt is not None and settings.data.pixels == "grey":
        raise ConfigError(
            f"model.likelihood: {doubt.what}; {doubt.mend}; if they are meant as they are, name a likelihood, such as "
            f"model.likelihood={doubt.likelihood}"
        )
    likelihood = default_likelihood(kind, shape, DATASETS[settings.data.name].grey_levels)
    return replace(settings, model=replace(settings.model, likelihood=likelihood))


def build_model(
    settings: ModelSettings | Part,
    data_shape: tuple[int, ...],
    seed: int,
    encoder: nn.Module | None = None,
    decoder: nn.Module | None = None,
    targets: int = 0,
    classes: int = 0,
) -> Any:
    """The model of its settings; a network that is given stands in for the one that the settings name.

    `targets` is how many numbers there are to predict per datum, for a regression, `classes` how many labels there are
    to condition on.
    """
    if isinstance(settings, Part):
        if not targets:
            raise ConfigError(
                f"model: {settings.name} needs targets beside the data: y_train and y_test of an .npz file, or "
                "data.target, a column of a csv file"
            )
        with seeded(seed, "initialisation"):
            return settings.build(MODELS, data_shape, targets)
    assert settings.likelihood is not None, "with_likelihood comes first"
    if settings.condition is None:
        classes = 0
    elif not classes:
        raise ConfigError(
            "model.condition: labels needs a label for each datum, 0, 1, 2, ...; these data have none (of a csv file, "
            "data.labels names their column)"
        )
    likelihood = settings.likelihood.build(LIKELIHOODS, data_shape)
    posterior = settings.posterior.build(POSTERIORS, settings.latent_dim)
    prior = settings.prior.build(PRIORS, settings.latent_dim)
    with seeded(seed, "initialisation"):
        if encoder is None:
            encoder = _network("model.encoder", settings.encoder, ENCODERS, data_shape, posterior.output_size, classes)
        if decoder is None:
            given = settings.latent_dim, likelihood.output_shape, classes
            decoder = _network("model.decoder", settings.decoder, DECODERS, *given)
    if settings.weights == "variational":
        decoder = randomise(decoder)
    return VAE(encoder, decoder, likelihood, posterior=posterior, prior=prior, classes=classes)


def _network(place: str, part: Part, table: Mapping[str, Callable[..., nn.Module]], *given: Any) -> nn.Module:
    try:
        return part.build(table, *given)
    except (ConfigError, RuntimeError, MemoryError) as error:  # also sizes that do not fit into memory
        raise ConfigError(f"{place}: {str(error).splitlines()[0]}") from None


def uses_library_networks(model: Model) -> bool:
    """Whether the networks are the library's own and draw nothing, and not modules of the user's, or with dropout."""
    if isinstance(model, Regression):
        return not model.dropout
    return "module" not in (describe(model.encoder, ENCODERS).name, describe(model.decoder, DECODERS).name)


def build_algorithm(settings: Settings, num_data: int, steps_per_epoch: int) -> AEVB:
    """The algorithm with objective, modifiers, optimizer and schedule."""
    train, chosen = settings.train, settings.objective
    supervised = isinstance(settings.model, Part)
    objective = RegressionBound(**chosen.options) if supervised else chosen.build(OBJECTIVES)
    algorithm: AEVB = train.algorithm.build(ALGORITHMS, objective, num_data)
    steps_per_epoch *= algorithm.updates
    schedule = functools.partial(SCHEDULES[train.schedule.name], **train.schedule.options)
    epochs = train.epochs if train.samples is None else train.samples / num_data
    return replace(
        algorithm,
        objective=modified(algorithm.objective, settings.modifiers, steps_per_epoch),
        optimizer=functools.partial(OPTIMIZERS[train.optimizer.name], **train.optimizer.options),
        reduction=train.reduction,
        clip_grad_norm=train.clip_grad_norm,
        schedule=None if train.schedule.name == "constant" else lambda step: schedule(step / steps_per_epoch, epochs),
        autocast=AUTOCAST.get(train.precision),
    )


def modified(objective: Objective, modifiers: ModifierSettings, steps_per_epoch: int) -> Objective:
    """The objective with its modifiers."""
    base: Objective = SharedNoise(objective) if modifiers.shared_noise else objective
    weighted = WeightedKL(base, modifiers.beta, round(modifiers.warm_up * steps_per_epoch), modifiers.free_bits)
    return base if weighted == WeightedKL(base) else weighted


def choose_device(name: str, precision: str = "float32") -> torch.device:
    """The device of `train.device`; ConfigError if CUDA is asked for, or TF32, and there is none."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError(
            "train.device: cuda is not available here (torch.cuda.is_available() is False); use auto or cpu"
        )
    device = torch.device("cuda" if available and name != "cpu" else "cpu")
    if precision == "tf32" and device.type == "cpu":
        raise ConfigError("train.precision: tf32 products exist on CUDA devices only; use float32 or bfloat16")
    return device
