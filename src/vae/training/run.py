"""A run: a model, its data and its training, in a directory that says all of it, and back from there."""

import contextlib
import hashlib
import math
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from vae.algorithms import AEVB, State
from vae.config import plain
from vae.data import Data, Loader, Resident, load_data
from vae.errors import CheckpointError, Interrupted, PosteriorCollapse, TrainingFailed, UsageError
from vae.evaluation import evaluate_bound
from vae.likelihoods import LIKELIHOODS
from vae.models import VAE
from vae.networks import DECODERS, ENCODERS
from vae.posteriors import POSTERIORS
from vae.priors import PRIORS
from vae.randomness import Streams, seeded
from vae.ranks import Ranks, Stop
from vae.schema import describe
from vae.training import checkpoint
from vae.training.build import (
    build_algorithm,
    build_model,
    check_batch_norm,
    check_objective,
    check_support,
    choose_device,
    with_likelihood,
)
from vae.training.directory import check_same_run, claimed, describe_run
from vae.training.fast import Compiled, chosen_form
from vae.training.log import Log
from vae.training.parallel import check_same_data, own_device, parallel_steps, prepare
from vae.training.settings import Settings, TrainSettings, read_settings
from vae.training.trainer import Member, Plan, Progress, Stepper, Trainer, one_by_one


@dataclass
class Run:
    """A finished run: the trained model (on its device, in evaluation mode), the settings, and the metrics."""

    model: VAE
    settings: Settings
    history: list[dict[str, Any]]
    path: Path | None = None
    steps: int = 0  # made by this call; 0 where a resumed run was finished already
    stopped_early: bool = False  # by train.patience

    def __repr__(self) -> str:
        last: dict[str, Any] = next((line for line in reversed(self.history) if line["split"] == "train"), {})
        epoch, elbo = last.get("epoch", 0), last.get("elbo", float("nan"))
        return f"Run(path={self.path}, epoch={epoch}, train elbo={elbo:.2f})"


# ------------------------------------------------------------------------------------- training


def fit(
    model: VAE,
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
    "lr": 1e-3}, ... With `out`, the run is written there; `resume=True` goes on with what it holds (or starts it), and
    `overwrite=True` replaces it. The seed is that of the training; the weights are the model's as they come. The model
    ends as it was after the last step; `vae.load(out)` gives the best by validation, where there is one.
    """
    if resume and out is None:
        raise UsageError("resume=True goes on with the run in `out`; give that directory")
    settings = _settings_of(model, data, objective, modifiers or {}, train)
    try:
        run = _train(settings, model, data, out, resume=resume, overwrite=overwrite, verbose=verbose)
    except Interrupted as stop:
        how = "" if out is None else f"; go on with vae.fit(..., out={str(out)!r}, resume=True)"
        raise Interrupted(f"{stop}{how}", stop.status) from None
    if isinstance(data, Data) and Ranks.launched().first:
        split = data.evaluation_split("train").first(1000)
        warn_of_collapse(evaluate_bound(model, split, name="train").active_units)
    return run


def _settings_of(model: VAE, data: Any, objective: Any, modifiers: dict[str, Any], train: dict[str, Any]) -> Settings:
    """The settings of a run whose parts were made by hand, read back from the parts."""
    if isinstance(data, Data):
        data_block = plain(data.settings)
    elif isinstance(data, torch.utils.data.DataLoader):
        data_block = {"name": "loader"}
    else:
        raise UsageError("data must come from vae.load_data, or be a torch.utils.data.DataLoader")
    parts = {
        "encoder": describe(model.encoder, ENCODERS),
        "decoder": describe(model.decoder, DECODERS),
        "posterior": describe(model.posterior_head, POSTERIORS),
        "prior": describe(model.prior_head, PRIORS),
        "likelihood": describe(model.likelihood_head, LIKELIHOODS),
    }
    foreign = [name for name in ("posterior", "prior", "likelihood") if parts[name].name == "module"]
    if foreign:
        raise UsageError(
            f"the {foreign[0]} is not one of the library's; only encoder and decoder can be your own modules"
        )
    if model.prior.mean.dtype == torch.float64:  # a model that was made in double precision stays so
        train = {"precision": "float64", **train}
    raw = {
        "data": data_block,
        "model": {"latent_dim": model.latent_dim, **{name: plain(part) for name, part in parts.items()}},
        "objective": objective,
        "modifiers": modifiers,
        "train": plain(train),
    }
    return read_settings(raw)


def train(
    settings: Settings,
    out: str | Path | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    observe: Callable[[VAE, Data], list[dict[str, Any]]] | None = None,
) -> tuple[Run, Data]:
    """Train what settings say. `observe(model, data)` gives further lines for the metrics and changes nothing."""
    data = Ranks.joined().once(lambda: load_data(settings.data))
    settings = with_likelihood(settings, data.kind)
    model = build_model(settings.model, data.shape, settings.train.seed)
    run = _train(settings, model, data, out, resume=resume, overwrite=overwrite, verbose=verbose, observe=observe)
    return run, data


def _train(
    settings: Settings,
    model: VAE,
    data: Data | Any,
    out: str | Path | None,
    *,
    resume: bool,
    overwrite: bool = False,
    verbose: bool,
    observe: Callable[[VAE, Data], list[dict[str, Any]]] | None = None,
) -> Run:
    ranks = Ranks.joined()
    train = settings.train
    device = ranks.together(lambda: own_device(choose_device(train.device, train.precision), ranks))
    dtype = torch.float64 if train.precision == "float64" else torch.float32
    model.to(device=device, dtype=dtype).train()
    source = _source(data, model, train, device, dtype)
    check_batch_norm(model, source.smallest_batch, settings.objective.options["num_samples"])
    if ranks.several:
        prepare(model, source, settings, device, ranks)
    algorithm = replace(build_algorithm(settings, source.num_data, source.num_batches), expand=source.expand)
    check_objective(algorithm.objective, model)
    path = None if out is None else Path(out)
    session = _Session(settings, algorithm, model, source, data, device, path, ranks)
    with contextlib.ExitStack() as stack:
        if path is not None:
            ranks.once(lambda: stack.enter_context(claimed(path, resume, overwrite)))
        stack.enter_context(seeded(train.seed, "modules"))
        stack.enter_context(_float32_products(train.precision))
        if resume and path is not None:
            session.resume()
        session.choose_form()
        plan, about = session.plan, str(data) if isinstance(data, Data) else "a DataLoader"
        if not session.progress.finished(plan):  # nothing is left to refuse
            if path is not None:
                form = session.algorithm.form
                ranks.once(lambda: describe_run(path, settings, about, device, form, ranks.world))
            if verbose and ranks.first:
                print(about, file=sys.stderr)
        steps_before = session.state.step
        steps, stop = session.stepper(dtype)
        members, verbose = [session.member(observe)], verbose and ranks.first
        Trainer(steps, session.state, source, plan, members, *_words(model), verbose=verbose, stop=stop).run()
    model.eval()
    early = plan.patience is not None and session.progress.stale >= plan.patience
    return Run(model, settings, session.log.lines, path, session.state.step - steps_before, early)


def _source(data: Data | Any, model: VAE, train: TrainSettings, device: torch.device, dtype: torch.dtype) -> Any:
    """Where minibatches come from, after a look at shape and values."""
    if not isinstance(data, Data):
        return Loader(data, model.data_shape, str(model.likelihood_head.support), device, dtype)
    if data.shape != model.data_shape:
        raise UsageError(f"the data have shape {data.shape}, and the model is of {model.data_shape}")
    for split in (data.train, data.validation, data.test):
        if split is not None:
            check_support(split, data.name, model)
    return Resident(data.train, train.batch_size, train.seed, device, dtype)


class _Session:
    """The state of a run and its checkpoints."""

    def __init__(
        self,
        settings: Settings,
        algorithm: AEVB,
        model: VAE,
        source: Any,
        data: Any,
        device: torch.device,
        path: Path | None,
        ranks: Ranks,
    ) -> None:
        self.settings, self.ranks = settings, ranks
        self.algorithm: AEVB | Compiled = algorithm
        self.source, self.data, self.path = source, data, path
        self.state: State = algorithm.init(model)
        self.streams = Streams(settings.train.seed, device)
        train = settings.train
        self.plan = Plan(train.epochs, train.samples, train.evaluate_every, train.patience, train.checkpoint_seconds)
        self.progress = Progress()
        self.recorded_form: str | None = None
        self.log = Log(path / "metrics.jsonl" if path is not None and ranks.first else None)
        self.facts = {
            "config": plain(settings),
            "data_shape": list(model.data_shape),
            "data_sha256": fingerprint(data) if isinstance(data, Data) else None,
            "threads": torch.get_num_threads(),
            "data_range": list(data.train.range) if isinstance(data, Data) else None,
        }
        check_same_data(self.facts["data_sha256"], ranks)

    def member(self, observe: Callable[[VAE, Data], list[dict[str, Any]]] | None) -> Member:
        data, model, once = self.data, self.state.model, self.ranks.once
        validates = isinstance(data, Data) and data.validation is not None
        return Member(
            model,
            self.progress,
            self.log,
            self.save,
            self.last_good,
            validate=(lambda: once(lambda: evaluation_line(model, data, "validation"))) if validates else None,
            observe=(lambda: once(lambda: observe(model, data))) if observe is not None else None,
        )

    def choose_form(self) -> None:
        """Compile the steps where it pays, or as the run has begun: bits depend on the form."""
        steps = self.plan.steps(self.source.num_batches, self.source.num_data)
        form = self.recorded_form or chosen_form(self.settings.train.compile, self.state.model, steps, self.source)
        if form == "compiled" and isinstance(self.algorithm, AEVB) and not self.ranks.several:
            self.algorithm = Compiled(self.algorithm, self.source.batch_size)

    def stepper(self, dtype: torch.dtype) -> tuple[Stepper, Stop]:
        """The way through an epoch, and what stops it."""
        stop, given = Stop(self.ranks), (self.state, self.source, self.streams, dtype)
        if isinstance(self.algorithm, AEVB) and self.ranks.several:
            return parallel_steps(self.algorithm, *given, stop), stop
        return one_by_one(self.algorithm, *given), stop

    def file(self, name: str) -> Path:
        assert self.path is not None
        return self.path / "checkpoints" / f"{name}.safetensors"

    def last_good(self) -> str:
        if self.path is None or not self.file("last").exists():
            return "there is no checkpoint from before"
        return f"the last good checkpoint is {self.file('last')}"

    def save(self, name: str) -> None:
        """Write the whole state as a checkpoint; TrainingFailed instead if a parameter is not finite."""
        model = self.state.model
        bad = next((n for n, p in model.named_parameters() if not torch.isfinite(p).all()), None)
        if bad is not None:
            raise TrainingFailed(f"parameter {bad} is not finite after step {self.state.step}; {self.last_good()}")
        if self.path is not None:
            self.ranks.once(lambda: self._write(name))

    def _write(self, name: str) -> None:
        optimizer_tensors, optimizer_values = checkpoint.optimizer_state(self.state.optimizer)
        tensors = {
            **checkpoint.prefixed("model", self.state.model.state_dict()),
            **checkpoint.prefixed("optimizer", optimizer_tensors),
            **checkpoint.prefixed("memory", self.state.memory),
            **checkpoint.prefixed("streams", {**self.streams.state(), **self.source.state()}),
            **checkpoint.prefixed("sums", self.progress.sums),
        }
        progress = {f.name: getattr(self.progress, f.name) for f in fields(Progress) if f.name != "sums"}
        values = {
            **self.facts,
            "form": self.algorithm.form,
            "step": self.state.step,
            "optimizer": optimizer_values,
            "progress": progress,
        }
        checkpoint.write(self.file(name), tensors, values)

    def resume(self) -> None:
        """Take up the state of the last checkpoint, if there is one; else start from the beginning."""
        path = self.file("last")
        found = self.ranks.once(lambda: checkpoint.read(path, checkpoint.VALUES) if path.exists() else None)
        if found is None:
            self._cut_back_log(0)
            return
        tensors, values = found
        checkpoint.load_model(self.state.model, tensors, path)
        check_same_run(path, values["config"], self.facts["config"])
        if values["data_sha256"] != self.facts["data_sha256"]:
            raise CheckpointError(f"{path}: the training data are not those that this run was trained on; restore them")
        if values["threads"] != self.facts["threads"]:
            warnings.warn(
                f"the run was begun with {values['threads']} threads and goes on with {self.facts['threads']}: its "
                "sums round differently, so it will not end in the same bits",
                stacklevel=2,
            )
        checkpoint.load_optimizer(
            self.state.optimizer, checkpoint.under("optimizer", tensors), values["optimizer"], path
        )
        device = self.streams.device
        self.state.memory = {k: t.to(device) for k, t in checkpoint.under("memory", tensors).items()}
        self.state.step = values["step"]
        self.recorded_form = values["form"]
        streams = checkpoint.under("streams", tensors)
        self.streams.restore(streams, self.state.step)
        self.source.restore(streams)
        self.progress = Progress(**values["progress"])
        begun = self.progress.epoch + (self.progress.batch > 0)
        if self.plan.epochs is not None and self.plan.epochs < begun:
            raise UsageError(
                f"train.epochs: {self.plan.epochs}, and the run has begun epoch {begun}; give at least that"
            )
        self.progress.sums = {k: t.to(device) for k, t in checkpoint.under("sums", tensors).items()}
        self._cut_back_log(self.progress.log_lines)

    def _cut_back_log(self, count: int) -> None:
        self.log.lines = self.ranks.once(lambda: self.log.cut_back(count))


def _words(model: VAE) -> tuple[str, dict[str, str], int]:
    """What the trainer cannot know: which value chooses the best, words for the values, and how many a datum has."""
    labels = {"elbo": "ELBO", "kl": "KL", "log_p_x_given_z": "log p(x|z)", "objective": "objective"}
    return "elbo", labels, math.prod(model.data_shape)


def evaluation_line(model: VAE, data: Data, name: str) -> dict[str, Any]:
    """One line of metrics on the ELBO of a split, with KL a dimension and active units.

    Its noise is that of evaluate.py's default seed, whatever the seed of the training.
    """
    return evaluate_bound(model, data.evaluation_split(name), name=name).log_line()


def warn_of_collapse(active_units: int) -> None:
    """Warn where no latent is active, and say what to try."""
    if active_units == 0:
        warnings.warn(
            "the posterior has collapsed: no latent varies with the data (active units 0), so the model ignores z; "
            "train longer, or try modifiers.warm_up=10 (epochs), a smaller modifiers.beta or learning rate, batch "
            "normalisation, or a narrower decoder",
            PosteriorCollapse,
            stacklevel=3,
        )


def fingerprint(data: Data) -> str:
    """SHA-256 of all that training and selection see."""
    digest = hashlib.sha256()
    for split in (data.train, data.validation):
        if split is not None:
            digest.update(f"{tuple(split.x.shape)} {split.scale}".encode())
            digest.update(split.x.contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _float32_products(precision: str) -> Iterator[None]:
    """TF32 products and convolutions on CUDA where asked for; true float32 ones otherwise."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
