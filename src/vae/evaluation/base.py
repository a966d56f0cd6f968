"""Shared by the evaluators: minibatches on the model's device, and noise that depends on the index of a datum."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae.data import Split
from vae.distributions import Noise
from vae.models import VAE
from vae.randomness import datum_noise

PAIRS = 4000  # (datum, sample) pairs that are drawn and weighted together


@dataclass(frozen=True)
class DatumNoise:
    """Noise for a minibatch of a split: row m depends only on (seed, name, purpose, index[m], block).

    So the order and the number of data that are evaluated together change an estimate only by rounding.
    """

    seed: int
    name: str  # of the split
    index: Tensor  # (M,)
    like: Tensor  # whose device and dtype the noise takes

    def __call__(self, purpose: str, noise: Noise, samples: int, block: int = 0) -> Tensor:
        """Noise of shape (samples, M, *noise.shape); its first n samples are those of a draw of n."""
        name = f"{self.name}/{purpose}" if purpose else self.name
        values = datum_noise(noise.kind, self.seed, name, self.index, (samples, *noise.shape), block)
        return values.to(self.like).transpose(0, 1)


def minibatches(model: VAE, split: Split, size: int) -> Iterator[tuple[VAE, Tensor, Tensor]]:
    """The model (with their labels, if it is conditional), images (M, *data_shape) on its device and in its dtype, and
    their indices, in order."""
    like = model.prior.mean
    for start in range(0, len(split), size):
        rows = slice(start, start + size)
        given = model.at(rows)
        if model.label is None and model.classes:
            given = model.with_labels(None if split.labels is None else split.labels[rows])
        yield given, split.images(rows, like.dtype, like.device), split.index[rows]


def rows_at_once(model: VAE) -> int:
    """How many (datum, sample) pairs pass through the decoder together: on a CPU, about what its cache holds."""
    on_cpu = model.prior.mean.device.type == "cpu"
    return min(PAIRS, max(100, 400_000 // math.prod(model.data_shape))) if on_cpu else PAIRS


def for_the_decoder(model: VAE, samples: Tensor) -> tuple[Tensor, ...]:  # (K, M, J) -> (k, M, J), ...
    """Samples of z, or their noise, in parts that the decoder takes at once."""
    return samples.split(max(1, rows_at_once(model) // samples.shape[1]))


def mean_and_stderr(values: Tensor) -> dict[str, Any]:
    """{mean, stderr, n} of per-datum values; the standard error is over data, and None for a single datum."""
    n = len(values)
    stderr = values.std().item() / math.sqrt(n) if n > 1 else None
    return {"mean": values.mean().item(), "stderr": stderr, "n": n}


def log_mean_exp(values: Tensor) -> Tensor:  # (K, ...) -> (...)
    """log of the mean of exp(values)."""
    return torch.logsumexp(values, 0) - math.log(len(values))
