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
    if args.chains is not None and args.log_likelihood == "hmc" and (args.chains < 4 or args.chains % 2):
        raise UsageError(f"evaluate.py: --chains: hmc needs an even number of at least 4, not {args.chains}")
    if args.start is not None and args.log_likelihood != "ais" and not args.self_check:
        raise UsageError("evaluate.py: --start is of --log-likelihood ais, and of --self-check")
    if args.gaps and args.self_check:
        raise UsageError("evaluate.py: --gaps is of the data, --self-check of simulated ones; ask for one at a time")
    if args.self_check and (args.data is not None or args.split != "test"):
        raise UsageError("evaluate.py: --self-check simulates its data; leave --split and --data out")
    if args.representation and (args.gaps or args.self_check or args.log_likelihood or args.data or args.num_samples):
        raise UsageError(
            "evaluate.py: --representation is about the codes of training and test split; ask for it without "
            "--log-likelihood, --gaps, --self-check, --num-samples and --data"
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


def log_likelihood(model: VAE, split: Split, name: str, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The record of --log-likelihood, and the values of each datum."""
    from vae.evaluation import measure

    estimator = estimator_of(args.log_likelihood, args.num_samples, args.chains, args.start)
    columns = measure(model, split, estimator, name=name, seed=args.seed, verbose=True)
    return describe(estimator, columns, model.latent_dim), {k: v.numpy() for k, v in columns.values.items()}


def describe(estimator: Any, columns: Columns, latent_dim: int) -> dict[str, Any]:
    """What an estimator found, for people and programs."""
    from vae.evaluation import summary

    enough, verdict = estimator.verdict(columns.values, latent_dim)
    record = {
        **summary(columns["log_p_x"]),
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
    from vae.evaluation import Gaps, measure, summary

    estimator = Gaps() if args.num_samples is None else Gaps(args.num_samples)
    columns = measure(model, split, estimator, name=name, seed=args.seed, verbose=True)
    record = {key: summary(columns[key]) for key in ("log_p_x", "best", "bound", "approximation", "amortisation")}
    return {**record, "num_samples": estimator.num_samples, "seconds": round(columns.seconds, 3)}, {
        k: v.numpy() for k, v in columns.values.items()
    }


def self_check(model: VAE, args: Any) -> dict[str, Any]:
    """log p(x) of data simulated from the model, bounded from both sides, and the chosen estimate beside."""
    from vae.evaluation import Annealed, SandwichedAnnealing, measure, simulated, summary

    count = args.limit or SIMULATED
    split, codes = simulated(model, count, args.seed)
    method = args.log_likelihood or "ais"
    annealing = estimator_of("ais", args.num_samples if method == "ais" else None, args.chains, args.start)
    assert isinstance(annealing, Annealed)
    both = measure(model, split, SandwichedAnnealing(annealing, codes), name="simulated", seed=args.seed, verbose=True)
    lower, upper = summary(both["log_p_x"]), summary(both["upper"])
    gap = upper["mean"] - lower["mean"]
    record: dict[str, Any] = {"lower": lower, "upper": upper, "gap": gap, "seconds": round(both.seconds, 3)}
    words = f"on data simulated from this model, log p(x) lies within a gap of {gap:.3f} nats"
    if method != "ais":
        estimator = estimator_of(method, args.num_samples, args.chains if method == "hmc" else None)
        columns = measure(model, split, estimator, name="simulated", seed=args.seed, verbose=True)
        record["estimate"] = describe(estimator, columns, model.latent_dim)
        estimate, own = columns["log_p_x"].mean().item(), columns.monte_carlo_error()
        below, above = (3 * math.hypot(own, both.monte_carlo_error(name)) for name in ("error", "upper_error"))
        inside = lower["mean"] - below <= estimate <= upper["mean"] + above
        words += f"; the estimate by {method} lies " + (
            "inside" if inside else "outside: do not trust it on this model"
        )
    elif gap > 1:
        words += ", which is wide: take more --num-samples (distributions)"
    return {**record, "verdict": words}


def lines_of(record: dict[str, Any]) -> list[str]:
    """The rows of a table for log p(x), gaps or the self-check."""
    lines = []
    if "log_p_x" in record:
        it = record["log_p_x"]
        lines.append(_row("log p(x)", it))
        facts = [f"{it['estimator']}, {it['num_samples'] or 'default'} samples"]
        facts += [f"{it['chains']} chains"] if "chains" in it else []
        facts += [f"from the {it['start']}"] if "start" in it else []
        facts += [f"Monte Carlo error {it['monte_carlo_error']:.4f}"] if it["monte_carlo_error"] is not None else []
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
            lines.append(_row(word, it[key]))
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
