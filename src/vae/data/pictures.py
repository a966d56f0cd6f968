"""Folders of pictures: which of the files are data, of which split and class, and how a picture becomes bytes."""

import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vae.errors import DataError, tell
from vae.files import memory
from vae.schema import names_of

Array = NDArray[Any]
# What is opened, by suffix. Pillow looks at the content, so a file of one may hold another of these, and none else.
FORMATS = {
    ".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP", ".gif": "GIF", ".tif": "TIFF", ".tiff": "TIFF",
    ".webp": "WEBP", ".ppm": "PPM", ".pgm": "PPM",
}  # fmt: skip
NO_DATA = ("__MACOSX", "@eaDir")  # beside all names that begin with a dot
SPLITS = {
    "train": "train", "training": "train", "test": "test", "testing": "test",
    "val": "validation", "valid": "validation", "validation": "validation",
}  # fmt: skip


class Folder(NamedTuple):
    """The pictures of a folder by split (train, test, validation; or `all`), (N, C, H, W) bytes, and their classes."""

    x: dict[str, Array]
    y: dict[str, Array | None]
    classes: tuple[str, ...]


def read_folder(path: Path, size: tuple[int, int] | None) -> Folder:
    """The pictures below a folder, in the order of their paths.

    C is 1 if all are grey, else 3. `size` is (height, width), to which each is resized, whatever its shape. Hidden
    files are left out, and links followed. DataError if there are none, or if one cannot be read.
    """
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; data.path names the folder of images")
    files = _pictures(path)
    if not files:
        raise DataError(f"{path}: no images in this folder ({', '.join(sorted(FORMATS))})")
    of_split = _by_split(path, files)
    classes = sorted({name for found in of_split.values() for _, name in found if name is not None})
    if "test" in of_split and (new := {n for _, n in of_split["test"]} - {n for _, n in of_split["train"]} - {None}):
        tell(f"{path}: only the test split has the classes {names_of(sorted(filter(None, new)), 3)}")
    images = _read([file for found in of_split.values() for file, _ in found], size)
    x, y, start = dict[str, Array](), dict[str, Array | None](), 0
    for split, found in of_split.items():
        x[split], start = images[start : start + len(found)], start + len(found)
        names = [name for _, name in found if name is not None]
        y[split] = np.array([classes.index(name) for name in names]) if names else None
    return Folder(x, y, tuple(classes))


# ------------------------------------------------------------------------------------- which files


def _pictures(root: Path) -> list[Path]:
    """The files of pictures, in order; what is left out is told."""
    hidden, broken = list[Path](), list[Path]()

    def walk(folder: Path, above: frozenset[str]) -> Iterator[Path]:
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            path, is_picture = folder / entry.name, Path(entry.name).suffix.lower() in FORMATS
            if entry.name.startswith(".") or entry.name in NO_DATA:
                if is_picture or entry.is_dir():
                    hidden.append(path)
            elif entry.is_dir():
                if (real := os.path.realpath(path)) not in above:  # not a link to a folder that it lies in
                    yield from walk(path, above | {real})
            elif is_picture and entry.is_file():
                yield path
            elif entry.is_symlink() and not path.exists():
                broken.append(path)

    try:
        files = list(walk(root, frozenset((os.path.realpath(root),))))
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    for what, found in (("hidden files and folders", hidden), ("links that lead nowhere", broken)):
        if found:
            tell(f"{root}: {what} are left out ({len(found)}): {names_of([p.relative_to(root) for p in found], 3)}")
    return files


def _by_split(root: Path, files: Sequence[Path]) -> dict[str, list[tuple[Path, str | None]]]:
    """The files of each split, each with the name of its class: of the folder below the root, or below the split's.

    DataError if the folders of splits cannot be told from those of classes.
    """
    parts = {file: file.relative_to(root).parts for file in files}
    tops = sorted({part[0] for part in parts.values() if len(part) > 1})
    splits = {top: SPLITS[top.casefold()] for top in tops if top.casefold() in SPLITS}
    if {"train", "test"} <= set(splits.values()) and len(splits) < len(tops):
        others = names_of([top for top in tops if top not in splits], 3)
        held = names_of(splits)
        raise DataError(f"{root}: holds {held} beside {others}; move the others away, so that splits are no classes")
    if "train" not in splits.values() or len(splits) < len(tops):
        return {"all": _with_classes(root, list(parts.items()))}
    if len(set(splits.values())) < len(splits):
        raise DataError(f"{root}: holds several folders of one split: {', '.join(splits)}; keep one of each")
    if stray := [file for file, part in parts.items() if len(part) == 1]:
        names = names_of([file.name for file in stray], 3)
        tell(f"{root}: pictures beside the folders of splits are left out ({len(stray)}): {names}")
    found = {}
    for top, split in splits.items():
        own = [(file, part[1:]) for file, part in parts.items() if part[0] == top and len(part) > 1]
        found["all" if len(splits) == 1 else split] = _with_classes(root / top, own)
    return found


def _with_classes(folder: Path, files: Sequence[tuple[Path, tuple[str, ...]]]) -> list[tuple[Path, str | None]]:
    """Files with their classes; those beside the folders of classes are left out, and told."""
    if all(len(part) == 1 for _, part in files):
        return [(file, None) for file, _ in files]
    if stray := [file.name for file, part in files if len(part) == 1]:
        tell(f"{folder}: pictures beside the folders of classes are left out ({len(stray)}): {names_of(stray, 3)}")
    return [(file, part[0]) for file, part in files if len(part) > 1]


# ------------------------------------------------------------------------------------- pixels


def _read(files: Sequence[Path], size: tuple[int, int] | None) -> Array:  # (N, C, H, W) uint8
    """The pictures, grey if all are, else RGB; DataError if one cannot be read, or if sizes differ."""
    from PIL import Image

    images, several, largest = list[Any](), list[str](), 0
    for file in files:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                warnings.simplefilter("error", Image.DecompressionBombWarning)  # of its size, before it is decoded
                with Image.open(file, formats=sorted(set(FORMATS.values()))) as opened:
                    frames = getattr(opened, "n_frames", 1)
                    if frames > 1 and opened.format != "MPO":  # which is a picture and its preview
                        several.append(f"{file.name} ({frames})")
                    pixels, top = _eight_bits(opened)
        except Exception as error:  # whatever Pillow's readers make of foreign bytes
            reason = str(error).partition("\n")[0]
            raise DataError(f"{file}: cannot be read as an image ({reason}); replace or remove it") from None
        largest = max(largest, top)
        images.append(pixels if size is None else pixels.resize(size[::-1], Image.Resampling.BOX))
        first = images[0]
        if images[-1].size != first.size:
            raise DataError(f"{file}: its size differs from that of {files[0]}; give data.size, for example [64, 64]")
        if len(images) == 1 and (needed := 3 * len(files) * first.width * first.height) > memory():
            raise DataError(
                f"{files[0].parent}: {len(files)} pictures of {first.height} x {first.width} need "
                f"{needed / 1e9:.0f} GB, more than the memory of this machine; give data.size, for example [64, 64]"
            )
    if several:
        tell(f"of pictures with several frames or pages the first is taken ({len(several)}): {names_of(several, 3)}")
    if 0 < largest < 4096:
        tell(
            f"{files[0].parent}: pictures of 16 bits are divided by 65535, and these go up to {largest} only; if they "
            "are of fewer bits, save them on the whole range"
        )
    grey = all(image.mode == "L" for image in images)
    stacked = np.stack([np.asarray(image if grey else image.convert("RGB")) for image in images])
    return stacked[:, None] if grey else np.ascontiguousarray(stacked.transpose(0, 3, 1, 2))


def _eight_bits(image: Any) -> tuple[Any, int]:
    """A picture as grey levels (L) or RGB of 8 bits, and its largest level if it has 16 (else 0).

    Upright by its EXIF rotation, transparent pixels white, palettes and CMYK as RGB. ValueError if its pixels have no
    stated range.
    """
    from PIL import Image, ImageOps

    image = ImageOps.exif_transpose(image)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of mode {image.mode} have no stated range; save it with 8 or 16 bits")
    if image.mode.startswith("I;16"):
        levels = np.asarray(image, dtype=np.uint16)
        return Image.fromarray((levels // 257).astype(np.uint8)), int(levels.max())  # 65535 / 257 = 255
    grey = "L" if image.mode in ("1", "L", "LA") else "RGB"
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert(grey), 0
