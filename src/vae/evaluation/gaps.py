"""Why a bound is loose (Cremer, Li & Duvenaud 2018): the family of q, or the encoder that chooses within it.

    log p(x) - L[q] = (log p(x) - L[q*]) + (L[q*] - L[q]) = approximation gap + amortisation gap,

where q* is the best member of the family for this x, with the decoder fixed.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae.distributions import sum_from
from vae.evaluation.base import DatumNoise, for_the_decoder, rows_at_once
from vae.evaluation.importance import blocks_of_noise, check_cover, stream_columns, stream_weights
from vae.models import VAE
from vae.schema import Count, validated

STEPS = 500  # of Adam, from each start
SAMPLES = 40  # of z per step


def bound_of(
    model: VAE, x: Tensor, q: Any, noise: DatumNoise, num_samples: int, purpose: str
) -> tuple[Tensor, Tensor]:  # (M,), (M,)
    """L[q] = E_q[log p(x|z)] - KL(q || p) of each datum by `num_samples` samples, and its standard error."""
    values = []
    blocks = blocks_of_noise(model, noise, purpose, num_samples)
    for eps in (part for block in blocks for part in for_the_decoder(model, block)):  # (L, M, J)
        log_p_x_given_z, kl = model.bound_terms(q, x, eps)  # (L, M), (M, J)
        values.append((log_p_x_given_z - sum_from(kl, 1)).double())
    joined = torch.cat(values)  # (L, M)
    error = joined.std(0, correction=1 if num_samples > 1 else 0) / math.sqrt(num_samples)
    return joined.mean(0), error if num_samples > 1 else torch.full_like(error, torch.nan)


def best_in_family(
    model: VAE, x: Tensor, start: Tensor, noise: DatumNoise, purpose: str, tick: Callable[[float], None]
) -> Tensor:  # (M, output_size) -> (M, output_size)
    """The encoder outputs that maximise the bound of each datum, from a start: Adam on fresh noise at each step.

    The learning rate falls to 0 along a cosine, which averages out the noise of the last steps. Data do not affect each
    other, because Adam works element by element.
    """
    with torch.enable_grad():
        outputs = start.detach().clone().requires_grad_()
        optimizer = torch.optim.Adam([outputs], lr=0.05)
        for step in range(STEPS):
            optimizer.param_groups[0]["lr"] = 0.025 * (1 + math.cos(math.pi * step / STEPS))
            eps = noise(purpose, model.noise, SAMPLES, step)
            log_p_x_given_z, kl = model.bound_terms(model.posterior_head(outputs), x, eps)
            (gradient,) = torch.autograd.grad(-(log_p_x_given_z.mean(0) - sum_from(kl, 1)).sum(), outputs)
            outputs.grad = torch.where(torch.isfinite(gradient), gradient, 0.0)
            optimizer.step()
            tick(0.5 / STEPS)
    return outputs.detach()


@validated
@dataclass(frozen=True, kw_only=True)
class Gaps:
    """Approximation and amortisation gap of each datum; log p(x) by importance sampling from q*.

    q* is optimised from the encoder's q and from the prior, on fresh noise, and everything is scored on noise that the
    optimisation has not seen. log p(x) is a lower bound in expectation, so the approximation gap is never overstated.
    """

    num_samples: Count = 5000
    method = "gaps"
    double_precision = False

    def check(self, model: VAE) -> None:
        """UsageError if q cannot cover the posterior, so that its weights would understate log p(x)."""
        check_cover(model)

    def data_at_once(self, model: VAE) -> int:
        """How many data are optimised together."""
        return max(1, rows_at_once(model) // SAMPLES)

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """Columns (M,): log_p_x, best (L[q*]), bound (L[q]), approximation, amortisation, their errors and k_hat."""
        encoded = model.encoder_outputs(x)
        outputs, reached = encoded, self._score(model, x, encoded, noise, "gaps/choose")[0]
        for name, start in {"encoder": encoded, "prior": torch.zeros_like(encoded)}.items():
            found = best_in_family(model, x, start, noise, f"gaps/{name}", tick)
            value, _ = self._score(model, x, found, noise, "gaps/choose")
            better = value > reached  # a failed optimisation is ignored
            outputs, reached = torch.where(better[:, None], found, outputs), torch.where(better, value, reached)
        bound, bound_error = self._score(model, x, encoded, noise, "gaps/score")  # on noise that was not used to choose
        best, best_error = self._score(model, x, outputs, noise, "gaps/score")
        q = model.posterior_head(outputs)
        weights = stream_columns(stream_weights(model, x, q, noise, self.num_samples, "gaps/is"))
        return {
            **{key: weights[key] for key in ("log_p_x", "error", "k_hat")},
            "best": best,
            "bound": bound,
            "approximation": weights["log_p_x"] - best,
            "amortisation": best - bound,
            "best_error": best_error,
            "bound_error": bound_error,
            "approximation_error": torch.hypot(weights["error"], best_error),
            "amortisation_error": torch.hypot(best_error, bound_error),
        }

    def _score(self, model: VAE, x: Tensor, outputs: Tensor, noise: DatumNoise, purpose: str) -> tuple[Tensor, Tensor]:
        return bound_of(model, x, model.posterior_head(outputs), noise, self.num_samples, purpose)
