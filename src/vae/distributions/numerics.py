"""Small numerical pieces that densities and bounds share."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Support:
    """The values that a variable takes: in words, and, called on a tensor, whether all of its values are such."""

    words: str
    holds: Callable[[Tensor], bool]

    def __call__(self, x: Tensor) -> bool:
        """Whether all values of x are in it."""
        return self.holds(x)


SUPPORTS: dict[str, Support] = {
    "binary": Support("0 or 1", lambda x: bool(((x == 0) | (x == 1)).all())),
    "counts": Support("0, 1, 2, ...", lambda x: bool(((x >= 0) & (x == x.floor()) & torch.isfinite(x)).all())),
    "unit_interval": Support("0 to 1", lambda x: bool(((x >= 0) & (x <= 1)).all())),
    "real": Support("finite numbers", lambda x: bool(torch.isfinite(x).all())),
}


def support_of(name: str) -> Support:
    """The row of SUPPORTS, or for a name such as levels_256 the grid of so many levels: 0, 1/255, 2/255, ..., 1."""
    family, _, levels = name.partition("_")
    return _grid(int(levels)) if family == "levels" else SUPPORTS[name]


def _grid(levels: int) -> Support:
    top = levels - 1

    def holds(x: Tensor) -> bool:
        place = x.double() * top
        near = (place - place.round()).abs() <= top * 2**-23  # what dividing k by top in float32 leaves
        return bool((near & (x >= 0) & (x <= 1)).all())

    return Support("0 or 1" if top == 1 else f"0, 1/{top}, 2/{top}, ..., 1", holds)


def sum_from(values: Tensor, axis: int) -> Tensor:
    """Sum over all axes from `axis` on; (L, M, C, H, W) from axis 2 gives (L, M), and (L, M) stays as it is."""
    return values.flatten(axis).sum(-1) if values.ndim > axis else values
