"""A user's own arrays: how they are laid out, what their numbers are, and their labels.

What cannot be told apart safely is asked for, either at once (shapes) or where no likelihood is named (`Doubt`).
"""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae.errors import DataError, tell
from vae.schema import names_of

Array = NDArray[Any]
NEARLY, FEW = 1e-4, 0.1  # how far outside of a support values, and how many of them, may lie if they were meant for it
FAR_OUT = 20  # interquartile ranges
VALIDATION = ("val", "valid", "validation")  # x_val, y_val, ...
READ = ("x", "y", *(f"{letter}_{name}" for name in ("train", "test", *VALIDATION) for letter in "xy"))


class Doubt(NamedTuple):
    """Values that may not be what they seem to be; said if no likelihood is named, or one that they do not fit."""

    what: str
    mend: str
    likelihood: str  # which takes them as they are


# ------------------------------------------------------------------------------------- which is which


def named(
    arrays: Mapping[str, Array], unread: Collection[str], place: str
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The data and the labels by split: train, test, validation; or `all`, for x alone, with validation if given.

    DataError if names do not go together, or if the splits differ in shape or type; `place` is where they are from.
    """
    spelled = {"train": ("train",), "test": ("test",), "validation": VALIDATION}
    by_split = {
        letter: {
            split: arrays[f"{letter}_{name}"]
            for split, names in spelled.items()
            for name in names
            if f"{letter}_{name}" in arrays
        }
        for letter in "xy"
    }
    x, y = by_split["x"], by_split["y"]
    if alone := [split for split in y if split not in x]:
        raise DataError(f"{place}: holds y_{alone[0]} without x_{alone[0]}, whose labels they are")
    if "train" not in x and "test" not in x and "x" in arrays:
        x, y = {"all": arrays["x"], **x}, {**({"all": arrays["y"]} if "y" in arrays else {}), **y}
    elif "train" not in x or "test" not in x:
        held = names_of(sorted({*arrays, *unread}), 8) or "nothing"
        raise DataError(f"{place}: holds {held}; it needs x_train and x_test, or x alone")
    elif beside := [name for name in "xy" if name in arrays]:
        what = f"name it {beside[0]}_train, {beside[0]}_test or {beside[0]}_val, or leave it out"
        raise DataError(f"{place}: holds {beside[0]} beside x_train and x_test; {what}")
    return x, y


# ------------------------------------------------------------------------------------- data


def checked(x: Any, place: str, largest: int = 255) -> tuple[Any, Doubt | None]:
    """Data as (N, D) or (N, C, H, W), bytes of at most `largest` or float32, and a doubt about their values.

    DataError if shape, type or values cannot be used.
    """
    x = _laid_out(x, place)
    if x.dtype == np.uint8:
        _check_bytes(x, place, largest)
        return x, None
    if x.dtype == bool or np.issubdtype(x.dtype, np.floating):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is reported below
            values = x.astype(np.float32)
        if not np.isfinite(values).all():
            bad = int(np.argwhere(~np.isfinite(values.reshape(len(x), -1)).all(1))[0, 0])
            raise DataError(f"{place}: datum {bad} has a value that is not finite (NaN or infinite in float32)")
    elif x.dtype.kind in "iu":  # np.integer would hold timedelta64 too
        if x.min() < 0 or x.max() > 2**24:
            raise DataError(
                f"{place}: is {x.dtype} on [{x.min()}, {x.max()}]; whole numbers are counts, 0 to 2^24 (what float32 "
                "holds); save grey levels 0..255 as uint8, other data as floats"
            )
        values = x.astype(np.float32)
    else:
        raise DataError(f"{place}: is {x.dtype}; save grey levels 0..255 as uint8, other data as floats or counts")
    return values, _grey_or_counts(values, str(x.dtype)) or _just_outside(values)


def _laid_out(x: Any, place: str) -> Any:
    """(N, D) or (N, C, H, W), from these and from (N, H, W), (N, D, 1), (N, 1, D). DataError if axes are elsewhere."""
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise DataError(f"{place}: has shape {x.shape}; data are (N, D), (N, H, W) or (N, C, H, W), none of them 0")
    n, *axes = x.shape
    if x.ndim == 2 or (x.ndim == 3 and 1 in axes):
        return x.reshape(n, -1)
    likely, order = "", ""
    if x.ndim == 3:
        height, width = axes
        if width > 4 * max(n, height) or (n == height and width > 2 * n):
            likely, order = "(H, W, N)", "2, 0, 1"
    else:
        channels, height, width = axes
        if width <= 4 < min(channels, height):
            likely, order = "channels last", "0, 3, 1, 2"
        elif height <= 4 < min(channels, width):
            likely, order = "(H, W, C, N)", "3, 2, 0, 1"
    if likely:
        wanted, as_it_is = ("(N, H, W)", "x[:, None]") if x.ndim == 3 else ("(N, C, H, W)", "x.reshape(len(x), -1)")
        raise DataError(
            f"{place}: has shape {x.shape}, which looks like {likely}; save it as {wanted}: x.transpose({order}); or, "
            f"if it is in that order already, as {as_it_is}"
        )
    return x[:, None] if x.ndim == 3 else x


def _check_bytes(x: Any, place: str, largest: int) -> None:
    if x.max() == 1:
        raise DataError(
            f"{place}: bytes are divided by {largest}, but these are 0 and 1 only; save binary data as bool or float32"
        )
    if x.max() > largest:
        raise DataError(
            f"{place}: has bytes up to {x.max()}, but those that the model was trained on go up to {largest}; "
            "save grey levels on that scale, or as floats on [0, 1]"
        )
    if 0 < x.max() < largest / 4:
        tell(
            f"{place}: bytes are divided by {largest}, and these go up to {x.max()} only; if that is the largest "
            f"level, save them as floats: x / {x.max()}"
        )


def _grey_or_counts(x: Array, dtype: str) -> Doubt | None:
    """Whole numbers that look like grey levels: as large as two bytes make them, or pictures."""
    top = float(x.max())
    if top <= 1 or float(x.min()) < 0 or (x != np.floor(x)).any() or (top not in (255, 65535) and x.ndim == 2):
        return None
    mend = "save them as uint8: x.astype('uint8')" if top <= 255 else f"divide them by {max(top, 65535):g}"
    what = f"whole numbers on [{x.min():g}, {top:g}] ({dtype}), grey levels or counts"
    return Doubt(what, f"if they are grey levels, {mend}", "negative_binomial")


def _just_outside(x: Array) -> Doubt | None:
    """Values of which a few lie just outside of 0 or 1, of 0, 1, 2, ..., or of 0 to 1."""
    if x.min() < -NEARLY:
        return None
    for words, mend, snap, likelihood in (
        ("0 or 1", "x.round()", lambda values: values.clip(0, 1).round(), "grey_cross_entropy"),
        ("0, 1, 2, ...", "x.round()", lambda values: values.clip(0).round(), "gaussian"),
        ("0 to 1", "x.clip(0, 1)", lambda values: values.clip(0, 1), "gaussian"),
    ):
        if (x[:1000] != snap(x[:1000])).mean() >= FEW:  # which spares the pass over all
            continue
        near = snap(x)
        off = x != near
        if not off.any():
            return None  # they are exactly that
        if off.mean() < FEW and np.abs(x - near).max() <= NEARLY:
            first = tuple(np.argwhere(off)[0].tolist())
            value = np.format_float_positional(x[first], unique=True)
            what = f"{int(off.sum())} of {x.size} values just outside of {words}, the first {value} at {first}"
            return Doubt(what, f"if that is a rounding error, save {mend}", likelihood)
    return None


def outliers(x: Array) -> Array:  # (N, D) -> indices
    """The rows with a value beyond 20 interquartile ranges of its column; columns whose range is 0 are left out."""
    low, high = np.quantile(x[:: max(1, len(x) // 10_000)], (0.25, 0.75), axis=0)
    reach = FAR_OUT * (high - low)
    return np.flatnonzero((((x < low - reach) | (x > high + reach)) & (reach > 0)).any(1))


# ------------------------------------------------------------------------------------- labels


def labels_of(y: Mapping[str, Any], sizes: Mapping[str, int], place: str) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Labels or targets by split, and the classes' names if the labels are words. DataError if they are neither.

    Whole numbers, whole floats, booleans and words are labels, as (N,) or (N, 1), and become (N,) int64. Other floats,
    or several numbers per datum, are targets of a regression, float32.
    """
    flat = {split: values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values for split, values in y.items()}
    targets = False
    for split, values in flat.items():
        name = f"{place}: y" + ("" if split == "all" else f"_{split}")
        numbers = values.dtype.kind in "biuf"
        if values.shape[:1] != (sizes[split],) or values.ndim > (2 if numbers else 1) or 0 in values.shape:
            raise DataError(
                f"{name}: {sizes[split]} data and labels of shape {y[split].shape}; give one label per datum"
            )
        if not numbers and values.dtype.kind not in "US":
            raise DataError(
                f"{name}: is {values.dtype}; labels are whole numbers (one whole number per datum) or words"
            )
        if numbers and not np.isfinite(values).all():
            bad = int(np.argwhere(~np.isfinite(values.reshape(len(values), -1)).all(1))[0, 0])
            raise DataError(f"{name}: row {bad} is not finite")
        whole = numbers and values.ndim == 1 and bool((values == np.floor(values)).all())
        targets |= numbers and not whole
        if whole and values.size and not -(2.0**53) <= float(values.min()) <= float(values.max()) <= 2.0**53:
            raise DataError(f"{name}: has labels beyond 2^53; number the classes 0, 1, 2, ...")
    words = {split for split, values in flat.items() if values.dtype.kind in "US"}
    if not words and targets:
        return {split: values.astype(np.float32) for split, values in flat.items()}, ()
    if not words:
        return {split: values.astype(np.int64) for split, values in flat.items()}, ()
    if len(words) < len(flat):
        raise DataError(f"{place}: the labels of some splits are words, and those of others numbers; use one of them")
    texts = {
        split: np.char.decode(values, "utf-8", "replace") if values.dtype.kind == "S" else values
        for split, values in flat.items()
    }
    classes = np.unique(np.concatenate(list(texts.values())))
    return {split: np.searchsorted(classes, values) for split, values in texts.items()}, tuple(classes.tolist())
