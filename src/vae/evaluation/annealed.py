"""log p(x) by annealed importance sampling (Neal 2001), and from above by running it backwards (Grosse et al. 2015).

From f_0, a density that can be sampled (q(z|x) or the prior), to f_1 = p(x, z) along f_b = f_0^(1-b) p(x, z)^b:

    log w = sum_t (b_t - b_{t-1}) [log p(x, z_{t-1}) - log f_0(z_{t-1})],   z_0 ~ f_0, z_t ~ HMC at b_t from z_{t-1},

has E[w] = p(x) for any schedule and any fixed kernels, so E[log w] <= log p(x). Started at an exact posterior sample
and run backwards, E[1/w] = 1/p(x), an upper bound. For simulated x such a sample is known: the z it came from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from vae import hmc
from vae.data import Split
from vae.distributions import Noise, sum_from
from vae.evaluation.base import DatumNoise, log_mean_exp, rows_at_once
from vae.evaluation.density import posterior_scale
from vae.evaluation.importance import check_cover
from vae.models import VAE, evaluating
from vae.schema import Count, validated

FEWEST = 20  # distributions; with fewer, chains may agree by chance
KNOTS, STEPS = 8, 15  # places on the path where step sizes are tuned beforehand, and steps at each


class Path(NamedTuple):
    """The path from f_0 to the joint density, and its inverse temperatures."""

    log_start: hmc.LogDensity  # log f_0, normalised
    log_joint: hmc.LogDensity
    betas: Tensor  # (T + 1,), from 0 to 1

    def at(self, t: int) -> hmc.Target:
        """log f_{b_t}. Its chains carry values and gradients of both ends, which serve at every temperature."""

        def chains(z: Tensor) -> hmc.Chains:
            start, joint = hmc.init(self.log_start, z), hmc.init(self.log_joint, z)
            ends = (start.log_density, joint.log_density, start.gradient, joint.gradient)
            return self.moved(hmc.Chains(*start[:3], ends), t)

        return chains

    def moved(self, chains: hmc.Chains, t: int) -> hmc.Chains:
        """The same chains on log f_{b_t} = (1 - b_t) log f_0 + b_t log p(x, z)."""
        beta, (start, joint, of_start, of_joint) = self.betas[t].item(), chains.parts
        if beta == 0:  # where log p(x, z) may be -inf
            return chains._replace(log_density=start, gradient=of_start)
        log_density, gradient = (1 - beta) * start + beta * joint, (1 - beta) * of_start + beta * of_joint
        return chains._replace(log_density=log_density, gradient=gradient)

    def difference(self, chains: hmc.Chains) -> Tensor:  # (C, M)
        """log p(x, z) - log f_0(z), in double precision, because many small shares of it are summed."""
        return chains.parts[1].double() - chains.parts[0].double()


def schedule(num_steps: int, kind: Literal["linear", "sigmoid"]) -> Tensor:  # (T + 1,)
    """Inverse temperatures from 0 to 1: evenly spaced, or a sigmoid's, dense at both ends (Wu et al. 2017)."""
    t = torch.linspace(-1, 1, num_steps + 1, dtype=torch.float64)
    if kind == "linear":
        return 0.5 * (t + 1)
    rise = (4 * t).sigmoid()
    return (rise - rise[0]) / (rise[-1] - rise[0])


class Kernel(NamedTuple):
    """HMC transitions with step sizes fixed beforehand, one for each temperature and datum."""

    step_sizes: Tensor  # (T, M)
    scale: Tensor  # (M, J)
    num_leapfrog: int

    def move(self, path: Path, t: int, chains: hmc.Chains, noise: Tensor) -> tuple[hmc.Chains, Tensor]:
        """The chains after a transition that leaves f_{b_t} invariant, and its acceptance (C, M)."""
        size, start = self.step_sizes[t - 1], path.moved(chains, t)
        chains, info = hmc.step(path.at(t), start, noise, size, self.scale, self.num_leapfrog)
        return chains, info.acceptance


def tuned_kernel(path: Path, z: Tensor, noise: Callable[[int], Tensor], scale: Tensor, num_leapfrog: int) -> Kernel:
    """A kernel whose step sizes are tuned in a separate run, which is thrown away: adapting them in the weighted run
    would bias it."""
    num_steps = len(path.betas) - 1
    knots = torch.linspace(0, num_steps, min(KNOTS, num_steps + 1)).round().long()
    found, guess = [], torch.full_like(scale[:, 0], 0.5)
    chains = path.at(0)(z)
    for k, knot in enumerate(knots.tolist()):
        noises = (noise(k * STEPS + s) for s in range(STEPS))
        start = path.moved(chains, knot)
        chains, guess = hmc.tune(path.at(knot), start, noises, guess, scale, num_leapfrog)
        found.append(guess.log())
    place = torch.arange(1, num_steps + 1, dtype=torch.float64)
    right = torch.searchsorted(knots.double(), place).clamp(1, len(knots) - 1)
    left = right - 1
    share = ((place - knots[left]) / (knots[right] - knots[left])).to(scale)[:, None]  # (T, 1)
    logs = torch.stack(found)  # (knots, M)
    return Kernel(((1 - share) * logs[left] + share * logs[right]).exp(), scale, num_leapfrog)


def anneal(
    path: Path, kernel: Kernel, z: Tensor, noise: Callable[[int], Tensor], *, backwards: bool = False
) -> tuple[Tensor, Tensor]:  # (C, M), (M,)
    """log w of each chain, forwards from z ~ f_0 or backwards from z ~ p(z|x), and the mean acceptance.

    Forwards, the weight uses z before the move at b_t; backwards, z after it. There is no move at b_T.
    """
    num_steps, chains = len(path.betas) - 1, path.at(0)(z)
    log_w = torch.zeros(z.shape[:2], dtype=torch.float64, device=z.device)
    acceptance = []
    for t in range(num_steps, 0, -1) if backwards else range(1, num_steps + 1):
        share = path.betas[t] - path.betas[t - 1]
        if not backwards:
            log_w = log_w + share * path.difference(chains)
        if t < num_steps:
            chains, accepted = kernel.move(path, t, chains, noise(t))
            acceptance.append(accepted.double().mean(0))
        if backwards:
            log_w = log_w + share * path.difference(chains)
    return log_w, torch.stack(acceptance).mean(0) if acceptance else torch.ones_like(log_w[0])


def disagreement(log_w: Tensor) -> tuple[Tensor, Tensor]:  # (C, M) -> (M,), (M,)
    """The effective number of chains, and the squared standard error of the log of their mean weight (delta method)."""
    ess = (2 * torch.logsumexp(log_w, 0) - torch.logsumexp(2 * log_w, 0)).exp()
    square = (1 / ess - 1 / len(log_w)).clamp(min=0)
    return ess, square if len(log_w) > 1 else torch.full_like(square, torch.nan)  # one chain gives no error


@validated
@dataclass(frozen=True, kw_only=True)
class Annealed:
    """Annealed importance sampling from q(z|x), or from the prior, to p(x, z); averages the weights of the chains."""

    num_samples: Count = 500  # T, intermediate distributions
    chains: Count = 16
    start: Literal["posterior", "prior"] = "posterior"
    num_leapfrog: Count = 5
    method = "ais"
    double_precision = False

    def check(self, model: VAE) -> None:
        """UsageError if the chains would start from a q that cannot cover the posterior."""
        if self.start == "posterior":
            check_cover(model)

    def data_at_once(self, model: VAE) -> int:
        """How many data run their chains in one pass."""
        return max(1, rows_at_once(model) // self.chains)

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """Columns (M,): log_p_x, error, bias, ess (of the chains), acceptance."""
        return self.bounds(model, x, noise, tick)

    def bounds(
        self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None], codes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """The columns of annealing forwards; from codes (M, J), samples of p(z|x), also of annealing backwards."""
        steps = KNOTS * STEPS + self.num_samples * (1 if codes is None else 2)

        def moves(purpose: str, block: int) -> Tensor:
            tick(1 / steps)
            return noise(purpose, hmc.noise(model.latent_dim), self.chains, block)

        q, from_q = model.posterior(x), self.start == "posterior"
        first, of_first = (q, model.noise) if from_q else (model.prior, model.prior.noise)
        path = Path(
            lambda z: sum_from(first.log_prob(z), 2),
            lambda z: model.log_joint(x, z),
            schedule(self.num_samples, "linear" if from_q else "sigmoid"),
        )
        scale = posterior_scale(q, model, noise) if from_q else torch.ones_like(q.mean)
        tuning, z = (first.transform(noise(f"ais/{name}", of_first, self.chains)) for name in ("tune/start", "start"))
        kernel = tuned_kernel(path, tuning, partial(moves, "ais/tune"), scale, self.num_leapfrog)
        log_w, acceptance = anneal(path, kernel, z, partial(moves, "ais/run"))
        ess, square = disagreement(log_w)
        columns = {"log_p_x": log_mean_exp(log_w), "error": square.sqrt(), "bias": -0.5 * square}
        columns |= {"ess": ess, "acceptance": acceptance}
        if codes is not None:
            log_w, _ = anneal(path, kernel, codes.expand(z.shape), partial(moves, "ais/back"), backwards=True)
            columns |= {"upper": -log_mean_exp(-log_w), "upper_error": disagreement(-log_w)[1].sqrt()}
        return columns

    def verdict(self, columns: dict[str, Tensor], latent_dim: int) -> tuple[bool, str]:
        """Whether the chains were annealed slowly enough for their weights to agree."""
        bias, acceptance = columns["bias"].mean().item(), columns["acceptance"].mean().item()
        if self.chains < 4:
            return False, f"{self.chains} chains are too few to estimate their error; take 16, or run --self-check"
        if acceptance < 0.4:
            return False, f"only {acceptance:.0%} of the proposals were accepted; more distributions would not help"
        if self.num_samples < FEWEST:
            return False, f"{self.num_samples} distributions are too few to tell; take 500"
        disagree = (columns["ess"] < 0.5 * self.chains).double().mean().item()
        if disagree > 0.05:
            return False, (
                f"{self.num_samples} distributions are not enough: the weights of the {self.chains} chains disagree "
                f"for {disagree:.0%} of the data (estimated bias {bias:.2f} nats); take {4 * self.num_samples}"
            )
        if self.start == "posterior":
            return True, (
                f"{self.num_samples} distributions are enough (estimated bias {bias:.3f} nats) if q(z|x) reaches every "
                "mode, as no chain finds the modes that it misses: see --start prior, or --self-check"
            )
        return True, f"{self.num_samples} distributions are enough: the chains agree (estimated bias {bias:.3f} nats)"


@dataclass(frozen=True, kw_only=True)
class SandwichedAnnealing(Annealed):
    """Bidirectional Monte Carlo (Grosse, Ghahramani & Adams 2015) on data simulated from the model, whose codes are
    exact posterior samples: a lower bound by annealing forwards, an upper bound by annealing backwards from the codes.

    The gap between the two is the sum of both errors, so it bounds each of them, in expectation.
    """

    codes: Tensor  # (N, J), the z that made datum i in row i
    method = "ais, from both sides"

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """The columns of annealing, and `upper` and `upper_error` (M,)."""
        return self.bounds(model, x, noise, tick, self.codes[noise.index].to(x))


def simulated(model: VAE, count: int, seed: int) -> tuple[Split, Tensor]:  # -> N data, (N, J)
    """Data drawn from the model, z ~ p(z), x ~ p(x|z), and the codes they came from; datum i depends on (seed, i)."""
    index = torch.arange(count)
    noise = DatumNoise(seed, "simulated", index, model.prior.mean)
    with evaluating(model):
        z = model.prior.transform(noise("codes", model.prior.noise, 1))  # (1, N, J)
        y = model.drawn_labels(count, seed) if model.classes else None
        pixels = model.with_labels(y).likelihood(z)
        x = pixels.transform(noise("pixels", Noise(pixels.noise.kind, model.data_shape), 1))[0]
    return Split(x.cpu(), y, index), z[0].cpu()
