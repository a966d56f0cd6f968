"""log p(x) from posterior samples and a density fitted to them: Kingma & Welling 2013, appendix D.

    1 / p(x) = E_{p(z|x)}[q(z) / (p(z) p(x|z))] ~ (1/L) sum_l q(z_l) / (p(z_l) p(x|z_l)),   z_l ~ p(z|x),

for any density q whose tails are lighter than the posterior's. In expectation the estimate is an upper bound of log
p(x). Samples that q was fitted to must not be plugged in again: that is biased downwards by about J (J + 3) / 2L nats.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae import hmc
from vae.distributions import MultivariateNormal
from vae.distributions.numerics import HALF_LOG_2PI
from vae.errors import UsageError
from vae.evaluation import pareto
from vae.evaluation.base import DatumNoise, log_mean_exp, rows_at_once
from vae.models import VAE
from vae.schema import Count, validated

WARM_UP = 150  # steps in which a chain forgets its start and its step size is tuned; none of them is kept
MIXED = 1.1  # a split R-hat above which the chains have not mixed


def fitted_gaussian(samples: Tensor) -> MultivariateNormal:  # (L, M, J) -> (M, J)
    """A Gaussian fitted to samples, the covariance of its scaled coordinates shrunk towards a multiple of I.

    The weight (J + 1) / L of the multiple keeps the fit's tails from being heavier than the posterior's if L is not
    much larger than J.
    """
    count, _, latent_dim = samples.shape
    mean, scale = samples.mean(0), samples.std(0).clamp(min=1e-12)
    centred = (samples - mean) / scale
    centred = centred - centred.mean(0)  # the mean of values as large as 1e199 is not exact
    covariance = torch.einsum("lmi,lmj->mij", centred, centred) / max(count - 1, 1)
    share = min(1.0, (latent_dim + 1) / count)
    identity = torch.eye(latent_dim, dtype=samples.dtype, device=samples.device)
    size = covariance.diagonal(dim1=-2, dim2=-1).mean(-1).clamp(min=1e-12)  # (M,)
    shrunk = (1 - share) * covariance + share * size[:, None, None] * identity
    return MultivariateNormal(mean, scale[..., None] * torch.linalg.cholesky(shrunk))


def fit_log_ratio(fit: Tensor, plug: Tensor, log_joint: Tensor) -> Tensor:  # (L, M, J), (L', M, J), (L', M) -> (L', M)
    """log q(z) - log p(x, z) at the samples `plug`, q fitted to the samples `fit`."""
    q = fitted_gaussian(fit)
    solved = torch.linalg.solve_triangular(q.scale_tril, (plug - q.loc).permute(1, 2, 0), upper=False)  # (M, J, L')
    return (-0.5 * solved.square() - HALF_LOG_2PI - q.log_diagonal[..., None]).sum(1).T - log_joint


def posterior_scale(q: Any, model: VAE, noise: DatumNoise) -> Tensor:  # (M, J)
    """About the standard deviations of q(z|x), even if it has none: half the width of its middle 68 %."""
    z = q.transform(noise("spread", model.noise, 200)).sort(0).values
    return (0.5 * (z[168] - z[32])).clamp(min=1e-6)


@validated
@dataclass(frozen=True, kw_only=True)
class FittedDensity:
    """Appendix D: posterior samples by HMC, a Gaussian fitted to one half of the chains, the other half plugged in.

    The paper restricts it to fewer than five latents. `error` is the standard error over the plugged-in
    chains, without that of the fit.
    """

    num_samples: Count = 500  # posterior samples kept, from all chains together
    chains: Count = 16
    num_leapfrog: Count = 10
    method = "hmc"
    double_precision = False

    def __post_init__(self) -> None:
        if self.chains < 4 or self.chains % 2:
            raise UsageError(f"hmc needs an even number of chains, at least 4, not {self.chains}")

    def check(self, model: VAE) -> None:
        """UsageError if there are too few samples for a density to be fitted to half of them."""
        if self.num_samples < 8:
            raise UsageError(
                f"hmc fits a density to half of its samples: num_samples must be at least 8, not {self.num_samples}"
            )

    def data_at_once(self, model: VAE) -> int:
        """How many data run their chains in one pass."""
        return max(1, rows_at_once(model) // self.chains)

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """Columns (M,): log_p_x, error, k_hat (of the ratios), r_hat, acceptance, diverged (a share)."""
        z, values, info = self.draws(model, x, noise, tick)
        return {
            **self._plugged_in(z, values),
            "r_hat": hmc.split_r_hat(z) if len(z) >= 4 else torch.full_like(values[0, 0], torch.nan),
            "acceptance": info.acceptance.double().mean((0, 1)),
            "diverged": info.diverged.double().mean((0, 1)),
        }

    def begin(self, model: VAE, x: Tensor, noise: DatumNoise) -> tuple[Tensor, Tensor]:  # (C, M, J), (M, J)
        """Where the chains begin, draws of q(z|x), and about the standard deviations of p(z|x)."""
        q = model.posterior(x)
        return q.transform(noise("hmc/start", model.noise, self.chains)), posterior_scale(q, model, noise)

    def draws(
        self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]
    ) -> tuple[Tensor, Tensor, hmc.Transition]:  # (T, C, M, J), (T, C, M)
        """Draws of p(z|x) from tuned chains, log p(x, z) there, and their transitions."""
        draws = math.ceil((self.num_samples + 1) // 2 / (self.chains // 2))

        def eps(purpose: str, t: int) -> Tensor:
            tick(1 / (WARM_UP + draws))
            return noise(purpose, hmc.noise(model.latent_dim), self.chains, t)

        target = hmc.target(lambda z: model.log_joint(x, z))
        start, scale = self.begin(model, x, noise)
        state = target(start)
        tuning = (eps("hmc/tune", t) for t in range(WARM_UP))
        first = torch.full_like(scale[:, 0], 0.3)
        state, step_size = hmc.tune(target, state, tuning, first, scale, self.num_leapfrog)
        kept = []
        for t in range(draws):
            state, info = hmc.step(target, state, eps("hmc/draw", t), step_size, scale, self.num_leapfrog)
            kept.append((state.z.double(), state.log_density.double(), *info))
        z, values, acceptance, diverged = map(torch.stack, zip(*kept, strict=True))
        return z, values, hmc.Transition(acceptance, diverged)

    def _plugged_in(self, z: Tensor, values: Tensor) -> dict[str, Tensor]:  # (T, C, M, J), (T, C, M)
        """Fitted to half of the chains, whole ones, as neighbours in a chain are correlated; the others plugged in."""
        half = self.chains // 2
        fit = z[:, :half].flatten(0, 1)[-((self.num_samples + 1) // 2) :]
        whole = fit_log_ratio(fit, z[:, half:].flatten(0, 1), values[:, half:].flatten(0, 1))  # (T C / 2, M)
        ratios = whole[-(self.num_samples // 2) :]
        estimate = -log_mean_exp(ratios)
        means = (log_mean_exp(whole.view(len(z), half, -1)) + estimate).exp()  # (C / 2, M), of each chain, about 1
        return {
            "log_p_x": estimate,
            "error": means.std(0) / means.mean(0) / math.sqrt(half),
            "k_hat": pareto.k_hat(ratios, len(ratios)),
        }

    def verdict(self, columns: dict[str, Tensor], latent_dim: int) -> tuple[bool, str]:
        """Whether the samples were enough: mixed chains, ratios with a finite variance, few enough latents."""
        cure = "quadrature" if latent_dim <= 3 else "ais"
        needed = max(500, 30 * latent_dim)
        if columns["r_hat"].isnan().any():
            return False, f"{self.num_samples} samples of {self.chains} chains are too few per chain to tell; take more"
        unmixed = (~(columns["r_hat"] < MIXED)).double().mean().item()
        heavy = (columns["k_hat"] > 0.7).double().mean().item()
        if unmixed > 0.05:
            return False, (
                f"{self.num_samples} samples are not enough: the chains of {unmixed:.0%} of the data have not mixed "
                f"(split R-hat above {MIXED}); take more, or use {cure}"
            )
        if heavy > 0.05:
            return False, (
                f"the fitted Gaussian has too heavy tails for {heavy:.0%} of the data (k-hat above 0.7): more "
                f"samples do not help; use {cure}"
            )
        if self.num_samples < needed:
            return False, f"{self.num_samples} samples are few for {latent_dim} latents; take {needed}, or use {cure}"
        return True, f"{self.num_samples} samples are enough: the chains have mixed, and the ratios have light tails"
