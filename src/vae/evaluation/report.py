"""A report: how good a model is on a split, as a record for JSON, as a table for people, and as files in a run."""

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from torch import Tensor

from vae.data import Data, Split
from vae.errors import UsageError
from vae.evaluation.annealed import SandwichedAnnealing, simulated
from vae.evaluation.base import mean_and_stderr
from vae.evaluation.bound import evaluate_bound, warn_of_collapse
from vae.evaluation.gaps import Gaps
from vae.evaluation.log_likelihood import LOG_LIKELIHOODS, Columns, measure
from vae.evaluation.regression import regression_record, regression_table
from vae.evaluation.representation import evaluate_representation, representation_table
from vae.files import read_text, write_atomically
from vae.models import VAE, Model, Regression
from vae.schema import Count, Index, OneOf, options_of, validated
from vae.text import NOT_A_DENSITY, mean_row

Record = dict[str, Any]
Values = dict[str, Tensor]  # (N,), of each datum
COUNTED = ("binary", "levels", "counts")  # supports of likelihoods that are probabilities
SIMULATED = 50  # data of a self-check without a limit


@validated
@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a report answers besides the ELBO, and how; by default nothing. UsageError if two do not go together."""

    log_likelihood: Annotated[str, OneOf(LOG_LIKELIHOODS)] | None = None
    gaps: bool = False
    self_check: bool = False
    representation: bool = False
    num_samples: Count | None = None  # per datum; of the ELBO (1) if nothing else is asked
    chains: Count | None = None
    start: Literal["posterior", "prior"] | None = None
    limit: Count | None = None  # of the data, the simulated data of a self-check, or the labels for a representation
    seed: Index = 0
    batch_size: Count | None = None

    def __post_init__(self) -> None:
        method, check = self.log_likelihood, self.self_check
        if self.chains is not None and method not in ("hmc", "ais") and not check:
            raise UsageError("chains needs log_likelihood hmc or ais, or self_check")
        if self.start is not None and method != "ais" and not check:
            raise UsageError("start needs log_likelihood ais, or self_check")
        if self.gaps and check:
            raise UsageError("gaps uses the data and self_check simulated data; give one of them")
        if self.representation and (self.gaps or check or method or self.num_samples):
            raise UsageError(
                "representation evaluates the codes of the training and test splits; leave out log_likelihood, gaps, "
                "self_check and num_samples"
            )
        if self.gaps and method:
            raise UsageError("gaps estimates log p(x) itself, with the best q; leave log_likelihood out")


def report(
    model: Model,
    split: Split,
    questions: Questions,
    *,
    name: str = "data",
    train: Split | None = None,
    origin: Mapping[str, Any] | None = None,
    verbose: bool = False,
) -> tuple[Record, Values]:
    """The record of a model on a split, to be printed and written, and the values of each datum.

    `name` is that of the split, on which the noise depends, `train` the training split (for `representation`), `origin`
    what the record says of where the model is from: run, checkpoint, step. UsageError if a question does not suit the
    model, TrainingFailed if a value is not finite.
    """
    q = questions
    if not q.representation:
        split = split.first(q.limit)
    if isinstance(model, Regression):
        if any(getattr(q, question) for question in ANSWERS):
            raise UsageError(
                "log_likelihood, gaps, self_check and representation are of VAEs, and this is a regression"
            )
        given: dict[str, Any] = {"name": name, "seed": q.seed, "num_samples": q.num_samples, "origin": origin or {}}
        return regression_record(model, split, **given)
    how = {"name": name, "seed": q.seed, "batch_size": q.batch_size, "verbose": verbose}
    answer, columns = Record(), Values()
    for question, (key, ask, _) in ANSWERS.items():  # first, since they may raise errors
        if getattr(q, question) and not answer:
            answer[key], columns = ask(model, split, train, q, how)
    samples = 1 if answer else q.num_samples or 1
    bound = evaluate_bound(model, split, name=name, seed=q.seed, num_samples=samples, batch_size=q.batch_size or 1000)
    if len(split) > 1:  # of one datum, no unit varies
        warn_of_collapse(bound.active_units)
    values = {key: getattr(bound, key) for key in _BOUND_ROWS}
    bits = {}
    if str(model.likelihood_head.support).startswith(COUNTED):  # of a density they would depend on the units of x
        bits["bits_per_dimension"] = mean_and_stderr(-values["elbo"] / (math.prod(model.data_shape) * math.log(2)))
    record = {
        **{key: mean_and_stderr(column) for key, column in values.items()},
        **(bits if model.is_density else {}),
        "density": model.is_density,
        "estimator": bound.estimator,
        "num_samples": samples,
        "split": name,
        "seed": q.seed,
        **(origin or {}),
        "active_units": bound.active_units if len(split) > 1 else None,
        "latent_dim": model.latent_dim,
        "kl_per_dimension": None if bound.kl_per_dimension is None else bound.kl_per_dimension.tolist(),
    }
    return record | answer, {**values, "index": split.index, **columns}


def evaluate_test_split(model: Model, data: Data, origin: Mapping[str, Any]) -> Record:
    """The record of evaluations/test.json: the ELBO and its terms on the whole test split."""
    return report(model, data.evaluation_split("test"), Questions(), name="test", origin=origin)[0]


def table(record: Record) -> str:
    """A record as a table for people."""
    origin = "{run}, checkpoint {checkpoint} (step {step}), ".format(**record) if "run" in record else ""
    lines = [
        f"{origin}{record['split']}, n = {record['elbo']['n']}",
        f"{'':12}{'mean':>12}{'std. error':>12}   nats per datum",
    ]
    if "coverage" in record:
        return "\n".join(lines + regression_table(record))
    lines += [
        *(mean_row(name, record[key]) for key, name in _BOUND_ROWS.items()),
    ]
    if "bits_per_dimension" in record:
        lines.append(mean_row("bits per dim", record["bits_per_dimension"]) + "   -ELBO / (D log 2)")
    for key, _, lines_of in ANSWERS.values():
        lines += lines_of(record[key]) if key in record else []
    if record["active_units"] is not None:
        lines.append(f"active units: {record['active_units']} of {record['latent_dim']}")
    lines += record.get("remarks", [])
    return "\n".join(lines if record["density"] else [*lines, NOT_A_DENSITY])


_BOUND_ROWS = {"elbo": "ELBO", "log_p_x_given_z": "log p(x|z)", "kl": "KL"}


# ------------------------------------------------------------------------------------- the files in a run


def write_evaluation(run: Path, record: Record, name: str = "test") -> None:
    """Write a record into a run directory."""
    file, content = run / "evaluations" / f"{name}.json", json.dumps(record, indent=2, allow_nan=False) + "\n"
    try:
        write_atomically(file, content.encode())
    except OSError as error:  # a run that only others may write to; the result is printed
        print(f"{file}: not written: {error.strerror}", file=sys.stderr)


def read_evaluation(run: Path, split: str = "test") -> Record | None:
    """The evaluation of a whole split in a run directory, if there is one."""
    try:
        record = json.loads(read_text(run / "evaluations" / f"{split}.json"))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "step" in record else None


# ------------------------------------------------------------------------------------- each question


def _log_likelihood(model: VAE, split: Split, train: Split | None, q: Questions, how: Record) -> tuple[Record, Values]:
    """log p(x) by the chosen estimator."""
    assert q.log_likelihood is not None
    estimator = _made(LOG_LIKELIHOODS[q.log_likelihood], q)
    columns = measure(model, split, estimator, **how)
    return _estimate(estimator, columns, model.latent_dim), columns.values


def _made(estimator: Callable[..., Any], q: Questions, **more: Any) -> Any:
    """An estimator with those of its options that are given, and more."""
    given = {key: getattr(q, key, None) for key in options_of(estimator)}
    return estimator(**{key: value for key, value in given.items() if value is not None} | more)


def _estimate(estimator: Any, columns: Columns, latent_dim: int) -> Record:
    """The record of an estimate of log p(x), with its diagnostics."""
    found, (enough, verdict) = columns.values, estimator.verdict(columns.values, latent_dim)
    record = _mean(columns, "log_p_x", "error")
    record |= {"estimator": estimator.method, "num_samples": estimator.num_samples}
    record |= {key: getattr(estimator, key) for key in ("chains", "start") if hasattr(estimator, key)}
    means = ("bias", "ess", "acceptance", "diverged", "points")
    record |= {key: _finite(found[key].mean()) for key in means if key in found}
    ranges = {key: found[key] for key in ("k_hat", "r_hat") if key in found}
    record |= {key: {"median": _finite(of.median()), "largest": _finite(of.max())} for key, of in ranges.items()}
    return {**record, "seconds": round(columns.seconds, 3), "enough": enough, "verdict": verdict}


def _mean(columns: Columns, key: str, error: str) -> Record:
    """Mean and standard error of a column, and the standard error of its mean from the estimator's own noise."""
    return {**mean_and_stderr(columns[key]), "monte_carlo_error": _finite(columns.monte_carlo_error(error))}


def _finite(value: Tensor | float) -> float | None:
    """A number, or None if JSON cannot hold it."""
    return float(value) if math.isfinite(value) else None


def _log_likelihood_lines(record: Record) -> list[str]:
    counted = {"is": "samples", "hmc": "samples", "ais": "distributions", "quadrature": "points per axis"}
    facts = [f"{record['estimator']}, {record['num_samples'] or 'default'} {counted[record['estimator']]}"]
    facts += [f"{record['chains']} chains"] if "chains" in record else []
    facts += [f"from the {record['start']}"] if "start" in record else []
    if record["estimator"] != "quadrature" and record["monte_carlo_error"] is not None:
        facts.append(f"Monte Carlo error {record['monte_carlo_error']:.4f}")
    for key, name in {"ess": "ESS", "acceptance": "acceptance", "points": "points per datum"}.items():
        facts += [f"{name} {record[key]:.3g}"] if record.get(key) is not None else []
    for key, name in {"k_hat": "k-hat", "r_hat": "R-hat"}.items():
        if key in record and None not in record[key].values():
            facts.append(f"{name} {record[key]['median']:.2f} (median), {record[key]['largest']:.2f} (largest)")
    about = f"{', '.join(facts)}; {record['seconds']:.1f} s"
    return [mean_row("log p(x)", record), f"{'':12}{about}", f"{'':12}{record['verdict']}"]


_GAP_ROWS = {"log_p_x": "log p(x)", "best": "L[q*]", "bound": "L[q]"}
_GAP_ROWS |= {"approximation": "approx. gap", "amortisation": "amort. gap"}


def _gaps(model: VAE, split: Split, train: Split | None, q: Questions, how: Record) -> tuple[Record, Values]:
    """How much of log p(x) - ELBO is due to the family of q, and how much to the encoder."""
    estimator = _made(Gaps, q)
    columns = measure(model, split, estimator, **how)
    record: Record = {"num_samples": estimator.num_samples, "seconds": round(columns.seconds, 3)}
    for key in _GAP_ROWS:
        record[key] = _mean(columns, key, "error" if key == "log_p_x" else f"{key}_error")
    k_hat = columns["k_hat"]  # above 0.7, the weights are too heavy-tailed to trust
    record["k_hat"] = {"median": _finite(k_hat.median()), "above": (k_hat > 0.7).double().mean().item()}
    return record, columns.values


def _gaps_lines(record: Record) -> list[str]:
    lines = []
    for key, name in _GAP_ROWS.items():
        error = record[key]["monte_carlo_error"]
        lines.append(mean_row(name, record[key]) + (f"   Monte Carlo error {error:.4f}" if error is not None else ""))
    if record["k_hat"]["above"] > 0.05:
        share = f"{record['k_hat']['above']:.0%} of the data (k-hat above 0.7)"
        lines.append(f"{'':12}log p(x) is too low for {share}, and the approximation gap with it")
    about = f"{record['num_samples']} samples, {record['seconds']:.1f} s"
    return [*lines, f"{'':12}q* is the best q of the family for each datum; {about}"]


def _self_check(model: VAE, split: Split, train: Split | None, q: Questions, how: Record) -> tuple[Record, Values]:
    """Bounds of log p(x) of simulated data from both sides, and whether the chosen estimate lies between them."""
    simulation, codes = simulated(model, q.limit or SIMULATED, q.seed)
    how = {**how, "name": "simulated"}
    method = q.log_likelihood or "ais"
    estimator = _made(LOG_LIKELIHOODS[method], q)
    estimator.check(model)
    annealing = q if method == "ais" else replace(q, num_samples=None)
    both = measure(model, simulation, _made(SandwichedAnnealing, annealing, codes=codes), **how)
    lower, upper = mean_and_stderr(both["log_p_x"]), mean_and_stderr(both["upper"])
    gap = mean_and_stderr(both["upper"] - both["log_p_x"])
    record: Record = {"lower": lower, "upper": upper, "gap": gap, "seconds": round(both.seconds, 3)}
    verdict = f"on data simulated from this model, the bounds of log p(x) are {gap['mean']:.3f} nats apart"
    verdict += f" (standard error {gap['stderr']:.3f})" if gap["stderr"] is not None else ""
    if method != "ais":
        columns = measure(model, simulation, estimator, **how)
        record["estimate"] = _estimate(estimator, columns, model.latent_dim)
        verdict += "; " + _position(method, columns, both)
    elif gap["mean"] > 1:
        verdict += ", which is much: try a larger --num-samples (distributions), or --start prior"
    return {**record, "verdict": verdict}, {}


def _position(method: str, columns: Columns, both: Columns) -> str:
    """Whether an estimate lies between the two bounds, up to three Monte Carlo standard errors."""
    if any(error.isnan().any() for error in (columns["error"], both["error"])):
        return f"one sample or chain is too few to decide where the estimate by {method} lies"
    below = (both["log_p_x"] - columns["log_p_x"]).mean().item()
    above = (columns["log_p_x"] - both["upper"]).mean().item()
    slack = [3 * math.hypot(columns.monte_carlo_error(), both.monte_carlo_error(e)) for e in ("error", "upper_error")]
    inside = below <= slack[0] and above <= slack[1]
    return f"the estimate by {method} lies " + ("inside" if inside else "outside: do not trust it on this model")


def _self_check_lines(record: Record) -> list[str]:
    lines = [mean_row("lower bound", record["lower"]), mean_row("upper bound", record["upper"])]
    if "estimate" in record:
        lines.append(mean_row(record["estimate"]["estimator"], record["estimate"]))
    return [*lines, f"{'':12}{record['verdict']}; {record['seconds']:.1f} s"]


def _representation(model: VAE, split: Split, train: Split | None, q: Questions, how: Record) -> tuple[Record, Values]:
    """How useful the codes are."""
    if train is None:
        raise UsageError("representation needs the training split: give report(..., train=data.train)")
    return evaluate_representation(model, train, split, seed=q.seed, limit=q.limit), {}


# By the field of Questions that asks: the key of the answer in the record, the answer, and its lines of the table. The
# first that is set is answered, for a self-check uses log_likelihood.
Ask = Callable[[VAE, Split, Split | None, Questions, Record], tuple[Record, Values]]
ANSWERS: dict[str, tuple[str, Ask, Callable[[Record], list[str]]]] = {
    "self_check": ("self_check", _self_check, _self_check_lines),
    "gaps": ("gaps", _gaps, _gaps_lines),
    "log_likelihood": ("log_p_x", _log_likelihood, _log_likelihood_lines),
    "representation": ("representation", _representation, lambda record: representation_table(record).splitlines()),
}
