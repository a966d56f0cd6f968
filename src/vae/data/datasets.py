"""The table of data sets: a row for each, with its reader and what is known before reading."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, get_type_hints

import numpy as np

from vae.data import files
from vae.data.arrays import READ, Doubt, checked, labels_of, named
from vae.data.pictures import read_folder
from vae.data.synthetic import li_data
from vae.errors import DataError, UsageError, tell
from vae.files import as_path
from vae.randomness import derive
from vae.schema import Count, Index, Interval, did_you_mean, names_of

Side = Annotated[int, Interval(1, 10_000)]


class Arrays(NamedTuple):
    """The data of a split as read."""

    x: Any  # (N, *shape) uint8 or float
    y: Any | None = None  # labels (N,) whole numbers, or targets (N,) or (N, T) float32
    places: Any | None = None  # (N,), of the data in the file; None if the split keeps its order


class Raw(NamedTuple):
    """A data set as read: its splits, and the rule that made them."""

    train: Arrays
    test: Arrays
    rule: str
    classes: tuple[str, ...] = ()  # if the files name them
    validation: Arrays | None = None  # if the files have their own
    doubt: Doubt | None = None  # about what the values are
    columns: tuple[str, ...] = ()  # the names of the elements of a datum, of a table
    gap: int = 0  # how many data are left out between training and validation, as neighbours are alike


@dataclass(frozen=True)
class DatasetRow:
    """A data set as a row of the table: the keyword-only parameters of its reader are its options."""

    read: Callable[..., Raw]  # (root, seed, *, its options)
    shape: tuple[int, int, int] | None = None  # of a datum; None if known only after reading
    grey_levels: int = 256  # of a byte
    classes: tuple[str, ...] = ()  # if the files do not name them
    torchvision: str | None = None  # its name in torchvision

    def __post_init__(self) -> None:
        hints = get_type_hints(self.read, include_extras=True)
        self.__dict__.update(__doc__=self.read.__doc__, __signature__=signature(self.read), option_types=hints)

    def __call__(self, root: Path, seed: int, **options: Any) -> Raw:
        """The data, read and checked."""
        return self.read(root, seed, **options)


def _seeded_split(x: Any, y: Any | None, test_size: int | None, seed: int, classes: tuple[str, ...] = ()) -> Raw:
    """A seeded permutation, of which the last `test_size` (a tenth) are for testing."""
    test_size = test_size or max(1, len(x) // 10)
    if not 0 < test_size < len(x):
        raise DataError(f"data.test_size: {test_size} test data of {len(x)} in all leave nothing to train on")
    order = np.random.default_rng(derive(seed, "split")).permutation(len(x))
    places = order[:-test_size], order[-test_size:]
    train, test = (Arrays(x[rows], None if y is None else y[rows], rows) for rows in places)
    return Raw(train, test, f"{test_size} of {len(x)} drawn at random (data.seed {seed}) to test", classes)


def _split_as_given(
    parts: Mapping[str, Arrays], classes: tuple[str, ...], test_size: int | None, seed: int, place: str, rule: str
) -> Raw:
    """Train, test and validation as they are given; without a test split, `test_size` of the rest are drawn for it."""
    if "test" in parts:
        if test_size is not None:
            raise DataError(f"data.test_size: {place} has its own test data; leave test_size out")
        raw = Raw(parts["train"], parts["test"], rule, classes)
    else:
        whole = parts.get("all") or parts["train"]
        raw = _seeded_split(whole.x, whole.y, test_size, seed, classes)
    return raw._replace(validation=parts.get("validation"))


def _channels_first(x: Any) -> Any:
    """(N, C, H, W) from (N, H, W) or (N, H, W, 3)."""
    return x[:, None] if x.ndim == 3 else x.transpose(0, 3, 1, 2) if x.shape[-1] == 3 else x


def _torchvision(source: files.Torchvision, shape: tuple[int, int, int], classes: tuple[str, ...] = ()) -> DatasetRow:
    def read(root: Path, seed: int) -> Raw:
        arrays = root / f"{source.name.lower()}.npz"
        if arrays.exists():
            raw = split_arrays(*files.read_npz(arrays, READ), str(arrays), seed, None)
            if (found := raw.train.x.shape[1:]) != shape:
                raise DataError(f"{arrays}: holds data of shape {found}, and {source.name} has {shape}")
            return raw
        train, test = (Arrays(_channels_first(x), y) for x, y in files.read_torchvision(source, root))
        return Raw(train, test, f"the published split, {len(train.x)} to train and {len(test.x)} to test")

    read.__doc__ = (
        f"{source.name} from {source.name.lower()}.npz in the data root, if it is there (as npz, below); else through "
        "torchvision: downloaded if missing, checked."
    )
    return DatasetRow(read, shape, classes=classes, torchvision=source.name)


_CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
_CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def _frey_face(
    root: Path, seed: int, *, split: Literal["random", "block"] = "random", test_size: Count = 465, gap: Index = 30
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
    test = Arrays(faces[first:], places=np.arange(first, len(faces)))
    return Raw(Arrays(faces[: first - gap]), test, rule, gap=gap)


def _digits(root: Path, seed: int, *, test_size: Count = 297) -> Raw:
    """scikit-learn's 1797 handwritten digits, 8 x 8, 17 grey levels; no file needed."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    return _seeded_split(digits.images.astype(np.uint8)[:, None], digits.target, test_size, seed)


def _npz(root: Path, seed: int, *, path: str, test_size: Count | None = None) -> Raw:
    """Your own arrays: x_train and x_test, or x alone (a tenth is drawn for testing), and x_val; labels y_train, ...

    For a regression, y_train, ... are targets: numbers, one or several per datum. Bytes (uint8) are grey levels,
    divided by 255; other whole numbers are counts, whatever their type.
    """
    return split_arrays(*files.read_npz(Path(path), READ), path, seed, test_size)


def split_arrays(
    arrays: Mapping[str, Any], unread: Collection[str], place: str, seed: int, test_size: int | None
) -> Raw:
    """Arrays x_train and x_test, or x alone, of which `test_size` (a tenth) drawn at random are for testing.

    DataError if names, shapes or values do not fit; `place` says in it where the arrays are from. A warning tells
    the names of others that lie there, `unread`.
    """
    x, y = named(arrays, unread, place)
    if unread:
        names = f"x, x_train, x_test, x_val, and the same with y for labels; not {names_of(unread, 8)}"
        tell(f"{place}: only arrays of certain names are read: {names}")
    name = {split: "x" if split == "all" else f"x_{split}" for split in x}
    found = {split: checked(values, f"{place}: {name[split]}") for split, values in x.items()}
    values = {split: data for split, (data, _) in found.items()}
    first, *others = values
    for split in others:
        if values[first].shape[1:] != values[split].shape[1:] or values[first].dtype != values[split].dtype:
            here, there = (f"{name[s]} is {values[s].dtype} {values[s].shape}" for s in (first, split))
            raise DataError(f"{place}: {here} and {there}; a datum must have the same shape and type in both")
    labels, classes = labels_of(y, {split: len(data) for split, data in values.items()}, place)
    parts = {split: Arrays(data, labels.get(split)) for split, data in values.items()}
    raw = _split_as_given(parts, classes, test_size, seed, place, "the given x_train and x_test")
    doubts = [doubt._replace(what=f"{name[split]}: {doubt.what}") for split, (_, doubt) in found.items() if doubt]
    return raw._replace(doubt=doubts[0] if doubts else None)


def _arrays(root: Path, seed: int, *, test_size: Count | None = None) -> Raw:
    """Your own arrays; from Python only: vae.Data.from_arrays(x, y)."""
    raise _only_from_python("arrays", "arrays in memory")


def _loader(root: Path, seed: int) -> Raw:
    """Your own DataLoader; from Python only: vae.fit(model, loader)."""
    raise _only_from_python("loader", "a DataLoader of the user's own")


def _csv(
    root: Path,
    seed: int,
    *,
    path: str,
    target: tuple[str, ...] | str | None = None,
    labels: str | None = None,
    test_size: Count | None = None,
) -> Raw:
    """Your own table: a first line of column names, then rows of numbers; `target` names what a regression predicts,
    `labels` a column of classes, words or whole numbers."""
    table = read_table(as_path(path, "data.path"), target, labels)
    raw = _seeded_split(table.x, table.y, test_size, seed)
    return raw._replace(columns=table.columns, classes=table.classes)


class Table(NamedTuple):
    """A csv file: inputs (N, D), and targets (N, T) or labels (N,) if a column is named for them."""

    x: Any
    y: Any | None
    columns: tuple[str, ...]  # of the inputs
    classes: tuple[str, ...]  # what the labels count, if they are words


def read_table(path: Path, target: tuple[str, ...] | str | None, labels: str | None, *, new: bool = False) -> Table:
    """A csv file; labels may be missing from a `new` one, of which a model is asked. DataError if it does not fit."""
    columns = files.read_csv(path, words=labels)
    targets = [target] if isinstance(target, str) else list(target or ())
    if targets and labels is not None:
        raise DataError("data.labels: a regression has a target and no labels; leave one of them out")
    labels = None if new and labels not in columns else labels
    apart = {**dict.fromkeys(targets, "target"), **({} if labels is None else {labels: "labels"})}
    for name, key in apart.items():
        if name not in columns:
            raise DataError(f"data.{key}: {path} has no column {name}{did_you_mean(name, columns)}")
    names = tuple(name for name in columns if name not in apart)
    if not names:
        alone = "target, so there is nothing to predict it from" if targets else "labels, so there is nothing to learn"
        raise DataError(f"data.{'target' if targets else 'labels'}: {path} has no other column than the {alone}")
    x, _ = checked(np.stack([columns[name] for name in names], 1), str(path))
    if labels is None:
        y = np.stack([columns[name] for name in targets], 1).astype(np.float32) if targets else None
        return Table(x, y, names, ())
    found, classes = labels_of({"all": columns[labels]}, {"all": len(x)}, str(path))
    if found["all"].dtype != np.int64:
        raise DataError(f"data.labels: column {labels} of {path} has fractions; labels are words or whole numbers")
    return Table(x, found["all"], names, classes)


def _li(
    root: Path, seed: int, *, size: Count = 150, test_size: Count = 1000, reading: Literal["code", "text"] = "code"
) -> Raw:
    """Algorithm 2 of Li 2021: one input, y standardised; its figures show seed 123. Fresh data of the law to test."""
    as_printed = reading == "text"
    x, y = li_data(np.random.RandomState(seed), size, as_printed)
    x_test, y_test = li_data(np.random.RandomState(derive(seed, "test") % 2**32), test_size, as_printed)
    train, test = (
        Arrays(*(column[:, None].astype(np.float32) for column in (inputs, (outputs - y.mean()) / y.std())))
        for inputs, outputs in ((x, y), (x_test, y_test))
    )
    return Raw(train, test, f"{size} drawn to train, {test_size} to test")


def _only_from_python(name: str, what: str) -> UsageError:
    return UsageError(
        f"data.name: {name} stands for {what}, which no config can build; give the data of such a run by --data "
        "FILE.npz (holding x_test, or x), or as they were, from Python"
    )


def _folder(
    root: Path, seed: int, *, path: str, size: tuple[Side, Side] | Side | None = None, test_size: Count | None = None
) -> Raw:
    """A folder of images, resized to `size` (a side, or [height, width]); classes from its sub-folders.

    Sub-folders train, test and validation (val), each with classes or without, are the splits.
    """
    sides = (size, size) if isinstance(size, int) else size
    found = read_folder(as_path(path, "data.path"), sides)
    parts = {split: Arrays(x, found.y[split]) for split, x in found.x.items()}
    return _split_as_given(parts, found.classes, test_size, seed, path, "the given folders train and test")


DATASETS: dict[str, DatasetRow] = {
    "mnist": _torchvision(files.MNIST, (1, 28, 28)),
    "fashion_mnist": _torchvision(files.FASHION_MNIST, (1, 28, 28), _CLOTHES),
    "cifar10": _torchvision(files.CIFAR10, (3, 32, 32), _CIFAR),
    "svhn": _torchvision(files.SVHN, (3, 32, 32)),
    "frey_face": DatasetRow(_frey_face, (1, 28, 20)),
    "digits": DatasetRow(_digits, (1, 8, 8), grey_levels=17),
    "npz": DatasetRow(_npz),
    "csv": DatasetRow(_csv),
    "folder": DatasetRow(_folder),
    "li": DatasetRow(_li),
    "arrays": DatasetRow(_arrays),
    "loader": DatasetRow(_loader),
}
