"""What a pixel means: an intensity, one of a number of levels, or a binary value made from it."""

from collections.abc import Callable

import torch
from torch import Tensor

from vae.randomness import datum_noise


def _static(images: Tensor, index: Tensor, seed: int, name: str) -> Tensor:
    """x ~ Bernoulli(intensity), drawn once, by the seed, the split's name and the index of the datum alone."""
    return datum_noise("uniform", seed, f"pixels/{name}", index, images.shape[1:]) < images.double()


# How to binarize grey levels once, as a function (images on [0, 1], index, seed, name of the split), or None: `grey` is
# intensities; `grey_256` too, of bytes over 256, as in the MNIST file of early papers; `levels` is discrete data.
# `dynamic` draws training pixels anew at each step (`draw`) and evaluates on one static draw.
PIXELS: dict[str, Callable[[Tensor, Tensor, int, str], Tensor] | None] = {
    "grey": None,
    "grey_256": None,
    "threshold": lambda images, index, seed, name: images > 0.5,
    "static": _static,
    "dynamic": _static,
    "levels": None,
}
DIVISORS = {"grey_256": 256.0}  # of bytes, where it is not their largest level


def expand(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """Stored pixels (bytes, or numbers already) as images of the dtype; bytes are divided by the largest level."""
    return x.to(dtype) / scale if scale != 1 else x.to(dtype)


def draw(images: Tensor, generator: torch.Generator) -> Tensor:
    """x ~ Bernoulli(intensity), anew at each call (dynamic binarization)."""
    return (torch.rand(images.shape, generator=generator, device=images.device) < images).to(images.dtype)
