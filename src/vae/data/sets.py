"""The table of data sets, and how one becomes training, validation and test splits."""

import hashlib
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae.config import read
from vae.data import files
from vae.data.pixels import PIXELS, binarize, expand
from vae.distributions import SUPPORTS
from vae.errors import DataError, UsageError
from vae.randomness import derive
from vae.schema import Count, Index, Interval, OneOf, OptionsOf

Side = Annotated[int, Interval(1, 10_000)]

# ------------------------------------------------------------------------------------- what a reader gives


class Raw(NamedTuple):
    """A data set as read: its training and test splits, and the rule that made them.

    `index_*` are the places of the data in the file where the split does not keep its order; `gap` data are left out
    between training and validation, where neighbours are alike.
    """

    x_train: Any  # (N, *shape) uint8 or float
    x_test: Any
    y_train: Any | None
    y_test: Any | None
    rule: str
    classes: tuple[str, ...] = ()
    index_train: Any | None = None
    index_test: Any | None = None
    gap: int = 0


def _seeded_split(x: Any, y: Any | None, test_size: int, seed: int, **more: Any) -> Raw:
    """A seeded permutation, of which the last `test_size` are for testing."""
    if not 0 < test_size < len(x):
        raise DataError(f"data.test_size: {test_size} test data of {len(x)} in all leave nothing to train on")
    order = np.random.default_rng(derive(seed, "split")).permutation(len(x))
    train, test = order[:-test_size], order[-test_size:]
    y_train, y_test = (None, None) if y is None else (y[train], y[test])
    rule = f"{test_size} of {len(x)} drawn at random (data.seed {seed}) to test"
    return Raw(x[train], x[test], y_train, y_test, rule, index_train=train, index_test=test, **more)


def _torchvision(name: str, classes: tuple[str, ...] = ()) -> Callable[..., Raw]:
    def load(root: Path, seed: int) -> Raw:
        (x_train, y_train), (x_test, y_test) = files.read_torchvision(name, root)
        if name == "CIFAR10":  # (N, H, W, C); SVHN is (N, C, H, W) already
            x_train, x_test = x_train.transpose(0, 3, 1, 2), x_test.transpose(0, 3, 1, 2)
        elif name != "SVHN":
            x_train, x_test = x_train[:, None], x_test[:, None]
        rule = f"the published split, {len(x_train)} to train and {len(x_test)} to test"
        return Raw(x_train, x_test, y_train, y_test, rule, classes=classes)

    load.__doc__ = f"{name} through torchvision: downloaded if missing, checked."
    return load


_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _frey_face(
    root: Path,
    seed: int,
    *,
    split: Literal["random", "block"] = "random",
    test_size: Count = 465,
    gap: Index = 30,
) -> Raw:
    """1965 frames of a face in a video, 28 x 20, no labels.

    Frames that follow one another are nearly equal. `random` is the split that the curves of Kingma & Welling 2013
    point to: test frames have neighbours in training. `block` tests on the last frames and leaves out the `gap` frames
    before them (and as many between training and validation), so that no such frame has a near neighbour in training.
    """
    faces = files.read_frey(root)[:, None]
    if split == "random":
        return _seeded_split(faces, None, test_size, seed)
    first = len(faces) - test_size
    if first - gap < 1:
        raise DataError(f"data.test_size: {test_size} and data.gap {gap} leave no frame to train on, of {len(faces)}")
    rule = f"the last {test_size} frames to test, the {gap} before them left out"
    index = np.arange(first, len(faces))
    return Raw(faces[: first - gap], faces[first:], None, None, rule, index_test=index, gap=gap)


def _digits(root: Path, seed: int, *, test_size: Count = 297) -> Raw:
    """scikit-learn's 1797 handwritten digits, 8 x 8, 17 grey levels; embedded, so it needs no file."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = digits.images.astype(np.uint8)[:, None]
    return _seeded_split(x, digits.target, test_size, seed)


def _npz(root: Path, seed: int, *, path: str, test_size: Count | None = None) -> Raw:
    """Your own arrays: x_train and x_test, or x alone (a seeded tenth to test); labels y_train, y_test, y.

    Bytes (uint8) are grey levels, divided by 255; other whole numbers are counts, in whatever type they are saved.
    """
    return _from_arrays(files.read_npz(Path(path)), path, seed, test_size)


def _from_arrays(arrays: dict[str, Any], path: str, seed: int, test_size: int | None) -> Raw:
    """Splits from the arrays of an .npz file, checked."""
    if "x_train" in arrays and "x_test" in arrays:
        if test_size is not None:
            raise DataError(f"data.test_size: {path} has its own x_test; leave test_size out")
        if "y" in arrays:
            raise DataError(f"{path}: holds y beside x_train and x_test; name the labels y_train and y_test")
        pairs = [(arrays[f"x_{s}"], arrays.get(f"y_{s}")) for s in ("train", "test")]
        checked = [files.checked(x, y, f"{path}: x_{s}") for (x, y), s in zip(pairs, ("train", "test"), strict=True)]
        (x_train, y_train), (x_test, y_test) = checked
        if x_train.shape[1:] != x_test.shape[1:] or x_train.dtype != x_test.dtype:
            raise DataError(
                f"{path}: x_train is {x_train.dtype} {x_train.shape} and x_test is {x_test.dtype} {x_test.shape}; "
                "a datum must have the same shape and type in both"
            )
        return Raw(x_train, x_test, y_train, y_test, "the file's own x_train and x_test")
    if "x" in arrays:
        x, y = files.checked(arrays["x"], arrays.get("y"), f"{path}: x")
        return _seeded_split(x, y, test_size or max(1, len(x) // 10), seed)
    raise DataError(f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}; it needs x_train and x_test, or x alone")


def _loader(root: Path, seed: int) -> Raw:
    """Your own DataLoader; from Python only: vae.fit(model, loader)."""
    raise UsageError(
        "data.name: loader stands for a DataLoader of the user's own, which no config can build; give the data of such "
        "a run by --data FILE.npz (holding x_test, or x), or the loader itself, from Python"
    )


def _folder(
    root: Path,
    seed: int,
    *,
    path: str,
    size: tuple[Side, Side] | Side | None = None,
    test_size: Count | None = None,
) -> Raw:
    """A folder of images, resized to `size` (a side, or [height, width]); classes from its sub-folders."""
    sides = (size, size) if isinstance(size, int) else size
    x, y, classes = files.read_folder(Path(path), sides)
    return _seeded_split(x, y, test_size or max(1, len(x) // 10), seed, classes=tuple(classes))


# A row reads a data set: (root, seed, *, its options) -> Raw. The shapes that are known before reading stand below.
DATASETS: dict[str, Callable[..., Raw]] = {
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST", _CLOTHES),
    "cifar10": _torchvision("CIFAR10", _CIFAR),
    "svhn": _torchvision("SVHN"),
    "frey_face": _frey_face,
    "digits": _digits,
    "npz": _npz,
    "folder": _folder,
    "loader": _loader,
}
IMAGE_SHAPES: dict[str, tuple[int, int, int]] = {
    "mnist": (1, 28, 28),
    "fashion_mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "svhn": (3, 32, 32),
    "frey_face": (1, 28, 20),
    "digits": (1, 8, 8),
}
GREY_LEVELS = {"digits": 17}  # of the data sets of bytes; 256 where none stands here

# ------------------------------------------------------------------------------------- settings


@dataclass(frozen=True, kw_only=True)
class DataSettings:
    """Which data, how a pixel is read, and which of them to train on.

    `train_from: end` trains on the last `train_size` of the file's training split instead of the first; validation data
    are the rest's nearest. `seed` makes random splits and static pixels; it is not train.seed, so that runs of several
    seeds see the same data.
    """

    name: Annotated[str, OneOf(DATASETS), "which data set; its own options stand beside it"]
    root: Annotated[str | None, "the folder of the data; else $VAE_DATA, else data/"] = None
    pixels: Annotated[
        str,
        OneOf(PIXELS),
        "grey intensities, discrete levels, or binary: by threshold, once, anew",
    ] = "grey"
    train_size: Annotated[Count | None, "how many to train on; without it, the whole training split"] = None
    validation_size: Annotated[Index, "how many of the rest of the training split to validate on"] = 0
    train_from: Annotated[Literal["start", "end"], "the end of the file's training split that is trained on"] = "start"
    seed: Annotated[Index, "of random splits and static pixels"] = 0
    options: Annotated[Mapping[str, Any], OptionsOf(DATASETS)] = None  # type: ignore[assignment]


def data_root(root: str | None) -> Path:
    """data.root, else $VAE_DATA, else data/."""
    return Path(root or os.environ.get("VAE_DATA") or "data")


# ------------------------------------------------------------------------------------- splits

Kind = Literal["binary", "grey", "levels", "counts", "real"]


@dataclass(frozen=True)
class Split:
    """Data of one split, resident: `x` (N, *shape) as stored, `y` (N,) labels or None, `index` (N,) places in the file.

    Bytes stay bytes (a quarter of the traffic) and are divided by `scale` when used. Where `dynamic`, x holds
    intensities, and a training step draws binary pixels from them anew.
    """

    x: Tensor
    y: Tensor | None
    index: Tensor
    scale: float = 1.0
    dynamic: bool = False

    def __len__(self) -> int:
        return len(self.x)

    def images(
        self,
        rows: slice | Tensor = slice(None),
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> Tensor:
        """Images, on [0, 1] where the data are grey or binary; bytes travel to the device as bytes."""
        return expand(self.x[rows].to(device), self.scale, dtype)

    @property
    def values(self) -> Tensor:
        """The values that occur, float64; those of bytes once each."""
        x = torch.bincount(self.x.flatten()).nonzero() if self.x.dtype == torch.uint8 else self.x
        return x.double() / self.scale

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value."""
        return self.x.min().item() / self.scale, self.x.max().item() / self.scale

    def first(self, n: int | None) -> "Split":
        """The first n data."""
        rows = slice(n)
        return replace(self, x=self.x[rows], y=None if self.y is None else self.y[rows], index=self.index[rows])


@dataclass(frozen=True)
class Data:
    """A data set, split. `kind` is judged by the values (and pixels: levels); `rule` says how the splits were made."""

    settings: DataSettings
    shape: tuple[int, ...]
    kind: Kind
    rule: str
    train: Split
    test: Split
    validation: Split | None = None
    classes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The row of DATASETS."""
        return self.settings.name

    def __str__(self) -> str:
        held = 0 if self.validation is None else len(self.validation)
        sizes = f"{len(self.train)} to train, {held} to validate, {len(self.test)} to test"
        return f"{self.name}, {self.kind}, shape {self.shape}: {sizes} ({self.rule})"

    def sha256(self) -> str:
        """SHA-256 of all that training and selection see."""
        digest = hashlib.sha256()
        for split in (self.train, self.validation):
            if split is not None:
                digest.update(f"{tuple(split.x.shape)} {split.scale}".encode())
                values: Any = split.x.contiguous().reshape(-1).view(torch.uint8).numpy()  # no copy
                digest.update(values)
        return digest.hexdigest()

    def evaluation_split(self, name: str, limit: int | None = None) -> Split:
        """train, validation or test, or its first data, with pixels that do not change from one look to the next."""
        split: Split | None = {"train": self.train, "validation": self.validation, "test": self.test}[name]
        if split is None:
            raise UsageError("there are no validation data in this run; data.validation_size sets some apart")
        split = split.first(limit)  # before pixels are drawn, since a datum's draw depends on its index alone
        return _fixed(split, "test" if name == "test" else "train", self.settings) if split.dynamic else split


def _fixed(split: Split, name: str, settings: DataSettings) -> Split:
    x = binarize(settings.pixels, split.x, split.scale, split.index, settings.seed, name)
    return replace(split, x=x, scale=1.0, dynamic=False)


def load_data(name: str | DataSettings, **settings: Any) -> Data:
    """A data set of the table, read, checked, split and with its pixels treated.

    `load_data("digits", pixels="static")`; the keywords are the settings of the data block of a config, options of the
    set among them. DataError where a file is missing or altered, or a size does not fit.
    """
    if not isinstance(name, str | DataSettings):
        raise UsageError(f"load_data takes the name of a data set, not {name!r}; there are {', '.join(DATASETS)}")
    if isinstance(name, str):
        given = {key: str(value) if isinstance(value, Path) else value for key, value in settings.items()}
        chosen = read(DataSettings, {"name": name, **given}, "load_data")
    else:
        chosen = name
    raw = DATASETS[chosen.name](data_root(chosen.root), chosen.seed, **(chosen.options or {}))
    return _split(raw, chosen)


def _split(raw: Raw, settings: DataSettings) -> Data:
    x = torch.from_numpy(np.ascontiguousarray(raw.x_train))
    y = None if raw.y_train is None else torch.from_numpy(np.ascontiguousarray(raw.y_train)).long()
    total, held = len(x), settings.validation_size
    gap = raw.gap if held else 0
    size = total - held - gap if settings.train_size is None else settings.train_size
    if size < 1 or size + gap + held > total:
        wanted = f"train_size {settings.train_size or 'all the rest'} and validation_size {held}"
        raise DataError(f"data: {wanted} do not fit into the {total} data of the training split of {settings.name}")
    scale = GREY_LEVELS.get(settings.name, 256) - 1.0 if x.dtype == torch.uint8 else 1.0
    first = 0 if settings.train_from == "start" else total - size
    train_rows = slice(first, first + size)
    start = size + gap if settings.train_from == "start" else first - gap - held
    held_rows = slice(start, start + held)

    def part(x: Tensor, y: Tensor | None, places: Any | None, rows: slice, name: str) -> Split:
        index = torch.arange(len(x)) if places is None else torch.from_numpy(places)
        split = Split(x[rows], None if y is None else y[rows], index[rows], scale)
        if settings.pixels == "grey":
            return split
        if x.is_floating_point() and (x.min() < 0 or x.max() > 1):
            low, high = x.min().item(), x.max().item()
            does = "keeps grey levels" if settings.pixels == "levels" else "binarizes intensities"
            raise DataError(
                f"data.pixels: {settings.pixels} {does} on [0, 1], and the values of {settings.name} "
                f"lie on [{low:g}, {high:g}]; use pixels: grey"
            )
        if settings.pixels == "levels":
            return split
        dynamic = settings.pixels == "dynamic" and name == "train" and rows == train_rows
        return replace(split, dynamic=True) if dynamic else _fixed(split, name, settings)

    train = part(x, y, raw.index_train, train_rows, "train")
    validation = part(x, y, raw.index_train, held_rows, "train") if held else None
    x_test = torch.from_numpy(np.ascontiguousarray(raw.x_test))
    y_test = None if raw.y_test is None else torch.from_numpy(np.ascontiguousarray(raw.y_test)).long()
    test = part(x_test, y_test, raw.index_test, slice(None), "test")
    judged = kind_of(*(split for split in (train, validation, test) if split is not None))
    kind: Kind = "levels" if settings.pixels == "levels" else judged
    return Data(settings, tuple(x.shape[1:]), kind, raw.rule, train, test, validation, raw.classes)


def kind_of(*splits: Split) -> Kind:
    """The kind of the values, as a model sees them: all 0 or 1, all on [0, 1], all whole and not negative, or real."""
    if any(s.dynamic for s in splits):
        return "binary"
    if all(s.scale != 1 for s in splits):  # bytes: grey levels
        return "grey"
    if all(SUPPORTS["binary"](s.values if s.x.dtype == torch.uint8 else s.x) for s in splits):
        return "binary"
    if all(SUPPORTS["unit_interval"](s.images(dtype=torch.float64)) for s in splits):
        return "grey"
    return "counts" if all(s.scale == 1 and SUPPORTS["counts"](s.x) for s in splits) else "real"


def read_user_split(path: str | Path, shape: tuple[int, ...], settings: DataSettings) -> Split:
    """The data of an .npz file to evaluate on: its x_test, or x, with grey scale and pixel treatment of the settings.

    DataError where a datum is not of the shape, or bytes lie above the scale.
    """
    arrays = files.read_npz(Path(path))
    name = next((n for n in ("x_test", "x") if n in arrays), None)
    if name is None:
        raise DataError(
            f"{path}: holds {', '.join(sorted(arrays)) or 'nothing'}; to evaluate on it, it needs x_test or x"
        )
    largest = GREY_LEVELS.get(settings.name, 256) - 1
    x, y = files.checked(arrays[name], arrays.get(name.replace("x", "y")), f"{path}: {name}", largest)
    if x.shape[1:] not in (shape, (math.prod(shape),)):
        raise DataError(f"{path}: a datum of {name} has shape {x.shape[1:]}, and the model was trained on {shape}")
    labels = None if y is None else torch.from_numpy(y).long()
    scale = float(largest) if x.dtype == np.uint8 else 1.0
    split = Split(torch.from_numpy(np.ascontiguousarray(x)).reshape(-1, *shape), labels, torch.arange(len(x)), scale)
    return _fixed(split, "test", settings) if PIXELS[settings.pixels] and kind_of(split) == "grey" else split
