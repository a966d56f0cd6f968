"""Data drawn from a known law."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def li_law(x: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of y given x in algorithm 2 of Li 2021, as its code and figures have them.

    mean = 4.5 - x (1 + cos x) / 10,  std = 3 (1/4 + ((x + 25) / 80)^2)
    """
    return 4.5 - 0.1 * x * (1 + np.cos(x)), 3 * (0.25 + ((x + 25) / 80) ** 2)


def li_law_as_printed(x: Array) -> tuple[Array, Array]:
    """The same as the text of Li 2021 prints it: 4.5 within the bracket, and another offset of the noise."""
    return -0.1 * x * (1 + np.cos(x) + 4.5), 3 * (0.25 + ((x + 20) / 80) ** 2)


def li_data(generator: Any, size: int, as_printed: bool = False) -> tuple[Array, Array]:
    """x and y, each (size,), sorted by x: first all x, uniform on [-25, 55], then the noise of y.

    As printed, x is 80 N(0, 1) - 20. `generator` is one of NumPy's.
    """
    x = 80 * generator.standard_normal(size) - 20 if as_printed else 80 * generator.random(size) - 25
    mean, std = (li_law_as_printed if as_printed else li_law)(x)
    y = mean - std * generator.standard_normal(size)  # the standard deviation is negative in the code
    order = np.argsort(x)
    return x[order], y[order]
