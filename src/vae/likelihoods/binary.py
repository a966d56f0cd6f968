"""Likelihoods of pixels that are on or off."""

from typing import ClassVar, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F


class BernoulliLogits(NamedTuple):
    """Independent Bernoulli pixels with p = sigmoid(logits)."""

    logits: Tensor  # (L, M, *data_shape)

    def log_prob(self, x: Tensor) -> Tensor:  # (M, *data_shape) -> (L, M, *data_shape)
        """x l - log(1 + e^l), exact for logits of any size, nats."""
        return -F.binary_cross_entropy_with_logits(self.logits, x.expand_as(self.logits), reduction="none")

    @property
    def mean(self) -> Tensor:
        """P(x = 1)."""
        return self.logits.sigmoid()


class Bernoulli(nn.Module):
    """Pixels in {0, 1}: log p(x|z) = sum_d x_d log y_d + (1 - x_d) log(1 - y_d), y = sigmoid(decoder(z)).

    Paper, appendix C.1. The network gives logits, one a pixel.
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
    """Grey levels in [0, 1] under the Bernoulli's formula: published practice, but no density of x.

    It does not integrate to 1 over [0, 1], so its values compare with one another only.
    """

    support: ClassVar[str] = "unit_interval"
    is_density: ClassVar[bool] = False
