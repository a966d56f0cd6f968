"""Data sets, split for training, validation and test as the settings ask."""

import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor

from vae.config import read
from vae.data import files
from vae.data.arrays import Doubt, checked, labels_of, outliers
from vae.data.datasets import DATASETS, Arrays, Raw, read_table, split_arrays
from vae.data.pixels import DIVISORS, PIXELS, expand
from vae.distributions import SUPPORTS
from vae.errors import DataError, UsageError, tell
from vae.schema import Count, Index, OneOf, OptionsOf, names_of

# ------------------------------------------------------------------------------------- settings


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data, how a pixel is read, and which of them to train on.

    The validation data are those next to the training data. `seed` is not train.seed, so that runs with different seeds
    see the same data.
    """

    name: Annotated[str, OneOf(DATASETS), "which data set; its own options go beside it"]
    root: Annotated[str | None, "the folder of the data; else $VAE_DATA, else data/"] = None
    pixels: Annotated[str, OneOf(PIXELS), "grey intensities, levels, or binary: by threshold, once, anew"] = "grey"
    train_size: Annotated[Count | None, "how many to train on; without it, the whole training split"] = None
    validation_size: Annotated[Index, "how many of the rest of the training split to validate on"] = 0
    train_from: Annotated[Literal["start", "end"], "which end of the file's training split to train on"] = "start"
    seed: Annotated[Index, "for random splits and static pixels"] = 0
    options: Annotated[Mapping[str, Any], OptionsOf(DATASETS)] = None  # type: ignore[assignment]


def data_root(root: str | None) -> Path:
    """data.root, else $VAE_DATA, else data/."""
    return Path(root or os.environ.get("VAE_DATA") or "data")


# ------------------------------------------------------------------------------------- splits

CHUNK = 4096  # data whose pixels are drawn at once
Kind = Literal["binary", "grey", "levels", "counts", "real"]


@dataclass(frozen=True)
class Split:
    """Data of one split, resident: `x` (N, *shape) as stored, `y`, `index` (N,) places in the file.

    `y` are labels (N,), whole numbers, or targets of a regression, floats (N,) or (N, T), or None. Bytes stay bytes (a
    quarter of the traffic) and are divided by `scale` when used. If `dynamic`, x holds intensities, and each training
    step draws binary pixels from them anew.
    """

    x: Tensor
    y: Tensor | None
    index: Tensor
    scale: float = 1.0
    dynamic: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def images(
        self, rows: slice | Tensor = slice(None), dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> Tensor:
        """Images, on [0, 1] if the data are grey or binary; bytes are moved to the device as bytes."""
        return expand(self.x[rows].to(device), self.scale, dtype)

    @property
    def labels(self) -> Tensor | None:
        """y, if they are labels."""
        return None if self.y is None or self.y.is_floating_point() else self.y

    @property
    def values(self) -> Tensor:
        """The values that occur, float64; those of bytes once each."""
        x = torch.bincount(self.x.flatten()).nonzero() if self.x.dtype == torch.uint8 else self.x
        return x.double() / self.scale

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.x.min().item() / self.scale, self.x.max().item() / self.scale

    def part(self, rows: slice) -> "Split":
        """These rows of it."""
        return replace(self, x=self.x[rows], y=None if self.y is None else self.y[rows], index=self.index[rows])

    def first(self, n: int | None) -> "Split":
        """The first n data."""
        return self.part(slice(n))


@dataclass(frozen=True)
class Data:
    """A data set, split. `kind` follows from the values, or from pixels: levels; `rule` is how the splits were made."""

    settings: DataSettings
    shape: tuple[int, ...]
    kind: Kind
    rule: str
    train: Split
    test: Split
    validation: Split | None = None
    classes: tuple[str, ...] = ()
    doubt: Doubt | None = None  # about what the values are
    columns: tuple[str, ...] = ()  # the names of the elements of a datum, of a table

    @classmethod
    def from_arrays(
        cls,
        x: Any,
        y: Any = None,
        *,
        x_test: Any = None,
        y_test: Any = None,
        x_val: Any = None,
        y_val: Any = None,
        classes: Sequence[str] = (),
        **settings: Any,
    ) -> "Data":
        """Data from arrays, tensors or lists: x is (N, D), (N, H, W) or (N, C, H, W), y has a label per datum.

            data = vae.Data.from_arrays(x, y, test_size=1000, validation_size=1000, seed=0)

        Without `x_test`, `test_size` data drawn at random (a tenth) are for testing. Further keywords are the settings
        of the data block of a config; values are read as in an .npz file. DataError if they do not fit.
        """
        names = ("x", "y") if x_test is None else ("x_train", "y_train")
        given = {names[0]: x, names[1]: y, "x_test": x_test, "y_test": y_test, "x_val": x_val, "y_val": y_val}
        arrays = {name: _copied(value, name) for name, value in given.items() if value is not None}
        chosen = read(DataSettings, {"name": "arrays", **settings}, "from_arrays")
        raw = split_arrays(arrays, (), "from_arrays", chosen.seed, **chosen.options)
        return _split(raw._replace(classes=tuple(classes) or raw.classes), chosen)

    @property
    def name(self) -> str:
        """The row of DATASETS."""
        return self.settings.name

    @property
    def targets(self) -> int:
        """How many numbers there are to predict per datum; 0 if there is no y."""
        return 0 if self.train.y is None else self.train.y[:1].numel()

    @property
    def num_labels(self) -> int:
        """One more than the largest label of the training data; 0 if they have none."""
        labels = self.train.labels
        return 0 if labels is None or labels.min() < 0 else int(labels.max()) + 1

    @property
    def source(self) -> str:
        """Where the data are from, in words: a path, or the name of the data set."""
        return str((self.settings.options or {}).get("path", self.name))

    def __str__(self) -> str:
        held = 0 if self.validation is None else len(self.validation)
        sizes = f"{len(self.train)} to train, {held} to validate, {len(self.test)} to test"
        low, high = _range(*filter(None, (self.train, self.validation, self.test)))
        what = f"{self.source}, {self.kind} on [{low:.4g}, {high:.4g}], shape {self.shape}"
        return f"{what}: {sizes} ({self.rule})"

    def tell(self) -> None:
        """Warn of training data that are all the same, and of real vectors with rows far out."""
        x, index = self.train.x, self.train.index
        if len(x) > 1 and bool((x[1:] == x[:1]).all()):
            tell(f"{self.source}: all training data are the same; there is nothing to learn")
        if self.kind != "real" or x.ndim > 2:
            return
        if len(rows := index[outliers(x.numpy())]):
            tell(
                f"{self.source}: rows far out, beyond 20 interquartile ranges of a column: {names_of(rows.tolist(), 5)}"
                "; if they are right, consider a log or quantile transform, or clipping, before a Gaussian likelihood"
            )

    def sha256(self) -> str:
        """SHA-256 of the training and validation data and their labels."""
        digest = hashlib.sha256()
        for split in filter(None, (self.train, self.validation)):
            for values in (split.x,) if split.y is None else (split.x, split.y):
                digest.update(f"{tuple(values.shape)} {split.scale}".encode())
                content: Any = values.contiguous().reshape(-1).view(torch.uint8).numpy()  # no copy
                digest.update(content)
        return digest.hexdigest()

    def evaluation_split(self, name: str, limit: int | None = None) -> Split:
        """train, validation or test, or its first `limit` data, with pixels that are the same at each call."""
        split: Split | None = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if split is None:
            raise UsageError("there are no validation data in this run; data.validation_size sets some apart")
        split = split.first(limit)  # before pixels are drawn: the draw of a datum depends on its index alone
        return _fixed(split, "test" if name == "test" else "train", self.settings) if split.dynamic else split


def _copied(values: Any, name: str) -> Any:
    """A copy of the values as an array, so that the data stay as they are. DataError if they are no array."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.is_floating_point() else values).numpy()
    try:
        array = np.array(values)
        return np.array(array.tolist()) if array.dtype == object else array  # columns of tables, such as words
    except ValueError:
        raise DataError(f"from_arrays: {name} is not an array: its rows differ in length") from None


def _fixed(split: Split, name: str, settings: DataSettings) -> Split:
    """The split with binary pixels (uint8) that stay, if the settings ask for such; made in chunks to save memory."""
    binarize = PIXELS[settings.pixels]
    if binarize is None:
        return split
    chunks = (split.part(slice(start, start + CHUNK)) for start in range(0, len(split), CHUNK))
    x = [binarize(chunk.images(), chunk.index, settings.seed, name).to(torch.uint8) for chunk in chunks]
    return replace(split, x=torch.cat(x), scale=1.0, dynamic=False)


def load_data(name: str | DataSettings, **settings: Any) -> Data:
    """A data set of the table, read, checked, split and with its pixels treated.

    `load_data("digits", pixels="static")`; the keywords are the settings of the data block of a config, with the
    options of the set. DataError if a file is missing or altered, or a size does not fit.
    """
    given = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
    chosen = name if isinstance(name, DataSettings) else read(DataSettings, {"name": name, **given}, "load_data")
    raw = DATASETS[chosen.name](data_root(chosen.root), chosen.seed, **(chosen.options or {}))
    return _split(raw, chosen)


def _split(raw: Raw, settings: DataSettings) -> Data:
    total, held = len(raw.train.x), settings.validation_size
    gap = raw.gap if held else 0
    size = total - held - gap if settings.train_size is None else settings.train_size
    if size < 1 or size + gap + held > total:
        wanted = f"train_size {settings.train_size or 'all the rest'} and validation_size {held}"
        raise DataError(f"data: {wanted} do not fit into the {total} data of the training split of {settings.name}")
    if held and raw.validation is not None:
        raise DataError("data.validation_size: these data have validation data of their own; leave validation_size out")
    whole, test = _as_split(raw.train, settings), _as_split(raw.test, settings)
    if settings.pixels in DIVISORS and (whole.scale == 1 or DATASETS[settings.name].grey_levels != 256):
        raise DataError(f"data.pixels: grey_256 is of bytes on 0..255, and {settings.name} has none; use pixels: grey")
    if settings.pixels != "grey" and kind_of(whole, test) not in ("binary", "grey"):
        does = "keeps grey levels" if settings.pixels == "levels" else "binarizes intensities"
        low, high = _range(whole, test)
        cure = f"; {raw.doubt.what}: {raw.doubt.mend}" if raw.doubt else "; use pixels: grey"
        raise DataError(
            f"data.pixels: {settings.pixels} {does} on [0, 1], but the values of {settings.name} "
            f"lie on [{low:.9g}, {high:.9g}]{cure}"
        )
    first, start = (0, size + gap) if settings.train_from == "start" else (total - size, total - size - gap - held)
    train = whole.part(slice(first, first + size))
    train = replace(train, dynamic=True) if settings.pixels == "dynamic" else _fixed(train, "train", settings)
    validation = _fixed(whole.part(slice(start, start + held)), "train", settings) if held else None
    if raw.validation is not None:
        validation = _fixed(_as_split(raw.validation, settings), "validation", settings)
    test = _fixed(test, "test", settings)
    kind: Kind = "levels" if settings.pixels == "levels" else kind_of(*filter(None, (train, validation, test)))
    classes, shape = raw.classes or DATASETS[settings.name].classes, tuple(train.x.shape[1:])
    return Data(settings, shape, kind, raw.rule, train, test, validation, classes, raw.doubt, raw.columns)


def _range(*splits: Split) -> tuple[float, float]:
    lows, highs = zip(*(split.range for split in splits), strict=True)
    return min(lows), max(highs)


def _as_split(arrays: Arrays, settings: DataSettings) -> Split:
    """Arrays as tensors, with the scale of the data set."""
    x = torch.from_numpy(np.ascontiguousarray(arrays.x))
    y = None if arrays.y is None else torch.from_numpy(np.ascontiguousarray(arrays.y))
    y = y.long() if y is not None and not y.is_floating_point() else y
    index = torch.arange(len(x)) if arrays.places is None else torch.from_numpy(arrays.places)
    scale = DIVISORS.get(settings.pixels, DATASETS[settings.name].grey_levels - 1.0)
    return Split(x, y, index, scale if x.dtype == torch.uint8 else 1.0)


def kind_of(*splits: Split) -> Kind:
    """The kind of the values, as a model sees them: all 0 or 1, all on [0, 1], all whole and not negative, or real."""
    if any(s.dynamic for s in splits):
        return "binary"
    if all(s.scale != 1 for s in splits):  # bytes: grey levels
        return "grey"
    values = [s.values if s.x.dtype == torch.uint8 else s.x for s in splits]
    kinds: dict[Kind, str] = {"binary": "binary", "grey": "unit_interval", "counts": "counts"}
    return next((kind for kind, support in kinds.items() if all(map(SUPPORTS[support], values))), "real")


def read_user_split(
    path: str | Path,
    shape: tuple[int, ...],
    settings: DataSettings,
    trained: tuple[float, float] | None = None,
    columns: Sequence[str] = (),
    classes: Sequence[str] | None = None,
) -> Split:
    """The data of an .npz file to evaluate on: its x_test, or x, on the scale and with the pixels of the settings.

    A .csv file has the `columns` that the model was trained on, in any order. Words as labels count as in the `classes`
    of the training data, if given. A warning tells if the data lie on another range than the values that the model was
    `trained` on. DataError if a datum has another shape, a byte is above the scale, or a label is of no class.
    """
    if settings.name == "csv" and Path(path).suffix == ".csv":
        named = {key: settings.options.get(key) for key in ("target", "labels")}
        x, y, names, words = read_table(Path(path), **named, new=True)
        if x.shape[1:] != shape:
            raise DataError(f"{path}: has {x.shape[1]} columns beside the target, and the model is of {shape[0]}")
        if missing := [name for name in columns if name not in names]:
            raise DataError(f"{path}: has no column {missing[0]}, which the training data have")
        order = [names.index(name) for name in columns or names]
        return _as_split(Arrays(x[:, order], _recoded(y, words, classes, path)), settings)
    arrays, others = files.read_npz(Path(path), ("x_test", "y_test", "x", "y"))
    name = next((n for n in ("x_test", "x") if n in arrays), None)
    if name is None:
        held = names_of(sorted({*arrays, *others}), 8) or "nothing"
        raise DataError(f"{path}: holds {held}; to evaluate on it, it needs x_test or x")
    largest, label = DATASETS[settings.name].grey_levels - 1, name.replace("x", "y")
    x, _ = checked(arrays[name], f"{path}: {name}", largest)
    labels, words = labels_of({"all": arrays[label]} if label in arrays else {}, {"all": len(x)}, str(path))
    if x.shape[1:] not in (shape, (math.prod(shape),)):
        raise DataError(f"{path}: a datum of {name} has shape {x.shape[1:]}, but the model was trained on {shape}")
    split = _as_split(Arrays(x.reshape(-1, *shape), _recoded(labels.get("all"), words, classes, path)), settings)
    if trained is not None:
        warn_of_range(split.range, trained, f"{path}: {name}", len(x))
    return _fixed(split, "test", settings) if kind_of(split) == "grey" else split


def _recoded(y: Any, words: Sequence[str], classes: Sequence[str] | None, path: str | Path) -> Any:
    """Labels that count `words`, as they count the classes of the training data."""
    if not words or classes is None:
        return y
    if unknown := [word for word in words if word not in classes]:
        known = names_of(list(classes), 8) if classes else "numbers"
        raise DataError(f"{path}: the training data have no label {unknown[0]}, only {known}")
    return np.array([classes.index(word) for word in words])[y]


def warn_of_range(found: tuple[float, float], trained: tuple[float, float], what: str, count: int) -> None:
    """Warn of `count` data on another range than the training data: twice as wide, or more.

    Where the training data fill a scale, [0, 1] or [-1, 1]: a quarter beyond it, or, of twenty data or more, in half of
    it or less.
    """
    (low, high), (least, most) = found, trained
    width, is_scale = most - least, most == 1 and least in (-1, 0)
    beyond, narrow = max(least - low, high - most), count >= 20 and high - low <= width / 2 + 1e-6
    if beyond > (width / 4 if is_scale else width) or (is_scale and narrow):
        tell(
            f"{what} lies on [{low:.4g}, {high:.4g}], and the model was trained on [{least:.4g}, {most:.4g}]; put it "
            "on the same scale"
        )
