"""Readers of data files. Each checks what it reads; a DataError says what is wrong, where, and how to mend it."""

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vae.errors import DataError

Array = NDArray[Any]

# torchvision checks what it downloads, and reads the unpacked files without a look; so their sums stand here.
RAW_SHA256 = {
    "MNIST": {
        "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    },
    "FashionMNIST": {
        "train-images-idx3-ubyte": "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
        "train-labels-idx1-ubyte": "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
        "t10k-images-idx3-ubyte": "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
        "t10k-labels-idx1-ubyte": "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
    },
}
FREY_SHA256 = "2438ba4f0d2a6bd8bac43de756141eaa33c8d248dd613d464bdb1210d9b7af78"  # of the array (1965, 28, 20) uint8


def torchvision_datasets() -> ModuleType:
    """torchvision's data sets; imported here alone, and only when one is asked for."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(
            f"torchvision cannot be imported ({reason}); install the torchvision build that matches torch, or use one "
            "of the data sets that do without it: digits, frey_face, npz, folder"
        ) from None
    return datasets


def read_torchvision(name: str, root: Path) -> list[tuple[Array, Array]]:
    """[(images, labels) of the training split, of the test split] of MNIST, FashionMNIST, CIFAR10 or SVHN.

    What is missing is downloaded into a folder of its own, checked, and only then moved to its place, so that a
    download that breaks off leaves nothing that looks whole.
    """
    dataset = getattr(torchvision_datasets(), name)
    if not _present(name, root):
        _download(dataset, name, root)
    _check_raw(name, root)
    try:
        splits = [_open(dataset, root, train) for train in (True, False)]
    except (RuntimeError, OSError, ValueError, EOFError) as error:
        raise DataError(f"{root}: the files of {name} cannot be read ({error}); {_mend(name, root)}") from None
    return [(np.asarray(s.data), np.asarray(s.labels if name == "SVHN" else s.targets)) for s in splits]


# Where torchvision looks below the root, and what of it belongs to a data set.
_PLACES = {
    "MNIST": ("MNIST",),
    "FashionMNIST": ("FashionMNIST",),
    "CIFAR10": ("cifar-10-batches-py", "cifar-10-python.tar.gz"),
    "SVHN": ("train_32x32.mat", "test_32x32.mat"),
}


_ARCHIVES = {
    "MNIST": "MNIST/raw/*.gz",
    "FashionMNIST": "FashionMNIST/raw/*.gz",
    "CIFAR10": "cifar-10-python.tar.gz",
    "SVHN": "*_32x32.mat",
}


def _present(name: str, root: Path) -> bool:
    if name in RAW_SHA256:
        return all((root / name / "raw" / file).exists() for file in RAW_SHA256[name])
    if name == "SVHN":
        return all((root / file).exists() for file in _PLACES[name])
    return (root / _PLACES[name][0]).is_dir()


def _open(dataset: Any, root: Path, train: bool, download: bool = False) -> Any:
    if dataset.__name__ == "SVHN":
        return dataset(root, split="train" if train else "test", download=download)
    return dataset(root, train=train, download=download)


def _download(dataset: Any, name: str, root: Path) -> None:
    made = not root.exists()
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
            scratch = Path(folder)
            for archive in root.glob(_ARCHIVES.get(name, "nothing")):  # what is there already need not come again
                (scratch / archive.relative_to(root)).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(archive, scratch / archive.relative_to(root))
            for train in (True, False):
                _open(dataset, scratch, train, download=True)
            _check_raw(name, scratch)
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
            f"{root}: {name} is not there and could not be downloaded ({reason}); put its files there, or point "
            "data.root or VAE_DATA at the folder that has them, or use data.name=digits, which needs no file"
        ) from None


def _check_raw(name: str, root: Path) -> None:
    for file, sha256 in RAW_SHA256.get(name, {}).items():
        path = root / name / "raw" / file
        try:
            content = path.read_bytes()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}; {_mend(name, root)}") from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise DataError(f"{path}: the file is truncated or altered (its SHA-256 is wrong); {_mend(name, root)}")


def _mend(name: str, root: Path) -> str:
    return f"delete {' and '.join(str(root / place) for place in _PLACES[name])} to have it fetched again"


def read_frey(root: Path) -> Array:
    """The Frey faces, (1965, 28, 20) uint8 in the order of the video, from Roweis's MATLAB file."""
    from scipy.io import loadmat

    path = root / "FreyFace" / "frey_rawface.mat"
    source = "the file is frey_rawface.mat of Sam Roweis's page (cs.nyu.edu/~roweis/data.html)"
    if not path.exists():
        raise DataError(f"{path}: no such file; {source}; put it there, or point data.root or VAE_DATA elsewhere")
    try:
        faces = loadmat(path)["ff"].T.reshape(-1, 28, 20)  # ff is (560, 1965): one column a frame
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a MATLAB file with an array ff ({error}); {source}") from None
    if hashlib.sha256(np.ascontiguousarray(faces).tobytes()).hexdigest() != FREY_SHA256:
        raise DataError(f"{path}: the array is not that of the Frey faces (its SHA-256 is wrong); {source}")
    return np.ascontiguousarray(faces)


def read_npz(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file; never runs code (no pickled objects)."""
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise DataError(f"{path}: this is one array; save it with numpy.savez(path, x=array)")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of an .npz file") from None
    except DataError:
        raise
    except Exception as error:
        reason = (
            "it is no archive, or holds pickled objects" if "pickle" in str(error) else str(error).partition("\n")[0]
        )
        raise DataError(
            f"{path}: cannot be read as an .npz file of plain arrays ({reason}); write it with numpy.savez"
        ) from None
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):
            raise DataError(f"{path}: {name} is no array; write the file with numpy.savez")
    return arrays


def checked(x: Any, y: Any | None, place: str, largest: int = 255) -> tuple[Any, Any | None]:
    """An array of data as (N, D) or (N, C, H, W), bytes of at most `largest` or float32, and its labels."""
    if x.ndim not in (2, 3, 4) or 0 in x.shape:
        raise DataError(f"{place}: has shape {x.shape}; data are (N, D), (N, H, W) or (N, C, H, W), none of them 0")
    if x.ndim == 4 and x.shape[-1] in (1, 3) and x.shape[1] not in (1, 3):
        raise DataError(
            f"{place}: has shape {x.shape}, channels last; save it as (N, C, H, W): x.transpose(0, 3, 1, 2)"
        )
    if x.dtype == np.uint8:
        if x.max() == 1:
            raise DataError(
                f"{place}: bytes are divided by {largest}, and these are 0 and 1 only; save binary data as bool or "
                "float32"
            )
        if x.max() > largest:
            raise DataError(
                f"{place}: has bytes up to {x.max()}, and those that the model was trained on run from 0 to {largest}; "
                "save grey levels on that scale, or as floats on [0, 1]"
            )
    elif x.dtype == bool or np.issubdtype(x.dtype, np.floating):
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is named below
            x = x.astype(np.float32)
        if not np.isfinite(x).all():
            bad = int(np.argwhere(~np.isfinite(x.reshape(len(x), -1)).all(1))[0, 0])
            raise DataError(f"{place}: datum {bad} has a value that is not finite (NaN or infinite in float32)")
    elif np.issubdtype(x.dtype, np.integer):
        if x.min() < 0 or x.max() > 2**24:
            raise DataError(
                f"{place}: is {x.dtype} on [{x.min()}, {x.max()}]; whole numbers are counts, 0 to 2^24 (what float32 "
                "holds); save grey levels 0..255 as uint8, other data as floats"
            )
        x = x.astype(np.float32)
    else:
        raise DataError(f"{place}: is {x.dtype}; save grey levels 0..255 as uint8, other data as floats or counts")
    if y is not None and (y.shape != x.shape[:1] or not np.issubdtype(y.dtype, np.integer)):
        raise DataError(f"{place}: {len(x)} data and labels of shape {y.shape}, {y.dtype}; one whole number a datum")
    return (x[:, None] if x.ndim == 3 else x), None if y is None else y.astype(np.int64)


IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm"}


def _eight_bits(image: Any) -> Any:
    """A picture as grey levels (L) or RGB of 8 bits; ValueError where its pixels have no stated range."""
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)  # as a person sees it, not as the camera held it
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no stated range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):  # 65535 / 257 = 255
        return Image.fromarray((np.asarray(image, dtype=np.uint16) // 257).astype(np.uint8))
    grey = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(grey)


def read_folder(path: Path, size: tuple[int, int] | None) -> tuple[Array, Array | None, list[str]]:
    """The images below a folder as (N, C, H, W) bytes, their classes (the names of the sub-folders), and those names.

    In the order of their paths. C is 1 if all are grey, else 3; transparent pixels are white. `size` is (height,
    width), to which each is resized, whatever its shape.
    """
    from PIL import Image, UnidentifiedImageError

    if not path.is_dir():
        raise DataError(f"{path}: no such folder; data.path names the folder of images")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
    if not files:
        raise DataError(f"{path}: no images in this folder ({', '.join(sorted(IMAGE_SUFFIXES))})")
    images = []
    for file in files:
        try:
            with Image.open(file) as opened:
                pixels = _eight_bits(opened)
        except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise DataError(f"{file}: cannot be read as an image ({error}); replace or remove it") from None
        images.append(pixels if size is None else pixels.resize(size[::-1], Image.Resampling.BOX))
    mode = "L" if all(image.mode == "L" for image in images) else "RGB"
    arrays = [np.asarray(image.convert(mode)) for image in images]
    shapes = {array.shape[:2] for array in arrays}
    if len(shapes) > 1:
        odd = next(f for f, a in zip(files, arrays, strict=True) if a.shape[:2] != arrays[0].shape[:2])
        raise DataError(f"{odd}: its size differs from that of {files[0]}; give data.size, for example [64, 64]")
    stacked = np.stack(arrays)
    x = stacked[:, None] if mode == "L" else stacked.transpose(0, 3, 1, 2)
    classes = sorted({file.relative_to(path).parts[0] for file in files if file.parent != path})
    if not classes or any(file.parent == path for file in files):
        return x, None, []
    return x, np.array([classes.index(file.relative_to(path).parts[0]) for file in files]), classes
