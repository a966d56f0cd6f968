"""What is measured on the models of Kingma & Welling 2013: bounds along the training, and log p(x) in three ways."""

import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vae import hmc
from vae.data import Data, Split
from vae.distributions import MultivariateNormal, Noise, sum_from
from vae.errors import TrainingFailed
from vae.evaluation import Annealed, FittedDensity, ImportanceSampling, Quadrature, evaluate_bound, pareto
from vae.evaluation import measure as log_likelihood
from vae.evaluation.base import DatumNoise, for_the_decoder, log_mean_exp, mean_and_stderr
from vae.evaluation.density import fit_log_ratio, fitted_gaussian
from vae.evaluation.importance import stream_weights
from vae.files import write_atomically
from vae.models import VAE
from vae.reproduce.document import Arrays, Made, Results
from vae.reproduce.pictures import QUANTILES, as_bytes
from vae.schema import Part
from vae.training.run import train
from vae.training.run_directory import history
from vae.training.settings import Settings

RATES = (0.01, 0.02, 0.1)
EXPLODED = -50_000.0  # nats; an untrained model has -543 on MNIST and -527 on the faces

# ------------------------------------------------------------------------------------- figures 2, 4 and 5


def bounds(made: Made) -> tuple[Results, Arrays]:
    """The bound along the training and at its end, and how the estimator of a datum's bound varies with its noise."""
    model, test = made.run.model, made.data.evaluation_split("test")
    splits = {"train": made.data.evaluation_split("train").first(10_000), "test": test}
    few = test.first(1000)
    noisy = torch.stack([evaluate_bound(model, few, name="test", seed=seed).elbo for seed in range(10)])  # (10, N)
    last = made.curve[-1]
    results: Results = {
        "curve": curve(history(made.run.path)),
        "end": {name: mean_and_stderr(evaluate_bound(model, split, name=name).elbo) for name, split in splits.items()},
        "minutes_per_million": last["seconds"] / 60 / (last["samples"] / 1e6),
        "variance": {"of_a_datum": noisy.var(0).mean().item(), "of_the_mean": noisy.var(0).mean().item() / len(test)},
    }
    if made.settings.data.name == "frey_face":
        results["factorial"] = factorial_gaussian(made.data)
    return results, pictures(model, made.seed) if made.pictures else {}


def curve(lines: Iterable[dict[str, Any]]) -> dict[str, list[float]]:
    """The bound on the test split where it was evaluated, and the mean of the training values since the time before.

    The training values are from before each update, as those of the paper seem to be.
    """
    rows, since = list[tuple[float, float, float]](), list[float]()
    for line in lines:
        if line["split"] == "train":
            since.append(line["elbo"])
        elif line["split"] == "test" and since:
            rows.append((line["samples"], round(statistics.fmean(since), 3), round(line["elbo"], 3)))
            since = []
    return {name: [row[i] for row in rows] for i, name in enumerate(("samples", "train", "test"))}


def pictures(model: VAE, seed: int) -> Arrays:
    """The manifold of two latents, z_1 across and z_2 down, and 100 samples."""
    arrays = {"samples": as_bytes(model.sample(100, seed=seed))}
    if model.latent_dim == 2:
        z = torch.from_numpy(np.stack(np.meshgrid(QUANTILES, QUANTILES), -1).reshape(-1, 2))
        arrays["manifold"] = as_bytes(model.decode(z))
    return arrays


def factorial_gaussian(data: Data) -> dict[str, float]:
    """The mean log density of independent Gaussian pixels, fitted to the faces: what a model learns that ignores z."""
    train, test = (data.evaluation_split(name).images().flatten(1).double() for name in ("train", "test"))
    fitted = torch.distributions.Normal(train.mean(0), train.std(0, correction=0))
    return {name: fitted.log_prob(x).sum(1).mean().item() for name, x in (("train", train), ("test", test))}


def with_appendix_d(made: Made) -> tuple[Results, Arrays]:
    """The same, and how far appendix D, with its numbers of samples, is from annealed importance sampling: 100 data."""
    results, arrays = bounds(made)
    model, few = made.run.model, made.data.evaluation_split("test").first(2 if made.quick else 100)
    ways = FittedDensity(num_samples=50, chains=4, num_leapfrog=4), Annealed(num_samples=20 if made.quick else 500)
    hmc, ais = (log_likelihood(model, few, way, name="test")["log_p_x"] for way in ways)
    return {**results, "appendix_d_less_ais": mean_and_stderr(hmc - ais)}, arrays


def search(made: Made) -> tuple[Results, Arrays]:
    """How far each step size comes with 300,000 samples: the training bound, of MCEM log p(x) as in appendix D.

    (Its encoder lags behind the decoder.) None where it explodes: to what is not finite, or to an epoch whose mean is a
    hundred times worse than an untrained model. Adagrad's first steps are as large as the rate, whatever the gradient,
    so that every rate overshoots a little.
    """
    return {"bound": {str(rate): _begun(made, rate) for rate in RATES}}, {}


def _begun(made: Made, rate: float) -> float | None:
    options = {**made.settings.train.optimizer.options, "lr": rate}
    samples, few = (1000, 10) if made.quick else (300_000, 200)
    try:
        how = {"epochs": None, "samples": samples, "optimizer": Part("adagrad", options)}
        run = train(_with_train(made.settings, **how), None, verbose=False)
    except TrainingFailed:
        return None
    mcem = made.settings.train.algorithm.name == "mcem"
    values = [line["objective" if mcem else "elbo"] for line in run.history if line["split"] == "train"]
    if mcem:
        split = run.data.evaluation_split("train").first(few)
        values.append(log_likelihood(run.model, split, AppendixD(), name="train")["log_p_x"].mean().item())
    return None if min(values) < EXPLODED else values[-1]


def _cost(made: Made) -> int:
    """How many samples the paper counts for a datum of a minibatch: for MCEM each step of leapfrog, and each update."""
    options = made.settings.train.algorithm.options
    return options.get("leapfrog", 0) + options.get("updates", 1)


def _with_train(settings: Settings, **changes: Any) -> Settings:
    return replace(settings, train=replace(settings.train, **changes))


# ------------------------------------------------------------------------------------- figure 3

CANDIDATES = 2000  # of q(z|x), and as many of the prior, of which the chains' starts are chosen


@dataclass(frozen=True, kw_only=True)
class AppendixD(FittedDensity):
    """Appendix D as figure 3 has it: a density fitted to 50 draws of p(z|x), and evaluated at the 50 that follow.

    The four chains begin at draws of p(z|x) by resampling candidates of q(z|x) and of the prior: begun at q alone, they
    stay in minor modes where the encoder lags (MCEM) or overfits, and the estimate is off by tens of nats. Column `is`:
    importance sampling from a Gaussian fitted to all draws, its covariance 1.5 times as large.
    """

    num_samples: int = 100
    chains: int = 4
    num_leapfrog: int = 4
    importance: int = 0  # samples of the column `is`

    def begin(self, model: VAE, x: Tensor, noise: DatumNoise) -> tuple[Tensor, Tensor]:  # (C, M, J), (M, J)
        """Draws of p(z|x), and its standard deviations, by importance resampling."""
        q, prior = model.posterior(x), model.prior
        of_q = q.transform(noise("of q", model.noise, CANDIDATES))
        of_prior = prior.transform(noise("of p", prior.noise, CANDIDATES))
        z = torch.cat([of_q, of_prior])  # (2 S, M, J)
        log_mixture = torch.logaddexp(sum_from(q.log_prob(z), 2), sum_from(prior.log_prob(z), 2))
        log_joint = torch.cat([model.log_joint(x, part) for part in for_the_decoder(model, z)])
        weights = (log_joint - log_mixture).softmax(0)  # (2 S, M)
        spread = (weights[..., None] * (z - (weights[..., None] * z).sum(0)).square()).sum(0).sqrt()
        u = noise("resampling", Noise("uniform", ()), self.chains)  # (C, M)
        chosen = torch.searchsorted(weights.cumsum(0).T.contiguous(), u.T.contiguous()).clamp(max=len(z) - 1).T
        start = z.gather(0, chosen[..., None].expand(-1, -1, z.shape[-1]))
        return start, spread.clamp(min=0.02)  # a single candidate may have all the weight

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """Columns (M,): log_p_x, k_hat (of the ratios), r_hat, and `is` if it is asked for."""
        z, values, _ = self.draws(model, x, noise, tick)  # (T, C, M, J), (T, C, M)
        every = z.flatten(0, 1)  # in the order of time
        fit, plug = every.tensor_split(2)
        ratios = fit_log_ratio(fit, plug, values.flatten(0, 1)[len(fit) :])
        k_hat, r_hat = pareto.k_hat(ratios, len(ratios)), hmc.split_r_hat(z)
        found = {"log_p_x": -log_mean_exp(ratios), "k_hat": k_hat, "r_hat": r_hat}
        if self.importance:
            narrow = fitted_gaussian(every)
            q = MultivariateNormal(narrow.loc.to(x), (1.5**0.5 * narrow.scale_tril).to(x))
            found["is"] = stream_weights(model, x, q, noise, self.importance).log_mean
        return found


def marginal(made: Made) -> tuple[Results, Arrays]:
    """log p(x) of the first 1,000 data of both splits at twelve points of the training, estimated as in appendix D.

    Beside it importance sampling with 5,000 samples, and at the end quadrature of the first 100. What has been measured
    is kept beside the run, so that it can be stopped and goes on.
    """
    cost, values = _cost(made), []
    points, limit = ((100 * cost,), 10) if made.quick else (POINTS, 1000)
    for samples in points:
        file, end = made.folder / f"log_p_x_at_{samples}.json", samples == points[-1]
        if not file.exists():
            settings = _with_train(made.settings, epochs=None, samples=max(1, round(samples / cost)))
            run = train(settings, made.folder / "run", resume=True, verbose=False)
            last = run.history[-1]
            about = {"samples": last["samples"] * cost, "minutes": last["seconds"] / 60}
            for name in ("train", "test"):
                split = run.data.evaluation_split(name).first(limit)
                about[name] = _estimates(run.model, split, name, cost > 1, importance=made.pictures or end, end=end)
            write_atomically(file, json.dumps(about).encode())
        values.append(json.loads(file.read_text()))
        made.say(f"log p(x) {values[-1]['test']['hmc']['mean']:.1f} after {samples:,} of {points[-1]:,} samples")
    return {"curve": values, "end": values[-1]}, {}


POINTS = tuple(round(x, -4) for x in np.geomspace(1e6, 6e7, 12).astype(int).tolist())


def _estimates(model: VAE, split: Split, name: str, mcem: bool, *, importance: bool, end: bool) -> Results:
    """Means over the data, with their standard errors over the data. MCEM's encoder is no proposal."""
    columns = log_likelihood(model, split, AppendixD(importance=5000 if mcem and importance else 0), name=name)
    found = {"hmc": columns["log_p_x"]}
    if importance:
        by_q = ImportanceSampling(num_samples=5000)
        found["is"] = columns["is"] if mcem else log_likelihood(model, split, by_q, name=name)["log_p_x"]
    results = {method: mean_and_stderr(values) for method, values in found.items()}
    if end:
        few = split.first(100)
        exact = log_likelihood(model, few, Quadrature(), name=name)["log_p_x"]
        results["quadrature"] = mean_and_stderr(exact)
        for method, values in found.items():
            results[f"{method}_less_quadrature"] = mean_and_stderr(values[: len(few)] - exact)
    return results
