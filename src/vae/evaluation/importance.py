"""log p(x) by importance sampling from q(z|x), in bounded memory, with Pareto k-hat as a diagnostic."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.distributions import sum_from
from vae.errors import UsageError
from vae.evaluation import pareto
from vae.evaluation.base import PAIRS, DatumNoise, for_the_decoder
from vae.models import VAE
from vae.schema import Count, validated

BLOCK = 100  # samples whose noise is drawn together; the last block may be shorter


class Stream(NamedTuple):
    """A running sum of weights: sum w = exp(largest) * total, sum w^2 = exp(2 largest) * squares."""

    largest: Tensor  # (M,), of the log weights
    total: Tensor  # (M,)
    squares: Tensor  # (M,)
    tail: Tensor  # (T, M), the largest log weights in any order
    samples: int

    @classmethod
    def empty(cls, like: Tensor) -> "Stream":
        """A stream without weights, for as many data as `like` (M,)."""
        zero = torch.zeros_like(like, dtype=torch.float64)
        return cls(torch.full_like(zero, -torch.inf), zero, zero, zero.new_empty(0, len(zero)), 0)

    def add(self, log_w: Tensor, keep: int) -> "Stream":  # (K, M)
        """The stream with more log weights added; the `keep` largest are stored."""
        log_w = log_w.double()
        largest = torch.maximum(self.largest, log_w.amax(0))
        reference = torch.where(torch.isfinite(largest), largest, 0.0)  # if all are -inf, exp(-inf) is the correct 0
        old, new = (self.largest - reference).exp(), (log_w - reference).exp()
        tail = torch.cat([self.tail, log_w])
        tail = torch.topk(tail, min(keep, len(tail)), dim=0).values
        total, squares = old * self.total + new.sum(0), old.square() * self.squares + new.square().sum(0)
        return Stream(largest, total, squares, tail, self.samples + len(log_w))

    @property
    def log_mean(self) -> Tensor:  # (M,)
        """log of the mean weight: the estimate of log p(x), a lower bound in expectation."""
        return self.largest + self.total.log() - math.log(self.samples)

    @property
    def ess(self) -> Tensor:  # (M,)
        """The effective sample size (sum w)^2 / sum w^2."""
        return self.total.square() / self.squares

    @property
    def error(self) -> Tensor:  # (M,)
        """The standard error of log_mean by the delta method; NaN for a single sample, which gives none."""
        error = (1 / self.ess - 1 / self.samples).clamp(min=0).sqrt()
        return error if self.samples > 1 else torch.full_like(error, torch.nan)

    @property
    def bias(self) -> Tensor:  # (M,)
        """The bias of log_mean to first order, -error^2 / 2."""
        return -0.5 * self.error.square()


def blocks_of_noise(model: VAE, noise: DatumNoise, purpose: str, num_samples: int) -> Iterator[Tensor]:  # (K, M, J)
    """The noise of `num_samples` samples for each datum, in a few large parts."""
    sizes = [min(BLOCK, num_samples - start) for start in range(0, num_samples, BLOCK)]
    numbered, at_once = list(enumerate(sizes)), max(1, PAIRS // (len(noise.index) * BLOCK))
    for start in range(0, len(numbered), at_once):
        group = numbered[start : start + at_once]
        yield torch.cat([noise(purpose, model.noise, size, number) for number, size in group])


def stream_weights(
    model: VAE,
    x: Tensor,  # (M, *data_shape)
    q: Any,  # a family of elements (M, J): the proposal
    noise: DatumNoise,
    num_samples: int,
    purpose: str = "is",
    tick: Callable[[float], None] = lambda share: None,
) -> Stream:
    """The weights p(x, z_k) / q(z_k) of `num_samples` samples, streamed: memory does not grow with their number."""
    stream = Stream.empty(x.flatten(1)[:, 0])
    keep = pareto.tail_length(num_samples) + 1
    for eps in blocks_of_noise(model, noise, purpose, num_samples):  # (K, M, J)
        z, log_q = q.transform_and_log_prob(eps)
        log_joint = torch.cat([model.log_joint(x, part) for part in for_the_decoder(model, z)])
        stream = stream.add(log_joint - sum_from(log_q, 2), keep)
        tick(len(eps) / num_samples)
    return stream


@validated
@dataclass(frozen=True, kw_only=True)
class ImportanceSampling:
    """log p(x) ~ log (1/K) sum_k p(x, z_k) / q(z_k|x), z_k ~ q(z|x)   (Burda et al. 2016, equation 8).

    Its expectation is a lower bound, L_K. The delta method's error and the effective sample size can look good even
    if the tail of the weights is too heavy for them to mean anything; Pareto k-hat detects that.
    """

    num_samples: Count = 5000
    method = "is"
    double_precision = False

    def check(self, model: VAE) -> None:
        """UsageError if q cannot cover the posterior, however many samples there are."""
        check_cover(model)

    def data_at_once(self, model: VAE) -> int:
        """How many data fit one pass with a block of samples each."""
        return PAIRS // BLOCK

    def __call__(self, model: VAE, x: Tensor, noise: DatumNoise, tick: Callable[[float], None]) -> dict[str, Tensor]:
        """Columns (M,): log_p_x, error, bias, ess, k_hat."""
        stream = stream_weights(model, x, model.posterior(x), noise, self.num_samples, tick=tick)
        return stream_columns(stream)

    def verdict(self, columns: dict[str, Tensor], latent_dim: int) -> tuple[bool, str]:
        """Whether K was enough, by k-hat, and what to use instead."""
        limit = pareto.usable(self.num_samples)
        heavy = (columns["k_hat"] > limit).double().mean().item()
        cure = "quadrature" if latent_dim <= 3 else "ais"
        if limit <= 0:
            return False, f"K = {self.num_samples} is too few to tell; take 1000 or more, or use {cure}"
        if heavy > 0.05:
            return False, (
                f"K = {self.num_samples} is not enough: k-hat is above {limit:.2f} for {heavy:.0%} of the data, whose "
                f"estimates are too low by more than their errors; use {cure}"
            )
        return True, (
            f"K = {self.num_samples} is enough: k-hat is below {limit:.2f} for {1 - heavy:.0%} of the data, and the "
            f"estimated bias is {columns['bias'].mean():.3f} nats"
        )


def check_cover(model: VAE) -> None:
    """UsageError if the support of q is bounded: its weights cannot show what the posterior has outside."""
    if model.posterior_head.support_depends_on_parameters:
        raise UsageError(
            "the posterior's bounded support does not cover p(z|x), so its weights miss what lies outside and do not "
            "show it; use hmc, ais from the prior (--start prior), or quadrature"
        )


def stream_columns(stream: Stream) -> dict[str, Tensor]:
    """The columns of a stream."""
    tail = pareto.k_hat(stream.tail, stream.samples)
    return {"log_p_x": stream.log_mean, "error": stream.error, "bias": stream.bias, "ess": stream.ess, "k_hat": tail}
