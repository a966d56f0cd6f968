"""The schema of a config: each block a frozen dataclass, each part a row of a table."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from vae.algorithms import ALGORITHMS, OPTIMIZERS, SCHEDULES
from vae.config import load_yaml, override, read
from vae.data import DataSettings
from vae.likelihoods import LIKELIHOODS
from vae.models import MODELS
from vae.networks import DECODERS, ENCODERS
from vae.objectives import OBJECTIVES
from vae.posteriors import POSTERIORS
from vae.precision import Precision
from vae.priors import PRIORS
from vae.schema import BlockOrPart, Count, Index, Interval, NonNegative, Part, PartOf, Positive


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The parts of a VAE (model.name: vae, the default). Without a likelihood, the kind of the data chooses one."""

    latent_dim: Annotated[Count, "J, the number of latents"]
    encoder: Annotated[Part, PartOf(ENCODERS)] = "mlp"  # type: ignore[assignment]
    decoder: Annotated[Part, PartOf(DECODERS)] = "mlp"  # type: ignore[assignment]
    posterior: Annotated[Part, PartOf(POSTERIORS)] = "diagonal_gaussian"  # type: ignore[assignment]
    prior: Annotated[Part, PartOf(PRIORS)] = "standard_normal"  # type: ignore[assignment]
    likelihood: Annotated[Part | None, PartOf(LIKELIHOODS), "by the kind of the data if none is given"] = None
    condition: Annotated[Literal["labels"] | None, "labels: networks see the label y too, p(x|z, y)"] = None
    weights: Annotated[Literal["point", "variational"], "of the decoder; variational by train.algorithm: full_vb"] = (
        "point"
    )


@dataclass(frozen=True, kw_only=True)
class ModifierSettings:
    """How the objective is changed: `beta` (reached linearly over `warm_up` epochs) and `free_bits` weight its KL."""

    beta: Annotated[NonNegative, "the weight of the KL"] = 1.0
    warm_up: Annotated[float, Interval(0, 1e6), "epochs over which the weight rises from 0"] = 0.0
    free_bits: Annotated[NonNegative, "nats of KL per latent that cost nothing; needs sgvb_b"] = 0.0
    shared_noise: Annotated[bool, "one draw of the noise for all data of a minibatch"] = False


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """How to train. `epochs` (20 unless given) or `samples` (a count of training data seen) sets the length.

    Validation, the test curve and early stopping (`patience`, in evaluations) come every `evaluate_every` epochs. A
    checkpoint is written at the end of an epoch if the last is older than `checkpoint_seconds`, and at every stop.
    """

    algorithm: Annotated[Part, PartOf(ALGORITHMS)] = "aevb"  # type: ignore[assignment]
    epochs: Annotated[Count | None, "20 if neither epochs nor samples are given"] = None
    samples: Annotated[Count | None, "training data seen, instead of epochs"] = None
    batch_size: Annotated[Count, "M, data per minibatch; the last of an epoch may be smaller"] = 128
    reduction: Annotated[Literal["mean", "sum"], "of the objective over the minibatch"] = "mean"
    optimizer: Annotated[Part, PartOf(OPTIMIZERS)] = "adam"  # type: ignore[assignment]
    schedule: Annotated[Part, PartOf(SCHEDULES)] = "constant"  # type: ignore[assignment]
    clip_grad_norm: Annotated[Positive | None, "the largest norm of a gradient"] = None
    evaluate_every: Annotated[Count, "epochs between validations, and points of the test curve"] = 1
    patience: Annotated[Count | None, "validations without improvement that stop the run early"] = None
    checkpoint_seconds: Annotated[NonNegative, "an epoch ends with a checkpoint if the last is older"] = 10.0
    tensorboard: Annotated[bool, "also write RUN/tensorboard: curves and pictures as training goes"] = False
    seed: Annotated[Index, "of weights, order and noise"] = 0
    device: Annotated[Literal["auto", "cpu", "cuda"], "auto: cuda if there is one"] = "auto"
    precision: Annotated[Precision, "of parameters and products; tf32 needs CUDA"] = "float32"
    compile: Annotated[
        Literal["auto", "always", "never"], "the step by torch.compile; auto: if the run is long enough to win by it"
    ] = "auto"

    def __post_init__(self) -> None:
        if self.epochs is not None and self.samples is not None:
            raise ValueError("give epochs or samples, not both (null for the other if a file gives it)")
        if self.epochs is None and self.samples is None:
            object.__setattr__(self, "epochs", 20)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A whole config."""

    data: DataSettings
    model: Annotated[ModelSettings | Part, BlockOrPart("vae", ModelSettings, MODELS)]
    objective: Annotated[Part, PartOf(OBJECTIVES)] = "sgvb_b"  # type: ignore[assignment]
    modifiers: ModifierSettings = ModifierSettings()
    train: TrainSettings = TrainSettings()

    def __post_init__(self) -> None:
        self._check_algorithm()
        if self.modifiers.free_bits and self.objective.name != "sgvb_b":
            raise ValueError(
                f"modifiers.free_bits needs the KL of each latent in closed form, which {self.objective.name} does not "
                "use: set objective.name to sgvb_b"
            )

    def _check_algorithm(self) -> None:
        """Another algorithm than AEVB is of VAEs and has an objective of its own; full_vb makes the weights random."""
        algorithm, model, objective = self.train.algorithm.name, self.model, self.objective.name
        if isinstance(model, Part) and objective != "sgvb_b":
            raise ValueError(f"objective: {objective} is of VAEs; a regression is trained by sgvb_b")
        if algorithm != "aevb" and (isinstance(model, Part) or objective != "sgvb_b"):
            raise ValueError(
                f"train.algorithm: {algorithm} trains a VAE, and has an objective of its own: leave objective.name out"
            )
        shared = algorithm == "wake_sleep" and self.modifiers.shared_noise
        if algorithm in ("wake_sleep", "mcem") and self.modifiers != ModifierSettings(shared_noise=shared):
            raise ValueError(f"modifiers: {algorithm} has no bound whose KL could be weighted; leave them out")
        if isinstance(model, Part):
            return
        if algorithm == "full_vb":
            object.__setattr__(self, "model", replace(model, weights="variational"))
        elif model.weights == "variational":
            raise ValueError("model.weights: variational needs train.algorithm: full_vb, which trains them")


def read_settings(
    config: str | Path | dict[str, Any], overrides: Sequence[str] = (), where: str | Path = "config"
) -> Settings:
    """The settings in a YAML file, or in a raw mapping from `where`, after `a.b=value` overrides.

    ConfigError names every misfit.
    """
    raw, where = (config, where) if isinstance(config, dict) else (load_yaml(config), config)
    return read(Settings, override(raw, overrides), str(where), overrides)
