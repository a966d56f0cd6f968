"""Small numerical pieces that densities and bounds share."""

from torch import Tensor


def sum_from(values: Tensor, axis: int) -> Tensor:
    """Sum over all axes from `axis` on; (L, M, C, H, W) from axis 2 gives (L, M), and (L, M) stays as it is."""
    return values.flatten(axis).sum(-1) if values.ndim > axis else values
