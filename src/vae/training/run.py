"""A run: a model, its data and its training, in a directory that says all of it, and back from there."""

import contextlib
import functools
import math
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from vae.config import plain
from vae.data import Data, load_data
from vae.errors import ConfigError, Interrupted, PosteriorCollapse, UsageError
from vae.evaluation import evaluate_bound
from vae.likelihoods import LIKELIHOODS
from vae.models import VAE
from vae.networks import DECODERS, ENCODERS
from vae.posteriors import POSTERIORS
from vae.priors import PRIORS
from vae.randomness import seeded
from vae.ranks import Ranks, Stop
from vae.schema import describe
from vae.training.build import build_model, with_likelihood
from vae.training.captured import captured_steps, captures
from vae.training.directory import claimed, describe_run
from vae.training.fast import Functional, chosen_form, chosen_precision, functional, in_turn, is_our_own
from vae.training.parallel import parallel_steps
from vae.training.products import float32_products
from vae.training.replicas import Replicated
from vae.training.session import Session, finish_save
from vae.training.settings import Settings, read_settings
from vae.training.trainer import Stepper, Trainer, one_by_one


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
    if settings.train.replicas > 1:
        raise UsageError("replicas trains models that a config builds; fit trains the one that it is given")
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


def train_replicas(settings: Settings, out: str | Path, **how: Any) -> tuple[list[Run], Data]:
    """Train `train.replicas` seeds as one program; each run is left in `out/seed_N` as if it had been trained alone.

    Keywords are those of `train_together`.
    """
    seeds = range(settings.train.seed, settings.train.seed + settings.train.replicas)
    return train_together(settings, {seed: Path(out) / f"seed_{seed}" for seed in seeds}, group=Path(out), **how)


def train_together(
    settings: Settings,
    seeds: Mapping[int, Path],
    *,
    group: Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    verbose: bool = True,
    observe: Callable[[VAE, Data], list[dict[str, Any]]] | None = None,
) -> tuple[list[Run], Data]:
    """Train the runs of several seeds, which differ in nothing else, as one program, each in its own directory.

    `group` is a directory that says so. UsageError where resumed runs stand at different steps.
    """
    if Ranks.launched().several:
        raise UsageError("train.replicas trains on one process; under torchrun, train seed by seed")
    if settings.train.patience is not None:
        raise ConfigError("train.patience stops one run early, and runs that are trained together all go to the end")
    data = load_data(settings.data)
    settings = with_likelihood(settings, data.kind)
    sessions = []
    for seed, path in seeds.items():
        own = replace(settings, train=replace(settings.train, seed=seed, replicas=1))
        sessions.append(Session(own, build_model(own.model, data.shape, seed), data, path))
    with contextlib.ExitStack() as stack:
        if group is not None:
            stack.enter_context(claimed(group, resume, overwrite))
            how = {"steps": f"{len(seeds)} seeds as one"}
            describe_run(group, settings, str(data), sessions[0].device, how, 1)
        return _run(sessions, resume=resume, overwrite=overwrite, verbose=verbose, observe=observe), data


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
    session = Session(settings, model, data, None if out is None else Path(out))
    return _run([session], resume=resume, overwrite=overwrite, verbose=verbose, observe=observe)[0]


def _run(
    sessions: Sequence[Session],
    *,
    resume: bool,
    overwrite: bool,
    verbose: bool,
    observe: Callable[[VAE, Data], list[dict[str, Any]]] | None,
) -> list[Run]:
    """Train the runs of sessions to their end; several step as one."""
    first, train, ranks = sessions[0], sessions[0].settings.train, sessions[0].ranks
    with contextlib.ExitStack() as stack:
        for session in sessions:
            if (path := session.path) is not None:
                ranks.once(functools.partial(stack.enter_context, claimed(path, resume, overwrite)))
        stack.enter_context(seeded(train.seed, "modules"))
        stack.enter_context(float32_products(train.precision, first.device))
        if resume and len(sessions) > 1:
            finish_save(sessions)
        for session in sessions:
            if resume and session.path is not None:
                session.resume()
        _check_places(sessions)
        stop = Stop(ranks)
        steps = stepper(sessions, stop)
        plan, about = first.plan, str(first.data) if isinstance(first.data, Data) else "a DataLoader"
        if not first.progress.finished(plan):  # nothing is left to refuse
            for session in sessions:
                if session.path is not None:
                    ranks.once(functools.partial(session.describe, about))
            if verbose and ranks.first:
                print(f"{about}\n{first.form()} steps, products in {first.precision}", file=sys.stderr)
        begun = first.state.step
        members, words = [session.member(observe) for session in sessions], _words(first.model)
        shows = verbose and ranks.first
        Trainer(steps, first.state, first.source, plan, members, *words, verbose=shows, stop=stop).run()
    return [_finished(session, begun) for session in sessions]


def _finished(session: Session, begun: int) -> Run:
    plan, state = session.plan, session.state
    early = plan.patience is not None and session.progress.stale >= plan.patience
    model = session.model.eval()
    return Run(model, session.settings, session.log.lines, session.path, state.step - begun, early)


def _check_places(sessions: Sequence[Session]) -> None:
    """UsageError where runs that are to be trained together stand at different steps, or step in different ways."""
    if len({(session.state.step, session.recorded_form, session.recorded_precision) for session in sessions}) > 1:
        places = ", ".join(f"{s.path} at {s.state.step}, {s.recorded_form}, {s.recorded_precision}" for s in sessions)
        raise UsageError(
            f"the runs stopped at different steps, or step in different ways ({places}), so they cannot go on as one; "
            "go on with each alone: train.py --resume DIRECTORY"
        )


def stepper(sessions: Sequence[Session], stop: Stop) -> Stepper:
    """How the sessions step: alone or as one, plain or compiled, as they have begun or as the rule says."""
    first, train = sessions[0], sessions[0].settings.train
    steps = first.plan.steps(first.source.num_batches, first.source.num_data)
    length = first.model, steps, first.source, first.algorithm.objective.num_samples
    alone = len(sessions) == 1 and not first.ranks.several
    precision = first.recorded_precision or chosen_precision(first.settings, *length, alone=alone)
    for session in sessions:
        session.multiply_in(precision)
    plainly = first.algorithm, first.state, first.source, first.streams, first.dtype
    if first.progress.finished(first.plan) and not first.ranks.several:  # no step to make, and nothing to compile
        return one_by_one(*plainly)
    first.form = lambda: "plain"  # also of a run that was begun compiled, where that cannot be done any more
    if first.ranks.several:
        return parallel_steps(*plainly, stop)
    form = first.recorded_form or chosen_form(train.compile, *length)
    compiles = first.source.batch_size if form == "compiled" else None
    cuda = first.device.type == "cuda" and train.compile != "never" and is_our_own(first.model)
    chosen = _functional(sessions, compiles) if compiles is not None or cuda or len(sessions) > 1 else None
    if chosen is None or not (cuda or chosen.form == "compiled" or len(sessions) > 1):
        return one_by_one(*plainly)
    for k, session in enumerate(sessions):
        session.form, session.before_save = (lambda: chosen.form), functools.partial(chosen.before_save, k)
    sources, streams = [session.source for session in sessions], [session.streams for session in sessions]
    way = captured_steps if cuda and captures(chosen, first.source) else in_turn
    return way(chosen, sources, streams, first.dtype)


def _functional(sessions: Sequence[Session], compiles: int | None) -> Functional | None:
    """The sessions by their pure gradient, tried once; None after one line where one run's cannot be taken."""
    first = sessions[0]
    if len(sessions) > 1:
        form: Functional = Replicated(first.algorithm, [session.state for session in sessions], compiles)
        reason = form.try_on(torch.stack([session.source.example() for session in sessions]))
        if reason is not None:
            raise UsageError(f"train.replicas: this model cannot be trained as several ({reason}); train seed by seed")
        return form
    form = functional(first.algorithm, first.state, compiles)
    reason = form.try_on(first.source.example())
    if reason is not None:
        warnings.warn(f"the step is the plain one, as its fast form fails: {reason}", stacklevel=2)
    return None if reason is not None else form


def _words(model: VAE) -> tuple[str, dict[str, str], int]:
    """What the trainer cannot know: which value chooses the best, words for the values, and how many a datum has."""
    labels = {"elbo": "ELBO", "kl": "KL", "log_p_x_given_z": "log p(x|z)", "objective": "objective"}
    return "elbo", labels, math.prod(model.data_shape)


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
