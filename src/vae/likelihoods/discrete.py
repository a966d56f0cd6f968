"""Likelihoods of grey levels on a grid, and of counts: mass functions, which sum to 1 over their support."""

import math
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.distributions import Noise
from vae.likelihoods.binary import log_expm1_ratio
from vae.schema import Interval, validated

Levels = Annotated[int, Interval(2, 2**16), "K: grey levels lie on 0, 1/(K-1), ..., 1 (256 for bytes, 17 for digits)"]
Owner = Literal["per_pixel_and_datum", "per_pixel", "shared"]


class _LocationAndSpread(nn.Module):
    """A likelihood with a second parameter: from the network (per_pixel_and_datum), or learned (per_pixel, shared)."""

    def __init__(self, data_shape: tuple[int, ...], owner: str) -> None:
        super().__init__()
        self.data_shape = self.output_shape = tuple(data_shape)
        if owner == "per_pixel_and_datum":  # locations, then spreads, stacked along the first axis of a datum
            self.output_shape = (2 * data_shape[0], *data_shape[1:])
        else:
            self.spread = nn.Parameter(torch.zeros(self.data_shape if owner == "per_pixel" else ()))

    def split(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The output of the network as (location, spread)."""
        if self.output_shape == self.data_shape:
            return outputs, self.spread
        location, spread = outputs.chunk(2, dim=-len(self.data_shape))
        return location, spread


# ------------------------------------------------------------------------------------- grey levels


class CategoricalLevels(NamedTuple):
    """Independent pixels on the grid k / (K - 1), each level with its own probability; the levels are the last axis."""

    log_probs: Tensor  # (L, M, *data_shape, K), normalised

    def log_prob(self, x: Tensor) -> Tensor:  # (M, *data_shape) -> (L, M, *data_shape)
        """log p of the level nearest to x, nats."""
        level = (x * (self.log_probs.shape[-1] - 1)).round().long()
        shape = torch.broadcast_shapes(level.shape, self.log_probs.shape[:-1])
        index, log_probs = level.expand(shape).unsqueeze(-1), self.log_probs.expand(*shape, -1)
        return log_probs.gather(-1, index).squeeze(-1)

    @property
    def mean(self) -> Tensor:
        """The expected grey level, sum_k p_k k / (K - 1), on [0, 1] like the data."""
        levels = torch.arange(self.log_probs.shape[-1]).to(self.log_probs)
        return self.log_probs.exp() @ (levels / levels[-1])

    @property
    def noise(self) -> Noise:
        """Uniform on [0, 1), one number per pixel."""
        return Noise("uniform", tuple(self.log_probs.shape[:-1]))

    def transform(self, noise: Tensor) -> Tensor:
        """The inverse of the distribution function at u: the lowest level with P(this or a lower one) > u."""
        top = self.log_probs.shape[-1] - 1
        below = self.log_probs.exp().cumsum(-1)[..., :-1]
        return (below <= noise.unsqueeze(-1)).sum(-1).to(self.log_probs.dtype) / top


@validated
class Categorical(nn.Module):
    """Grey levels k / (K - 1): log p(x|z) = sum_d log softmax(decoder(z)_d)_{k_d}, K numbers per pixel.

    The network gives K C channels, along the first axis of a datum: all C channels of level 0, then of level 1, and so
    on. Neighbouring levels are unrelated classes, so the network has to learn the order of the greys.
    """

    support: str = "levels"  # of an instance: levels_K
    is_density: ClassVar[bool] = True

    def __init__(self, data_shape: tuple[int, ...], *, levels: Levels = 256) -> None:
        super().__init__()
        self.data_shape = tuple(data_shape)
        self.output_shape = (levels * data_shape[0], *data_shape[1:])
        self.levels, self.support = levels, f"levels_{levels}"

    def forward(self, outputs: Tensor) -> CategoricalLevels:  # (L, M, *output_shape)
        """The distribution of the pixels."""
        first = -len(self.data_shape)
        logits = outputs.unflatten(first, (self.levels, self.data_shape[0]))  # (L, M, K, *data_shape)
        return CategoricalLevels(logits.log_softmax(first - 1).movedim(first - 1, -1))


class LogisticLevels(NamedTuple):
    """Independent pixels on the grid k / (K - 1), k = round((K - 1) y) clamped to 0 .. K - 1, y logistic.

    The bins of the lowest and of the highest level extend to infinity, so that the masses sum to 1.
    """

    location: Tensor  # (L, M, *data_shape)
    log_scale: Tensor  # (L, M, *data_shape), or any shape that broadcasts with it
    levels: int

    def log_prob(self, x: Tensor) -> Tensor:  # (M, *data_shape) -> (L, M, *data_shape)
        """log(sigmoid(a) - sigmoid(b)), a and b the standardised edges of the bin of x, nats.

        = log sigmoid(a) + log sigmoid(-b) + log(1 - e^{-d}), d = a - b, without subtracting nearly equal numbers.
        """
        top = self.levels - 1
        log_width = -self.log_scale - math.log(top)  # log d
        level, width = (x * top).round(), log_width.exp()
        above = (level + 0.5 - top * self.location) * width
        below = (level - 0.5 - top * self.location) * width
        inside = log_width + log_expm1_ratio(-width)  # log(1 - e^{-d}), also for tiny d
        value = torch.where(level < top, F.logsigmoid(above), 0) + torch.where(level > 0, F.logsigmoid(-below), 0)
        return value + torch.where((level > 0) & (level < top), inside, 0)

    @property
    def mean(self) -> Tensor:
        """The expected grey level: sum_{k < K - 1} P(level > k) / (K - 1)."""
        top = self.levels - 1
        width = (-self.log_scale - math.log(top)).exp()
        total = torch.zeros_like(self.location * width)
        for k in range(top):
            total += ((top * self.location - k - 0.5) * width).sigmoid()
        return total / top

    @property
    def noise(self) -> Noise:
        """Uniform on [0, 1), one number per pixel."""
        return Noise("uniform", tuple(torch.broadcast_shapes(self.location.shape, self.log_scale.shape)))

    def transform(self, noise: Tensor) -> Tensor:
        """The bin of the logistic's quantile, location + scale * logit(u)."""
        top = self.levels - 1
        quantile = self.location + self.log_scale.exp() * noise.logit()
        return (top * quantile).round().clamp(0, top) / top


@validated
class DiscretizedLogistic(_LocationAndSpread):
    """Grey levels k / (K - 1): log p(x|z) = sum_d log P(x_d - h < y_d < x_d + h), h half a step, y_d logistic.

    The outermost bins are open (Kingma et al. 2016, IAF; Salimans et al. 2017). The network gives locations; `scale`
    chooses log s: the network's second output (per_pixel_and_datum), one parameter per pixel (per_pixel), or one in all
    (shared). s is at least h / 10, at which one level holds all but 1e-4 of the mass.
    """

    support: str = "levels"  # of an instance: levels_K
    is_density: ClassVar[bool] = True

    def __init__(
        self, data_shape: tuple[int, ...], *, levels: Levels = 256, scale: Owner = "per_pixel_and_datum"
    ) -> None:
        super().__init__(data_shape, scale)
        self.levels, self.scale, self.support = levels, scale, f"levels_{levels}"

    def forward(self, outputs: Tensor) -> LogisticLevels:  # (L, M, *output_shape)
        """The distribution of the pixels."""
        location, log_scale = self.split(outputs)
        floor = log_scale.new_full((), -math.log(20 * (self.levels - 1)))
        return LogisticLevels(location, torch.logaddexp(log_scale, floor), self.levels)


# ------------------------------------------------------------------------------------- counts

LARGEST_R = 1e6  # within 1e-4 of the Poisson, and lgamma(k + r) - lgamma(r) still has nine digits in float64


class NegativeBinomialCounts(NamedTuple):
    """Independent counts with mean mu and variance mu + mu^2 / r."""

    log_mean: Tensor  # (L, M, *data_shape)
    log_r: Tensor  # (L, M, *data_shape), or any shape that broadcasts with it

    def log_prob(self, x: Tensor) -> Tensor:  # (M, *data_shape) -> (L, M, *data_shape)
        """log Gamma(k + r) / (Gamma(r) k!) + r log(r / (r + mu)) + k log(mu / (r + mu)), nats.

        In float64, since in float32 the difference of the two lgamma is lost for large r; and with r Gamma(r) =
        Gamma(1 + r), so that nothing is infinite for small r.
        """
        k, log_mean, log_r = x.double(), self.log_mean.double(), self.log_r.double()
        r, ratio, some = log_r.exp(), log_mean - log_r, k.clamp(min=1)
        rising = torch.lgamma(some + r) - torch.lgamma(1 + r) + log_r - torch.lgamma(some + 1)
        value = torch.where(k > 0, rising, 0) + r * F.logsigmoid(-ratio) + k * F.logsigmoid(ratio)
        return value.to(self.log_mean.dtype)

    @property
    def mean(self) -> Tensor:
        """mu."""
        return self.log_mean.exp()

    @property
    def noise(self) -> Noise:
        """Uniform on [0, 1), one number per count."""
        return Noise("uniform", tuple(torch.broadcast_shapes(self.log_mean.shape, self.log_r.shape)))

    def transform(self, noise: Tensor) -> Tensor:
        """The smallest count k with P(count <= k) >= u, by SciPy on the CPU."""
        from scipy.stats import nbinom

        u, log_mean, log_r = (t.detach().cpu().double() for t in (noise, self.log_mean, self.log_r))
        success = (log_r - log_mean).sigmoid()  # SciPy's p: r / (r + mu)
        counts = torch.as_tensor(nbinom.ppf(u.numpy(), log_r.exp().numpy(), success.numpy()))
        return counts.clamp(min=0).to(self.log_mean)  # SciPy's quantile of 0 is -1


@validated
class NegativeBinomial(_LocationAndSpread):
    """Counts 0, 1, 2, ...: log p(x|z) = sum_d log NB(x_d; mean mu_d(z), variance mu_d + mu_d^2 / r_d).

    A Poisson whose rate is gamma-distributed with shape r. The network gives log mu; `dispersion` chooses log r:
    one parameter per pixel (per_pixel), one in all (shared), or the network's second output (per_pixel_and_datum). 1/r
    is at least 1e-6, at which the counts are Poisson to four digits.
    """

    support: ClassVar[str] = "counts"
    is_density: ClassVar[bool] = True

    def __init__(self, data_shape: tuple[int, ...], *, dispersion: Owner = "per_pixel") -> None:
        super().__init__(data_shape, dispersion)
        self.dispersion = dispersion

    def forward(self, outputs: Tensor) -> NegativeBinomialCounts:  # (L, M, *output_shape)
        """The distribution of the counts."""
        log_mean, log_r = self.split(outputs)
        floor = log_r.new_full((), -math.log(LARGEST_R))
        return NegativeBinomialCounts(log_mean, -torch.logaddexp(-log_r, floor))  # smooth: the gradient never vanishes
