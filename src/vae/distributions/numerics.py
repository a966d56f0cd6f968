"""Small numerical pieces that densities and bounds share."""

from collections.abc import Callable

import torch
from torch import Tensor

# Whether all values lie in a support.
SUPPORTS: dict[str, Callable[[Tensor], bool]] = {
    "binary": lambda x: bool(((x == 0) | (x == 1)).all()),
    "unit_interval": lambda x: bool(((x >= 0) & (x <= 1)).all()),
    "real": lambda x: bool(torch.isfinite(x).all()),
}


def sum_from(values: Tensor, axis: int) -> Tensor:
    """Sum over all axes from `axis` on; (L, M, C, H, W) from axis 2 gives (L, M), and (L, M) stays as it is."""
    return values.flatten(axis).sum(-1) if values.ndim > axis else values
