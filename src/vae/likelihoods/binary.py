"""Likelihoods of binary pixels, and of pixels on [0, 1]."""

import functools
import math
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from vae.distributions import Noise


class _LogProb(torch.autograd.Function):
    """x l - log(1 + e^l), by exp and log alone, and its derivative x - sigmoid(l), without what lies between.

    On some processors PyTorch's log1p takes ten times as long as its log, and softplus, log-sigmoid and the binary
    cross-entropy are made of it.
    """

    @staticmethod
    def forward(logits: Tensor, x: Tensor) -> Tensor:  # x broadcasts to the shape of the logits
        """(x - 1/2) l - |l| / 2 - log(1 + e^-|l|), exact for logits of any size."""
        size = logits.abs()
        excess = size.neg().exp_().add_(1).log_()
        return excess.add_(size, alpha=0.5).neg_().addcmul_(logits, x - 0.5)

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keeps the inputs."""
        context.save_for_backward(*inputs)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None]:
        """The derivatives in l, and in x if they are needed."""
        logits, x = context.saved_tensors
        of_x = (gradient * logits).sum_to_size(x.shape) if context.needs_input_grad[1] else None
        return gradient * (x - logits.sigmoid()), of_x


class BernoulliLogits(NamedTuple):
    """Independent Bernoulli pixels with p = sigmoid(logits)."""

    logits: Tensor  # (L, M, *data_shape)

    def log_prob(self, x: Tensor) -> Tensor:  # (M, *data_shape) -> (L, M, *data_shape)
        """x l - log(1 + e^l), exact for logits of any size, nats."""
        return _LogProb.apply(torch.broadcast_tensors(self.logits, x)[0], x)

    def log_prob_of_all(self, x: Tensor) -> Tensor:  # logits (L, 1, *data_shape), x (M, *data_shape) -> (L, M)
        """log p of every x under every row, summed over pixels, as one matrix product: x . l - sum log(1 + e^l), nats.

        Its two parts nearly cancel for pixels that are almost certain, so use double precision.
        """
        logits = self.logits.flatten(1)  # (L, D)
        nothing = _LogProb.apply(logits, logits.new_zeros(()))  # log p(0) = -log(1 + e^l)
        return logits @ x.flatten(1).T + nothing.sum(1, keepdim=True)

    @property
    def mean(self) -> Tensor:
        """P(x = 1)."""
        return self.logits.sigmoid()

    @property
    def noise(self) -> Noise:
        """Uniform on [0, 1), one number per pixel."""
        return Noise("uniform", tuple(self.logits.shape))

    def transform(self, noise: Tensor) -> Tensor:
        """x = 1 if u < p, else 0."""
        return (noise < self.mean).to(self.logits.dtype)


class Bernoulli(nn.Module):
    """Pixels in {0, 1}: log p(x|z) = sum_d x_d log y_d + (1 - x_d) log(1 - y_d), y = sigmoid(decoder(z)).

    Paper, appendix C.1. The network gives one logit per pixel.
    """

    support: ClassVar[str] = "binary"
    is_density: ClassVar[bool] = True

    def __init__(self, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.data_shape = self.output_shape = tuple(data_shape)

    def forward(self, outputs: Tensor) -> BernoulliLogits:
        """The distribution of the pixels."""
        return BernoulliLogits(outputs)


class GreyCrossEntropy(Bernoulli):
    """Grey levels in [0, 1] under the Bernoulli's formula: common in publications, but not a density of x.

    It does not integrate to 1 over [0, 1], so its values can be compared only with one another.
    """

    support: ClassVar[str] = "unit_interval"
    is_density: ClassVar[bool] = False


# ------------------------------------------------------------------------------------- continuous Bernoulli

_SMALL = 1.0  # below it the closed forms lose digits, and the series is exact to float64 rounding
# A(t) - t / 2 = sum_k B_2k t^2k / (2k (2k)!), k = 1, 2, ..., with the Bernoulli numbers B_2k.
_BERNOULLI_NUMBERS = (1 / 6, -1 / 30, 1 / 42, -1 / 30, 5 / 66, -691 / 2730, 7 / 6, -3617 / 510)
_SERIES = tuple(b / (2 * k * math.factorial(2 * k)) for k, b in enumerate(_BERNOULLI_NUMBERS, 1))
_SLOPES = tuple(2 * k * c for k, c in enumerate(_SERIES, 1))


def _series(coefficients: Sequence[float], square: Tensor) -> Tensor:
    """sum_k c_k s^(k - 1) by Horner's rule."""
    return functools.reduce(lambda total, c: total * square + c, reversed(coefficients), torch.zeros_like(square))


def log_expm1_ratio(t: Tensor) -> Tensor:
    """A(t) = log((e^t - 1) / t) = max(t, 0) + log(1 - e^{-|t|}) - log|t|, A(0) = 0, for t of any size.

    It is the log-normaliser of the density e^{t x} on [0, 1].
    """
    small = t.abs() < _SMALL
    safe = torch.where(small, 1.0, t)  # so that the branch not taken leaves no NaN in the gradient
    size, square = safe.abs(), torch.where(small, t, 0.0).square()
    closed = safe.clamp(min=0) + (-torch.expm1(-size)).log() - size.log()
    series = t / 2 + square * _series(_SERIES, square)
    return torch.where(small, series, closed)


class ContinuousBernoulliLogits(NamedTuple):
    """Independent pixels on [0, 1] with density e^{l x} l / (e^l - 1), l = logits."""

    logits: Tensor  # (L, M, *data_shape)

    def log_prob(self, x: Tensor) -> Tensor:  # (M, *data_shape) -> (L, M, *data_shape)
        """x l - A(l), nats."""
        return x * self.logits - log_expm1_ratio(self.logits)

    @property
    def mean(self) -> Tensor:
        """A'(l) = 1 / (1 - e^{-l}) - 1 / l, which is not sigmoid(l)."""
        small = self.logits.abs() < _SMALL
        safe = torch.where(small, 1.0, self.logits)
        series = 0.5 + self.logits * _series(_SLOPES, torch.where(small, self.logits, 0.0).square())
        return torch.where(small, series, -1 / torch.expm1(-safe) - 1 / safe)

    @property
    def noise(self) -> Noise:
        """Uniform on [0, 1), one number per pixel."""
        return Noise("uniform", tuple(self.logits.shape))

    def transform(self, noise: Tensor) -> Tensor:
        """The inverse of F(x) = (e^{l x} - 1) / (e^l - 1) at u; for l > 0 by F(x; l) = 1 - F(1 - x; -l)."""
        size = self.logits.abs().clamp(min=1e-12)
        positive = self.logits > 0
        x = -torch.log1p(torch.where(positive, 1 - noise, noise) * torch.expm1(-size)) / size
        return torch.where(positive, 1 - x, x).clamp(0, 1)


class ContinuousBernoulli(nn.Module):
    """Pixels on [0, 1]: log p(x|z) = sum_d x_d l_d - A(l_d), A(l) = log((e^l - 1) / l), l = decoder(z).

    The Bernoulli's formula with the normaliser that makes it a density (Loaiza-Ganem & Cunningham 2019). The network
    gives one l per pixel; images show the mean, A'(l). For a pixel that is 0 (or 1) in all data, the density has no
    maximum: |l| keeps growing, though slowly.
    """

    support: ClassVar[str] = "unit_interval"
    is_density: ClassVar[bool] = True

    def __init__(self, data_shape: tuple[int, ...]) -> None:
        super().__init__()
        self.data_shape = self.output_shape = tuple(data_shape)

    def forward(self, outputs: Tensor) -> ContinuousBernoulliLogits:
        """The distribution of the pixels."""
        return ContinuousBernoulliLogits(outputs)
