"""What evaluate.py answers beyond the ELBO: log p(x), its gaps to the ELBO, a check on simulated data, and how useful
the codes are. Each answer is a record for the JSON and the table."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from vae.errors import UsageError
from vae.text import mean_row

if TYPE_CHECKING:
    from vae.data import Data, Split
    from vae.evaluation import Columns
    from vae.models import VAE

METHODS = ("is", "hmc", "ais", "quadrature")  # the keys of LOG_LIKELIHOODS, which would import torch
SIMULATED = 50  # data of a self-check without --limit


def check_arguments(args: Any) -> None:
    """UsageError if arguments do not go together."""
    if args.chains is not None and args.log_likelihood not in ("hmc", "ais") and not args.self_check:
        raise UsageError("evaluate.py: --chains needs --log-likelihood hmc or ais, or --self-check")
    if args.start is not None and args.log_likelihood != "ais" and not args.self_check:
        raise UsageError("evaluate.py: --start needs --log-likelihood ais, or --self-check")
    if args.gaps and args.self_check:
        raise UsageError("evaluate.py: --gaps uses the data and --self-check simulated data; give one of them")
    if args.self_check and (args.data is not None or args.split != "test"):
        raise UsageError("evaluate.py: --self-check simulates its data; leave --split and --data out")
    others = args.gaps or args.self_check or args.log_likelihood or args.num_samples
    if args.representation and (others or args.data is not None or args.split != "test"):
        raise UsageError(
            "evaluate.py: --representation evaluates the codes of the training and test splits; leave out "
            "--log-likelihood, --gaps, --self-check, --num-samples, --split and --data"
        )
    if args.gaps and args.log_likelihood is not None:
        raise UsageError("evaluate.py: --gaps estimates log p(x) itself, with the best q; leave --log-likelihood out")


def _estimator(method: str, num_samples: int | None, chains: int | None = None, start: str | None = None) -> Any:
    """An estimator of log p(x) with the given options."""
    from vae.evaluation import LOG_LIKELIHOODS

    options = {"num_samples": num_samples, "chains": chains, "start": start}
    return LOG_LIKELIHOODS[method](**{key: value for key, value in options.items() if value is not None})


def answer(model: VAE, split: Split, name: str, data: Data | None, args: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A record of what the arguments ask for beyond the ELBO, empty if nothing, and the values of each datum."""
    if args.representation and data is not None:
        from vae.evaluation import evaluate_representation

        splits = data.evaluation_split("train"), data.evaluation_split("test")
        return {"representation": evaluate_representation(model, *splits, seed=args.seed, limit=args.limit)}, {}
    if args.self_check:
        return {"self_check": _self_check(model, args)}, {}
    if args.gaps or args.log_likelihood is not None:
        key, estimate = ("gaps", _gaps) if args.gaps else ("log_p_x", _log_likelihood)
        record, columns = estimate(model, split, name, args)
        return {key: record}, {key: column.numpy() for key, column in columns.values.items()}
    return {}, {}


def _common(args: Any) -> dict[str, Any]:
    """The arguments that every measurement takes."""
    return {"seed": args.seed, "batch_size": args.batch_size, "verbose": True}


def _log_likelihood(model: VAE, split: Split, name: str, args: Any) -> tuple[dict[str, Any], Columns]:
    """The record of --log-likelihood, and its columns."""
    from vae.evaluation import measure

    estimator = _estimator(args.log_likelihood, args.num_samples, args.chains, args.start)
    columns = measure(model, split, estimator, name=name, **_common(args))
    return _estimate_record(estimator, columns, model.latent_dim), columns


def _estimate_record(estimator: Any, columns: Columns, latent_dim: int) -> dict[str, Any]:
    """The record of an estimate of log p(x), with its diagnostics."""
    from vae.evaluation import mean_and_stderr

    enough, verdict = estimator.verdict(columns.values, latent_dim)
    record = {
        **mean_and_stderr(columns["log_p_x"]),
        "monte_carlo_error": _finite(columns.monte_carlo_error()),
        "estimator": estimator.method,
        "num_samples": estimator.num_samples,
    }
    record |= {key: getattr(estimator, key) for key in ("chains", "start") if hasattr(estimator, key)}
    for key in ("bias", "ess", "acceptance", "diverged", "points"):
        if key in columns.values:
            record[key] = _finite(columns[key].mean().item())
    for key in ("k_hat", "r_hat"):
        if key in columns.values:
            median, largest = columns[key].median().item(), columns[key].max().item()
            record[key] = {"median": _finite(median), "largest": _finite(largest)}
    return {**record, "seconds": round(columns.seconds, 3), "enough": enough, "verdict": verdict}


def _gaps(model: VAE, split: Split, name: str, args: Any) -> tuple[dict[str, Any], Columns]:
    """The record of --gaps, and its columns."""
    from vae.evaluation import Gaps, mean_and_stderr, measure

    estimator = Gaps() if args.num_samples is None else Gaps(num_samples=args.num_samples)
    columns = measure(model, split, estimator, name=name, **_common(args))
    record: dict[str, Any] = {"num_samples": estimator.num_samples, "seconds": round(columns.seconds, 3)}
    errors = dict.fromkeys(_GAP_ROWS, "error") | {"best": "best_error", "bound": "bound_error"}
    errors |= {key: f"{key}_error" for key in ("approximation", "amortisation")}
    for key in _GAP_ROWS:
        error = _finite(columns.monte_carlo_error(errors[key]))
        record[key] = {**mean_and_stderr(columns[key]), "monte_carlo_error": error}
    k_hat = columns["k_hat"]  # above 0.7, the weights are too heavy-tailed to trust
    record["k_hat"] = {"median": _finite(k_hat.median().item()), "above": (k_hat > 0.7).double().mean().item()}
    return record, columns


def _self_check(model: VAE, args: Any) -> dict[str, Any]:
    """The record of --self-check: bounds of log p(x) of simulated data from both sides, and the chosen estimate."""
    from vae.evaluation import Annealed, SandwichedAnnealing, mean_and_stderr, measure, simulated

    count = args.limit or SIMULATED
    split, codes = simulated(model, count, args.seed)
    method = args.log_likelihood or "ais"
    annealing = _estimator("ais", args.num_samples if method == "ais" else None, args.chains, args.start)
    assert isinstance(annealing, Annealed)
    if method != "ais":
        estimator = _estimator(method, args.num_samples, args.chains if method == "hmc" else None)
        estimator.check(model)
    both = measure(model, split, SandwichedAnnealing(annealing, codes), name="simulated", **_common(args))
    lower, upper = mean_and_stderr(both["log_p_x"]), mean_and_stderr(both["upper"])
    gap = mean_and_stderr(both["upper"] - both["log_p_x"])
    record: dict[str, Any] = {"lower": lower, "upper": upper, "gap": gap, "seconds": round(both.seconds, 3)}
    verdict = f"on data simulated from this model, the bounds of log p(x) are {gap['mean']:.3f} nats apart"
    verdict += f" (standard error {gap['stderr']:.3f})" if gap["stderr"] is not None else ""
    if method != "ais":
        columns = measure(model, split, estimator, name="simulated", **_common(args))
        record["estimate"] = _estimate_record(estimator, columns, model.latent_dim)
        verdict += "; " + _position(method, columns, both)
    elif gap["mean"] > 1:
        verdict += ", which is much: try a larger --num-samples (distributions), or --start prior"
    return {**record, "verdict": verdict}


def _position(method: str, columns: Columns, both: Columns) -> str:
    """Whether an estimate lies between the two bounds, up to three Monte Carlo standard errors."""
    if any(error.isnan().any() for error in (columns["error"], both["error"])):
        return f"one sample or chain is too few to decide where the estimate by {method} lies"
    below = (both["log_p_x"] - columns["log_p_x"]).mean().item()
    above = (columns["log_p_x"] - both["upper"]).mean().item()
    slack = [3 * math.hypot(columns.monte_carlo_error(), both.monte_carlo_error(e)) for e in ("error", "upper_error")]
    inside = below <= slack[0] and above <= slack[1]
    return f"the estimate by {method} lies " + ("inside" if inside else "outside: do not trust it on this model")


def answer_lines(record: dict[str, Any]) -> list[str]:
    """The lines of the table for what `answer` has added to a record."""
    lines = []
    if "log_p_x" in record:
        it = record["log_p_x"]
        lines.append(mean_row("log p(x)", it))
        facts = [f"{it['estimator']}, {it['num_samples'] or 'default'} {_COUNTED[it['estimator']]}"]
        facts += [f"{it['chains']} chains"] if "chains" in it else []
        facts += [f"from the {it['start']}"] if "start" in it else []
        if it["estimator"] != "quadrature" and it["monte_carlo_error"] is not None:
            facts.append(f"Monte Carlo error {it['monte_carlo_error']:.4f}")
        facts += [f"{name} {it[key]:.3g}" for key, name in _FACTS.items() if it.get(key) is not None]
        facts += [
            f"{name} {it[key]['median']:.2f} (median), {it[key]['largest']:.2f} (largest)"
            for key, name in (("k_hat", "k-hat"), ("r_hat", "R-hat"))
            if key in it and it[key]["median"] is not None and it[key]["largest"] is not None
        ]
        lines += [f"{'':12}{', '.join(facts)}; {it['seconds']:.1f} s", f"{'':12}{it['verdict']}"]
    if "gaps" in record:
        it = record["gaps"]
        for key, name in _GAP_ROWS.items():
            error = it[key]["monte_carlo_error"]
            lines.append(mean_row(name, it[key]) + (f"   Monte Carlo error {error:.4f}" if error is not None else ""))
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
        lines += [mean_row("lower bound", it["lower"]), mean_row("upper bound", it["upper"])]
        if "estimate" in it:
            lines.append(mean_row(it["estimate"]["estimator"], it["estimate"]))
        lines += [f"{'':12}{it['verdict']}; {it['seconds']:.1f} s"]
    if "representation" in record:
        from vae.evaluation import representation_table

        lines += representation_table(record["representation"]).splitlines()
    return lines


_COUNTED = {"is": "samples", "hmc": "samples", "ais": "distributions", "quadrature": "points per axis"}
_FACTS = {"ess": "ESS", "acceptance": "acceptance", "points": "points per datum"}
_GAP_ROWS = {
    "log_p_x": "log p(x)",
    "best": "L[q*]",
    "bound": "L[q]",
    "approximation": "approx. gap",
    "amortisation": "amort. gap",
}


def _finite(value: float) -> float | None:
    """The value, or None if JSON cannot hold it."""
    return value if abs(value) < float("inf") else None
