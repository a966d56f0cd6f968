"""What evaluate.py answers beyond the ELBO: log p(x), the gaps below it, a check on simulated data, the worth of codes.

Each question gives a record for people and programs, and lines of a table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vae.errors import UsageError

if TYPE_CHECKING:
    from vae.data import Data, Split
    from vae.evaluation import Columns
    from vae.models import VAE

METHODS = ("is", "hmc", "ais", "quadrature")  # the rows of LOG_LIKELIHOODS, without importing torch for --help
SIMULATED = 50  # data of a self-check where --limit says nothing


def check(args: Any) -> None:
    """UsageError where arguments do not go together."""
    if args.chains is not None and args.log_likelihood not in ("hmc", "ais") and not args.self_check:
        raise UsageError("evaluate.py: --chains is of --log-likelihood hmc and ais, and of --self-check")
    if args.start is not None and args.log_likelihood != "ais" and not args.self_check:
        raise UsageError("evaluate.py: --start is of --log-likelihood ais, and of --self-check")
    if args.gaps and args.self_check:
        raise UsageError("evaluate.py: --gaps is of the data, --self-check of simulated ones; ask for one at a time")
    if args.self_check and (args.data is not None or args.split != "test"):
        raise UsageError("evaluate.py: --self-check simulates its data; leave --split and --data out")
    others = args.gaps or args.self_check or args.log_likelihood or args.num_samples
    if args.representation and (others or args.data is not None or args.split != "test"):
        raise UsageError(
            "evaluate.py: --representation is about the codes of training and test split; ask for it without "
            "--log-likelihood, --gaps, --self-check, --num-samples, --split and --data"
        )
    if args.gaps and args.log_likelihood is not None:
        raise UsageError("evaluate.py: --gaps estimates log p(x) itself, from the best q; leave --log-likelihood out")


def estimator_of(method: str, num_samples: int | None, chains: int | None = None, start: str | None = None) -> Any:
    """The estimator that the arguments choose."""
    from vae.evaluation import LOG_LIKELIHOODS

    options = {"num_samples": num_samples, "chains": chains, "start": start}
    return LOG_LIKELIHOODS[method](**{key: value for key, value in options.items() if value is not None})


def ask(model: VAE, split: Split, name: str, data: Data | None, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the arguments ask beyond the ELBO: a record, empty where they ask nothing, and the values of each datum."""
    if args.representation and data is not None:
        from vae.evaluation import evaluate_representation

        splits = data.evaluation_split("train"), data.evaluation_split("test")
        return {"representation": evaluate_representation(model, *splits, seed=args.seed, limit=args.limit)}, {}
    if args.self_check:
        return {"self_check": self_check(model, args)}, {}
    if args.gaps:
        record, columns = gaps(model, split, name, args)
        return {"gaps": record}, columns
    if args.log_likelihood is not None:
        record, columns = log_likelihood(model, split, name, args)
        return {"log_p_x": record}, columns
    return {}, {}


def _how(args: Any) -> dict[str, Any]:
    """How every estimate is made."""
    return {"seed": args.seed, "batch_size": args.batch_size, "verbose": True}


def log_likelihood(model: VAE, split: Split, name: str, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of --log-likelihood, and the values of each datum."""
    from vae.evaluation import measure

    estimator = estimator_of(args.log_likelihood, args.num_samples, args.chains, args.start)
    columns = measure(model, split, estimator, name=name, **_how(args))
    return describe(estimator, columns, model.latent_dim), {k: v.numpy() for k, v in columns.values.items()}


def describe(estimator: Any, columns: Columns, latent_dim: int) -> dict[str, Any]:
    """What an estimator found, for people and programs."""
    from vae.evaluation import mean_and_stderr

    enough, verdict = estimator.verdict(columns.values, latent_dim)
    record = {
        **mean_and_stderr(columns["log_p_x"]),
        "monte_carlo_error": _number(columns.monte_carlo_error()),
        "estimator": estimator.method,
        "num_samples": estimator.num_samples,
    }
    record |= {key: getattr(estimator, key) for key in ("chains", "start") if hasattr(estimator, key)}
    for key in ("bias", "ess", "acceptance", "diverged", "points"):
        if key in columns.values:
            record[key] = _number(columns[key].mean().item())
    for key in ("k_hat", "r_hat"):
        if key in columns.values:
            middle, largest = columns[key].median().item(), columns[key].max().item()
            record[key] = {"median": _number(middle), "largest": _number(largest)}
    return {**record, "seconds": round(columns.seconds, 3), "enough": enough, "verdict": verdict}


def gaps(model: VAE, split: Split, name: str, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of --gaps, and the values of each datum."""
    from vae.evaluation import Gaps, mean_and_stderr, measure

    estimator = Gaps() if args.num_samples is None else Gaps(num_samples=args.num_samples)
    columns = measure(model, split, estimator, name=name, **_how(args))
    record: dict[str, Any] = {"num_samples": estimator.num_samples, "seconds": round(columns.seconds, 3)}
    errors = dict.fromkeys(_GAPS, "error") | {"best": "best_error", "bound": "bound_error"}
    errors |= {key: f"{key}_error" for key in ("approximation", "amortisation")}
    for key in _GAPS:
        error = _number(columns.monte_carlo_error(errors[key]))
        record[key] = {**mean_and_stderr(columns[key]), "monte_carlo_error": error}
    record["k_hat"] = {"median": _number(columns["k_hat"].median().item()), "above": _share_above(columns["k_hat"])}
    return record, {k: v.numpy() for k, v in columns.values.items()}


def _share_above(k_hat: Any) -> float:
    """The share of data whose weights are too heavy to trust."""
    return (k_hat > 0.7).double().mean().item()


def self_check(model: VAE, args: Any) -> dict[str, Any]:
    """log p(x) of data simulated from the model, bounded from both sides, and the chosen estimate beside."""
    from vae.evaluation import Annealed, SandwichedAnnealing, mean_and_stderr, measure, simulated

    count = args.limit or SIMULATED
    split, codes = simulated(model, count, args.seed)
    method = args.log_likelihood or "ais"
    annealing = estimator_of("ais", args.num_samples if method == "ais" else None, args.chains, args.start)
    assert isinstance(annealing, Annealed)
    if method != "ais":
        estimator = estimator_of(method, args.num_samples, args.chains if method == "hmc" else None)
        estimator.check(model)
    both = measure(model, split, SandwichedAnnealing(annealing, codes), name="simulated", **_how(args))
    lower, upper = mean_and_stderr(both["log_p_x"]), mean_and_stderr(both["upper"])
    gap = mean_and_stderr(both["upper"] - both["log_p_x"])
    record: dict[str, Any] = {"lower": lower, "upper": upper, "gap": gap, "seconds": round(both.seconds, 3)}
    words = f"on data simulated from this model, the bounds of log p(x) are {gap['mean']:.3f} nats apart"
    words += f" (standard error {gap['stderr']:.3f})" if gap["stderr"] is not None else ""
    if method != "ais":
        columns = measure(model, split, estimator, name="simulated", **_how(args))
        record["estimate"] = describe(estimator, columns, model.latent_dim)
        words += "; " + _placed(method, columns, both)
    elif gap["mean"] > 1:
        words += ", which is far: take more --num-samples (distributions), or --start prior"
    return {**record, "verdict": words}


def _placed(method: str, columns: Columns, both: Columns) -> str:
    """Where an estimate lies between the two bounds, within three standard errors of the differences over data."""
    if any(error.isnan().any() for error in (columns["error"], both["error"])):
        return f"one sample or chain is too few to tell where the estimate by {method} lies"
    below = (both["log_p_x"] - columns["log_p_x"]).mean().item()
    above = (columns["log_p_x"] - both["upper"]).mean().item()
    slack = [3 * math.hypot(columns.monte_carlo_error(), both.monte_carlo_error(e)) for e in ("error", "upper_error")]
    inside = below <= slack[0] and above <= slack[1]
    return f"the estimate by {method} lies " + ("inside" if inside else "outside: do not trust it on this model")


def lines_of(record: dict[str, Any]) -> list[str]:
    """The rows of a table for log p(x), gaps or the self-check."""
    lines = []
    if "log_p_x" in record:
        it = record["log_p_x"]
        lines.append(_row("log p(x)", it))
        facts = [f"{it['estimator']}, {it['num_samples'] or 'default'} {_COUNTED[it['estimator']]}"]
        facts += [f"{it['chains']} chains"] if "chains" in it else []
        facts += [f"from the {it['start']}"] if "start" in it else []
        if it["estimator"] != "quadrature" and it["monte_carlo_error"] is not None:
            facts.append(f"Monte Carlo error {it['monte_carlo_error']:.4f}")
        facts += [f"{word} {it[key]:.3g}" for key, word in _FACTS.items() if it.get(key) is not None]
        facts += [
            f"{word} {it[key]['median']:.2f} (median), {it[key]['largest']:.2f} (largest)"
            for key, word in (("k_hat", "k-hat"), ("r_hat", "R-hat"))
            if key in it and it[key]["median"] is not None and it[key]["largest"] is not None
        ]
        lines += [f"{'':12}{', '.join(facts)}; {it['seconds']:.1f} s", f"{'':12}{it['verdict']}"]
    if "gaps" in record:
        it = record["gaps"]
        for key, word in _GAPS.items():
            error = it[key]["monte_carlo_error"]
            lines.append(_row(word, it[key]) + (f"   Monte Carlo error {error:.4f}" if error is not None else ""))
        if it["k_hat"]["above"] > 0.05:
            lines.append(
                f"{'':12}log p(x) is too low for {it['k_hat']['above']:.0%} of the data (k-hat above 0.7), and the "
                "approximation gap with it"
            )
        lines.append(
            f"{'':12}q* is the best q of the family for each datum; {it['num_samples']} samples, {it['seconds']:.1f} s"
        )
    if "self_check" in record:
        it = record["self_check"]
        lines += [_row("lower bound", it["lower"]), _row("upper bound", it["upper"])]
        if "estimate" in it:
            lines.append(_row(it["estimate"]["estimator"], it["estimate"]))
        lines += [f"{'':12}{it['verdict']}; {it['seconds']:.1f} s"]
    if "representation" in record:
        from vae.evaluation import representation_table

        lines += representation_table(record["representation"]).splitlines()
    return lines


_COUNTED = {"is": "samples", "hmc": "samples", "ais": "distributions", "quadrature": "points an axis"}
_FACTS = {"ess": "ESS", "acceptance": "acceptance", "points": "points a datum"}
_GAPS = {
    "log_p_x": "log p(x)",
    "best": "L[q*]",
    "bound": "L[q]",
    "approximation": "approx. gap",
    "amortisation": "amort. gap",
}


def _row(word: str, it: dict[str, Any]) -> str:
    stderr = f"{it['stderr']:12.4f}" if it["stderr"] is not None else f"{'-':>12}"
    return f"{word:12}{it['mean']:12.4f}{stderr}"


def _number(value: float) -> float | None:
    """A number that JSON has."""
    return value if abs(value) < float("inf") else None
