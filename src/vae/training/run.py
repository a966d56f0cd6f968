"""A run: a model, its data and its training, in a directory that describes it."""

import contextlib
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from vae.algorithms import AEVB
from vae.config import plain
from vae.data import Data, Loader, Resident, load_data
from vae.errors import ConfigError, Interrupted, TrainingFailed, UsageError
from vae.evaluation import evaluate_bound, evaluation_line, warn_of_collapse
from vae.files import as_path
from vae.likelihoods import LIKELIHOODS
from vae.models import MODELS, VAE, Model, Regression, variational_layers
from vae.networks import DECODERS, ENCODERS
from vae.posteriors import POSTERIORS
from vae.precision import matmul_precision, parameter_dtype
from vae.priors import PRIORS
from vae.randomness import Streams, seeded
from vae.ranks import Ranks, Stop
from vae.schema import describe
from vae.training.board import Board
from vae.training.build import build_algorithm, build_for, choose_device, with_likelihood
from vae.training.checkpoint import load_model, sha256_of
from vae.training.checks import check
from vae.training.gradients import choose, form_of_run
from vae.training.loading import checkpoints, load_run
from vae.training.parallel import check_same_data, device_of_rank, prepare
from vae.training.progress import Plan, Progress, Report
from vae.training.recorder import Line, Recorder
from vae.training.run_directory import RunDirectory, acquire
from vae.training.run_state import RunState
from vae.training.settings import Settings, read_settings
from vae.training.trainer import Stepper, run_to_the_end

Observer = Callable[[Any, Data], list[Line]]


@dataclass
class Run:
    """A finished run: the trained model (on its device, in evaluation mode), its settings, metrics and data."""

    model: Any
    settings: Settings
    history: list[dict[str, Any]]
    data: Any = field(repr=False)
    path: Path | None = None
    steps: int = 0  # made by this call; 0 if a resumed run was finished already
    stopped_early: bool = False  # by train.patience

    def __repr__(self) -> str:
        last: dict[str, Any] = next((line for line in reversed(self.history) if line["split"] == "train"), {})
        epoch, elbo = last.get("epoch", 0), last.get("elbo", float("nan"))
        return f"Run(path={self.path}, epoch={epoch}, train elbo={elbo:.2f})"


def fit(
    model: Model,
    data: Data | Any,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    objective: str | dict[str, Any] = "sgvb_b",
    modifiers: dict[str, Any] | None = None,
    verbose: bool = True,
    **train: Any,
) -> Run:
    """Train a model on a data set (`load_data`) or any DataLoader of images on [0, 1]; the model is trained in place.

    Keywords are the settings of the `train` block: epochs=20, seed=0, batch_size=128, optimizer={"name": "adam",
    "lr": 1e-3}, ... With `out`, the run is written there; `resume=True` continues what it holds (or starts it), and
    `overwrite=True` replaces it. The seed is that of the training; the weights are the model's as they come. The model
    ends as it was after the last step; `vae.load(out)` gives the best by validation, if there is one.
    """
    if not isinstance(model, VAE | Regression):
        raise UsageError(f"model: expected a vae.VAE, such as vae.build gives, not {type(model).__name__}")
    if resume and out is None:
        raise UsageError("resume=True continues the run in `out`; give that directory")
    settings = settings_of(model, data, objective, modifiers or {}, train)
    try:
        run = _run(settings, model, data, out, resume=resume, overwrite=overwrite, verbose=verbose)
    except Interrupted as stop:
        how = "" if out is None else f"; continue with vae.fit(..., out={str(out)!r}, resume=True)"
        raise Interrupted(f"{stop}{how}", stop.status) from None
    if isinstance(data, Data) and isinstance(model, VAE) and Ranks.launched().first:
        split = data.evaluation_split("train", 1000)
        warn_of_collapse(evaluate_bound(model, split, name="train").active_units)
    return run


def train(
    settings: Settings,
    out: str | Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    observe: Observer | None = None,
    weights: str | Path | None = None,
) -> Run:
    """Train what settings describe. `observe(model, data)` gives further lines for the metrics and changes nothing.

    `weights` is a run whose weights the model begins with; CheckpointError if its networks are others.
    """
    data = Ranks.joined().once(lambda: load_data(settings.data))
    settings = with_likelihood(settings, data.kind, data.shape, data.doubt)
    model, source = build_for(settings, data), None
    if weights is not None:
        begun = load_run(weights)
        file = checkpoints(begun.path)[begun.checkpoint]
        if isinstance(model, VAE):
            model.standardise = begun.model.standardise
        load_model(model, {f"model.{key}": value for key, value in begun.model.state_dict().items()}, file)
        source = {"run": str(begun.path), "checkpoint": begun.checkpoint, "sha256": sha256_of(file)}
    how: dict[str, Any] = {"resume": resume, "overwrite": overwrite, "verbose": verbose, "observe": observe}
    return _run(settings, model, data, out, weights=source, **how)


def settings_of(model: Model, data: Any, objective: Any, modifiers: dict[str, Any], train: dict[str, Any]) -> Settings:
    """The settings of a run whose parts were made by hand, read back from the parts."""
    if isinstance(data, Data):
        data_block = plain(data.settings)
    elif isinstance(data, torch.utils.data.DataLoader):
        data_block = {"name": "loader"}
    else:
        raise UsageError("data must come from vae.load_data, or be a torch.utils.data.DataLoader")
    raw = {"data": data_block, "objective": objective, "modifiers": modifiers, "train": plain(train)}
    like = next(model.parameters(), torch.zeros(()))
    if like.dtype == torch.float64:  # a model that was made in double precision stays so
        raw["train"] = plain({"precision": "float64", **train})
    if isinstance(model, Regression):
        return read_settings({**raw, "model": plain(describe(model, MODELS))})
    named: dict[str, tuple[Any, Mapping[str, Any]]] = {
        "encoder": (model.encoder, ENCODERS),
        "decoder": (model.decoder, DECODERS),
        "posterior": (model.posterior_head, POSTERIORS),
        "prior": (model.prior_head, PRIORS),
        "likelihood": (model.likelihood_head, LIKELIHOODS),
    }
    parts = {name: describe(part, table) for name, (part, table) in named.items()}
    foreign = [name for name in ("posterior", "prior", "likelihood") if parts[name].name == "module"]
    if foreign:
        raise UsageError(
            f"the {foreign[0]} is not one of the library's; only encoder and decoder can be your own modules"
        )
    weights = "point" if next(variational_layers(model.decoder), None) is None else "variational"
    raw["model"] = {
        "latent_dim": model.latent_dim,
        "weights": weights,
        "condition": "labels" if model.classes else None,
        **{name: plain(part) for name, part in parts.items()},
    }
    return read_settings(raw)


def _run(
    settings: Settings,
    model: Model,
    data: Data | Any,
    out: str | Path | None,
    *,
    resume: bool,
    overwrite: bool,
    verbose: bool,
    observe: Observer | None = None,
    weights: dict[str, Any] | None = None,
) -> Run:
    ranks, plan = Ranks.joined(), plan_of(settings)
    run, algorithm = begin(settings, model, data, ranks)
    run.about["weights"] = weights
    folder = RunDirectory(None if out is None else as_path(out, "out"), ranks)
    device, verbose, stop = run.streams.device, verbose and ranks.first, Stop(ranks)
    about = str(data) if isinstance(data, Data) else "a DataLoader"
    with contextlib.ExitStack() as stack:
        if folder.path is not None:
            path = folder.path
            ranks.once(lambda: stack.enter_context(acquire(path, resume, overwrite)))
        stack.enter_context(seeded(settings.train.seed, "modules"))
        stack.enter_context(matmul_precision(settings.train.precision, device))
        begun = _resume(run, folder, plan) if resume and folder.path is not None else 0
        if not run.progress.finished(plan):  # otherwise there is nothing to compile, and nothing to describe anew
            algorithm = with_gradient(algorithm, run, settings, plan, stop)
            ranks.once(lambda: folder.reserve(run))
            if run.about["weights"] and not run.state.step:  # from here on they are in the run itself
                folder.write("last", run)
            ranks.once(lambda: folder.describe(settings, about, run))
            if verbose:
                how = f"{_words(model)}; {run.form} steps, products in {settings.train.precision}"
                print(f"{about}\n{how}", file=sys.stderr)
        stepper = Stepper(algorithm, run.state, run.batches, run.streams, parameter_dtype(settings.train.precision))
        report = Report(plan, run.progress, run.batches.num_data, verbose)
        stack.callback(report.bar.close)
        board = _board(settings, folder, run.state.step, model, data)
        if board is not None:
            stack.callback(board.close)
        evaluations = _evaluations(model, data, observe, ranks)
        recorder = Recorder(run, folder, plan, algorithm.score, report, evaluations, board)
        try:
            run_to_the_end(stepper, plan, run.progress, report.step, recorder.end_epoch, recorder.save, stop)
        except TrainingFailed as error:
            raise TrainingFailed(f"{error}; {folder.last_good()}") from None
    early = run.progress.stopped_early(plan)
    return Run(model.eval(), settings, folder.log.lines, data, folder.path, run.state.step - begun, early)


def _board(settings: Settings, folder: RunDirectory, step: int, model: Model, data: Any) -> Board | None:
    """What writes for TensorBoard, on rank 0. ConfigError if there is no run directory to write to."""
    if not settings.train.tensorboard:
        return None
    if folder.path is None:
        raise ConfigError("train.tensorboard: writes into the run directory; give out=")
    return Board(folder.path, step, model, data) if folder.ranks.first else None


def _words(model: Model) -> str:
    """What is trained, in words."""
    if isinstance(model, Regression):
        return f"regression, {model.noise} noise, {model.weights} weights"
    return f"likelihood {describe(model.likelihood_head, LIKELIHOODS).name}"


def plan_of(settings: Settings) -> Plan:
    """For how long to train, by the settings."""
    train = settings.train
    return Plan(train.epochs, train.samples, train.evaluate_every, train.patience, train.checkpoint_seconds)


def begin(settings: Settings, model: Model, data: Data | Any, ranks: Ranks) -> tuple[RunState, AEVB]:
    """A run before its first step, after all checks, and the algorithm that makes its steps (by the eager gradient)."""
    train = settings.train
    device = ranks.together(lambda: device_of_rank(choose_device(train.device, train.precision), ranks))
    dtype = parameter_dtype(train.precision)
    is_data = isinstance(data, Data)
    if isinstance(model, Regression) and not is_data:
        raise UsageError("data: a regression is trained on data of vae.load_data or vae.Data.from_arrays")
    loader = None
    if isinstance(model, VAE) and not is_data:
        loader = Loader(data, model.data_shape, str(model.likelihood_head.support), device, dtype, model.classes)
    check(settings, loader or data, model)
    if is_data:
        model.prepare(data.train)
    model.to(device=device, dtype=dtype).train()
    batches: Any = loader or Resident(data.train, train.batch_size, train.seed, device, dtype)
    if ranks.several:
        prepare(model, batches, settings, device, ranks)
    algorithm = replace(build_algorithm(settings, batches.num_data, batches.num_batches), expand=batches.expand)
    model.data_range = data.train.range if is_data else None
    about = {
        "config": plain(settings),
        "data_shape": list(model.data_shape),
        "data_sha256": data.sha256() if is_data else None,
        "data_range": model.data_range and list(model.data_range),
        "threads": torch.get_num_threads(),
        "columns": list(data.columns) if is_data else None,
        "classes": list(data.classes) if is_data else None,
    }
    check_same_data(about["data_sha256"], ranks)
    return RunState(about, algorithm.init(model), Streams(train.seed, device), batches, Progress()), algorithm


def with_gradient(algorithm: AEVB, run: RunState, settings: Settings, plan: Plan, stop: Stop) -> AEVB:
    """The algorithm with the gradient that the run has begun with, or that the rule chooses; `run.form` names it."""
    form = run.form
    if form is None:
        steps = plan.steps(run.batches.num_batches, run.batches.num_data)
        form = form_of_run(settings.train.compile, run.state.model, run.batches, steps)
    gradient, run.form = choose(form, algorithm, run.state, run.batches, settings.train, stop)
    return replace(algorithm, gradient=gradient)


def _resume(run: RunState, folder: RunDirectory, plan: Plan) -> int:
    """Continue from the last checkpoint, if there is one, and return its step; else start from the beginning."""
    found = folder.read_last()
    if found is not None:
        run.unpack(*found, folder.checkpoint("last"))
    progress = run.progress
    begun = progress.epoch + (progress.batch > 0)
    if plan.epochs is not None and plan.epochs < begun:
        raise UsageError(f"train.epochs: {plan.epochs}, and the run has begun epoch {begun}; give at least that")
    folder.truncate_log(progress.log_lines)
    return run.state.step


def _evaluations(model: Model, data: Any, observe: Observer | None, ranks: Ranks) -> list[Callable[[], list[Line]]]:
    """What to evaluate at the end of an epoch, by rank 0: validation, and what an observer gives."""
    found: list[Callable[[], list[Line]]] = []
    if isinstance(data, Data) and data.validation is not None:
        found.append(lambda: [evaluation_line(model, data, "validation")])
    if observe is not None:
        found.append(lambda: observe(model, data))
    return [functools.partial(ranks.once, evaluate) for evaluate in found]
