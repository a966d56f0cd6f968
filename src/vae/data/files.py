"""Readers of data files. Each checks what it reads, and raises a DataError with the place, the fault and the remedy."""

import contextlib
import csv
import hashlib
import io
import math
import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae.errors import DataError
from vae.files import memory, open_regular
from vae.schema import printable, show

Array = NDArray[Any]


@dataclass(frozen=True)
class Torchvision:
    """A data set of torchvision: its name there, and its files below the root."""

    name: str
    # What is read, with the SHA-256 of files that torchvision does not check: those that it unpacked earlier.
    files: Mapping[str, str | None]
    archives: tuple[str, ...]  # what is downloaded, as patterns


MNIST = Torchvision(
    "MNIST",
    {
        "MNIST/raw/train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "MNIST/raw/train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "MNIST/raw/t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "MNIST/raw/t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    ("MNIST/raw/*.gz",),
)
FASHION_MNIST = Torchvision(
    "FashionMNIST",
    {
        "FashionMNIST/raw/train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "FashionMNIST/raw/train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "FashionMNIST/raw/t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "FashionMNIST/raw/t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
    ("FashionMNIST/raw/*.gz",),
)
CIFAR10 = Torchvision("CIFAR10", {"cifar-10-batches-py": None}, ("cifar-10-python.tar.gz",))
_MATS = ("train_32x32.mat", "test_32x32.mat")
SVHN = Torchvision("SVHN", dict.fromkeys(_MATS), _MATS)
FREY_SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"  # of the array (1965, 28, 20) uint8


def torchvision_datasets() -> ModuleType:
    """torchvision's data sets; imported only here, and only when one is needed."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"torchvision cannot be imported ({reason}); install the torchvision build that matches torch, or use one "
            "of the data sets that do not need it: digits, frey_face, npz, folder"
        ) from None
    return datasets


def read_torchvision(source: Torchvision, root: Path) -> list[tuple[Array, Array]]:
    """[(images, labels) of the training split, of the test split], as torchvision has them.

    Missing files are downloaded into a temporary folder, checked, and only then moved into place, so that an
    interrupted download leaves nothing that looks complete.
    """
    dataset = getattr(torchvision_datasets(), source.name)
    if not all((root / file).exists() for file in source.files):
        _download(dataset, source, root)
    _check_raw(source, root)
    try:
        splits = [_open(dataset, root, train) for train in (True, False)]
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{root}: the files of {source.name} cannot be read ({error}); {_mend(source, root)}") from None
    return [(np.asarray(s.data), np.asarray(s.labels if source is SVHN else s.targets)) for s in splits]


def _open(dataset: Any, root: Path, train: bool, download: bool = False) -> Any:
    if dataset.__name__ == "SVHN":
        return dataset(root, split="train" if train else "test", download=download)
    return dataset(root, train=train, download=download)


def _download(dataset: Any, source: Torchvision, root: Path) -> None:
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            scratch = Path(folder)
            for archive in (path for pattern in source.archives for path in root.glob(pattern)):  # downloaded already
                (scratch / archive.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(archive, scratch / archive.relative_to(root))
            for train in (True, False):
                _open(dataset, scratch, train, download=True)
            _check_raw(source, scratch)
            for file in [p for p in scratch.rglob("*") if p.is_file()]:
                target = root / file.relative_to(scratch)
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(file, target)
    except (OSError, RuntimeError) as error:
        if made:
            with contextlib.suppress(OSError):
                root.rmdir()
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(
            f"{root}: {source.name} is not there and could not be downloaded ({reason}); put its files there, or point "
            "data.root or VAE_DATA at the folder that has them, or use data.name=digits, which needs no file"
        ) from None


def _check_raw(source: Torchvision, root: Path) -> None:
    for path, sha256 in ((root / file, sha256) for file, sha256 in source.files.items() if sha256 is not None):
        try:
            with open_regular(path) as file:
                content = file.read()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; {_mend(source, root)}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(f"{path}: the file is truncated or altered (its SHA-256 is wrong); {_mend(source, root)}")


def _mend(source: Torchvision, root: Path) -> str:
    places = dict.fromkeys(root / Path(file).parts[0] for file in (*source.files, *source.archives))
    return f"delete {' and '.join(map(str, places))} to download it again"


def read_frey(root: Path) -> Array:
    """The Frey faces, (1965, 28, 20) uint8 in the order of the video, from Roweis's MATLAB file."""
    from scipy.io import loadmat

    path = root / "FreyFace" / "frey_rawface.mat"
    source = "the file is frey_rawface.mat of Sam Roweis's page (cs.nyu.edu/~roweis/data.html)"
    if not path.exists():
        raise DataError(f"{path}: no such file; {source}; put it there, or point data.root or VAE_DATA elsewhere")
    try:
        faces = loadmat(path)["ff"].T.reshape(-1, 28, 20)  # ff is (560, 1965): one column per frame
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file with an array ff ({error}); {source}") from None
    if hashlib.sha256(np.ascontiguousarray(faces).tobytes()).hexdigest() != FREY_SHA256:
        raise DataError(f"{path}: the array is not that of the Frey faces (its SHA-256 is wrong); {source}")
    return np.ascontiguousarray(faces)


def read_csv(path: Path, words: str | None = None) -> dict[str, Array]:
    """The columns of a csv file by their names in its first line, each (N,) float64, none of them missing.

    `words` names a column that may hold words instead.
    """
    try:
        with open_regular(path) as file:
            lines = list(csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of a csv file") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read as a csv file ({error})") from None
    names, *rows = [line for line in lines if line] or [[]]
    if not rows or len(set(names)) < len(names):
        raise DataError(f"{path}: needs a first line of column names, all different, and rows of numbers below it")
    for number, row in enumerate(rows, 1):
        if len(row) != len(names):
            raise DataError(
                f"{path}: row {number} has {len(row)} values, and the first line names {len(names)} columns"
            )
        for name, text in zip(names, row, strict=True):
            if not _is_finite(text) and (name != words or not text.strip()):
                what = "is missing" if not text.strip() else f"is {show(text)}, which is no finite number"
                raise DataError(
                    f"{path}: column {printable(name)}, row {number}: {what}; drop the row or fill the value in, and "
                    "turn words into numbers, such as 0 and 1 for each word (a column of classes can be data.labels)"
                )
    columns = dict(zip(names, zip(*rows, strict=True), strict=True))
    numbers = {name: name != words or all(map(_is_finite, column)) for name, column in columns.items()}
    return {name: np.array(column, np.float64 if numbers[name] else str) for name, column in columns.items()}


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def read_npz(path: Path, wanted: Collection[str]) -> tuple[dict[str, Array], list[str]]:
    """The wanted arrays of an .npz file, and the names of its others, which are not read; never runs code."""
    try:
        with open_regular(path) as file:
            archive: Any = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise ValueError("it is a single array")
            names = [name for name in archive.files if name in wanted]
            members: Any = archive.zip
            claimed = sum(m.file_size for m in members.infolist() if m.filename.removesuffix(".npy") in names)
            if claimed > memory():
                raise ValueError(f"it needs {claimed / 1e9:.0f} GB, more than the memory of this machine")
            arrays = {name: archive[name] for name in names}  # one by one, so that the others are not inflated
            others = sorted(set(archive.files) - arrays.keys())
        if bad := [name for name, array in arrays.items() if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{bad[0]} is not an array")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of an .npz file") from None
    except Exception as error:  # whatever the readers make of foreign bytes
        pickled = "it is not an archive, or it holds pickled objects"
        reason = pickled if "pickle" in str(error) else str(error).partition("\n")[0]
        raise DataError(
            f"{path}: cannot be read as an .npz file of plain arrays ({reason}); write it by numpy.savez(path, x=array)"
        ) from None
    return arrays, others
