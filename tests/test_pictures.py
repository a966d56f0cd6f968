"""Folders of pictures: which files are data, of which split and class, what a picture becomes, and hostile ones."""

import io
import os
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

import vae
from vae.data import pictures
from vae.data.pictures import read_folder
from vae.errors import DataError, DataWarning, VaeError

RNG = np.random.default_rng(5)


def picture(path, size=(6, 5), mode="L", **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode).save(path, **how)


def classes(root, count=6, names=("cat", "dog")):
    for name in names:
        for i in range(count):
            picture(root / name / f"{i:02}.png")
    return root


def load(root, *told, **options):
    """The data of a folder, and that exactly this is warned of."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        data = vae.load_data("folder", path=str(root), **options)
    found = [str(w.message) for w in seen if issubclass(w.category, DataWarning)]
    assert len(found) == len(told), found
    for text, message in zip(told, found, strict=True):
        assert text in message
    return data


def whole(data):
    return len(data.train) + len(data.test) + (0 if data.validation is None else len(data.validation))


# ------------------------------------------------------------------------------------------------- which files


@pytest.mark.parametrize(
    "extra",
    [
        ".ipynb_checkpoints/00-checkpoint.png", "cat/.ipynb_checkpoints/0.png", ".Trash-1000/files/0.png", "cat/._00.png",
        "__MACOSX/cat/._00.png", "cat/@eaDir/00.png", ".thumbnails/0.png", ".cat.png",
    ],
)  # fmt: skip
def test_hidden_files_are_no_data(tmp_path, extra):
    classes(tmp_path)
    picture(tmp_path / extra, size=(2, 2))
    data = load(tmp_path, f"{tmp_path}: hidden files and folders are left out (1): {extra[:5]}")
    assert data.classes == ("cat", "dog")
    assert whole(data) == 12


def test_files_that_are_no_pictures_are_not_told(tmp_path):
    classes(tmp_path)
    for name in (".DS_Store", "Thumbs.db", "cat/readme.txt", ".hidden"):
        (tmp_path / name).write_bytes(b"x")
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    assert whole(load(tmp_path)) == 12
    assert whole(load(classes(tmp_path / ".hidden_root"))) == 12  # what lies above is not looked at


@pytest.mark.parametrize("linked", [("cat",), ("cat", "dog")])
def test_links_to_classes_are_followed(tmp_path, linked):
    store, root = classes(tmp_path / "store"), tmp_path / "root"
    root.mkdir()
    for name in ("cat", "dog"):
        (os.symlink if name in linked else shutil.copytree)(store / name, root / name)
    data = load(root)
    assert data.classes == ("cat", "dog")
    assert whole(data) == 12
    os.symlink(store / "cat" / "00.png", root / "dog" / "one_more.png")
    os.symlink(store / "cat", root / "same")  # the same pictures under another name are another class
    assert whole(load(root)) == 19


def test_a_link_to_a_folder_above_is_no_endless_loop(tmp_path):
    classes(tmp_path)
    os.symlink(tmp_path, tmp_path / "cat" / "again")
    os.symlink("..", tmp_path / "dog" / "up")
    assert whole(load(tmp_path)) == 12


def test_links_that_lead_nowhere_are_told(tmp_path):
    classes(tmp_path)
    for i in range(5):
        os.symlink("nowhere.png", tmp_path / "cat" / f"link{i}.png")
    told = "links that lead nowhere are left out (5): cat/link0.png, cat/link1.png, cat/link2.png and 2 more"
    assert whole(load(tmp_path, told)) == 12


def test_a_picture_beside_the_classes_is_told(tmp_path):
    classes(tmp_path)
    picture(tmp_path / "preview.png", size=(9, 9))
    data = load(tmp_path, "pictures beside the folders of classes are left out (1): preview.png")
    assert data.classes == ("cat", "dog")
    assert whole(data) == 12
    assert data.train.y is not None


# ------------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize(
    "names", [("train", "test", "val"), ("Training", "testing", "VALIDATION"), ("train", "test", "valid")]
)
def test_folders_of_splits_are_the_splits(tmp_path, names):
    for name, count in zip(names, (6, 3, 2), strict=True):
        classes(tmp_path / name, count)
    data = load(tmp_path)
    assert data.classes == ("cat", "dog")
    assert (len(data.train), len(data.test), len(data.validation)) == (12, 6, 4)
    assert data.test.y.tolist() == [0, 0, 0, 1, 1, 1]
    expected = np.asarray(Image.open(tmp_path / names[1] / "dog" / "00.png"))
    assert (data.test.x[3, 0].numpy() == expected).all()
    with pytest.raises(DataError, match=r"data\.test_size: .* has its own test data"):
        load(tmp_path, test_size=2)


def test_splits_without_classes_and_without_a_test(tmp_path):
    for i in range(8):
        picture(tmp_path / "train" / f"{i}.png")
    picture(tmp_path / "val" / "0.png")
    data = load(tmp_path, test_size=2)
    assert (len(data.train), len(data.test), len(data.validation)) == (6, 2, 1)
    assert data.train.y is None
    shutil.rmtree(tmp_path / "val")
    assert (whole(load(tmp_path)), load(tmp_path).classes) == (8, ())  # train alone is all there is, and no class


def test_what_cannot_be_told_apart_is_asked_for(tmp_path):
    for name in ("train", "test"):
        classes(tmp_path / name, 2)
    classes(tmp_path / "test", 1, ("eel",))
    assert load(tmp_path, "only the test split has the classes eel").classes == ("cat", "dog", "eel")
    picture(tmp_path / "stray.png")
    load(tmp_path, "pictures beside the folders of splits are left out (1): stray.png", "only the test split has")
    classes(tmp_path, 1, ("extra",))
    with pytest.raises(DataError, match="holds test, train beside extra; move the others away"):
        load(tmp_path)
    shutil.rmtree(tmp_path / "extra")
    classes(tmp_path / "Train", 1)
    with pytest.raises(DataError, match="several folders of one split: Train, test, train; keep one"):
        load(tmp_path)


def test_a_class_may_be_called_train(tmp_path):
    assert load(classes(tmp_path, names=("car", "train"))).classes == ("car", "train")


# ------------------------------------------------------------------------------------------------- kinds of pictures


def test_a_photo_is_turned_upright(tmp_path):
    how = Image.Exif()
    how[0x0112] = 6  # to be turned by 90 degrees
    for i in range(3):
        picture(tmp_path / f"{i}.jpg", size=(4, 8), exif=how)
    assert load(tmp_path).shape == (1, 8, 4)


def test_cmyk_and_palettes_become_rgb_and_transparent_pixels_white(tmp_path):
    Image.new("CMYK", (3, 2), (0, 255, 255, 0)).save(tmp_path / "0.jpg")
    Image.new("RGBA", (3, 2), (9, 9, 9, 0)).save(tmp_path / "1.png")
    Image.new("RGB", (3, 2), (0, 0, 255)).convert("P").save(tmp_path / "2.png")
    x = read_folder(tmp_path, None).x["all"]
    assert x.shape == (3, 3, 2, 3)
    assert np.abs(x[0, :, 0, 0].astype(int) - [255, 0, 0]).max() < 4
    assert x[1].min() == 255
    assert x[2, :, 0, 0].tolist() == [0, 0, 255]


@pytest.mark.parametrize("suffix", ["gif", "tiff", "webp", "png"])
def test_the_first_of_several_frames_is_taken_and_told(tmp_path, suffix):
    frames = [Image.fromarray(np.full((4, 5, 3), 60 * k, np.uint8)) for k in range(1, 4)]
    how = {"lossless": True} if suffix == "webp" else {}
    frames[0].save(tmp_path / f"0.{suffix}", save_all=True, append_images=frames[1:], **how)
    frames[0].save(tmp_path / "1.png")
    told = f"of pictures with several frames or pages the first is taken (1): 0.{suffix} (3)"
    data = load(tmp_path, told)
    assert set(data.train.x.unique().tolist() + data.test.x.unique().tolist()) == {60}


def test_twelve_bits_in_sixteen_are_told(tmp_path):
    for i in range(3):
        Image.fromarray(RNG.integers(0, 4096, (5, 6)).astype(np.uint16)).save(tmp_path / f"{i}.png")
    load(tmp_path, "pictures of 16 bits are divided by 65535, and these go up to 40")
    Image.fromarray(np.full((5, 6), 65535, np.uint16)).save(tmp_path / "3.png")
    load(tmp_path)


# ------------------------------------------------------------------------------------------------- hostile pictures


def test_only_the_formats_of_the_table_are_opened(tmp_path):
    picture(tmp_path / "0.png")
    content = io.BytesIO()
    Image.new("RGB", (6, 5)).save(content, "DDS")
    (tmp_path / "1.png").write_bytes(content.getvalue())
    with pytest.raises(DataError, match=r"1\.png: cannot be read as an image"):
        load(tmp_path)


def test_a_picture_too_large_is_refused_before_it_is_decoded(tmp_path, monkeypatch):
    Image.new("1", (13_300, 13_300)).save(tmp_path / "0.png")
    monkeypatch.setattr(pictures, "_eight_bits", lambda image: pytest.fail("decoded"))
    with pytest.raises(DataError, match=r"0\.png: cannot be read as an image \(Image size .* pixels\) exceeds limit"):
        load(tmp_path)


def test_more_pictures_than_the_memory_holds_are_refused_after_the_first(tmp_path, monkeypatch):
    classes(tmp_path)
    monkeypatch.setattr(pictures, "memory", lambda: 1000.0)
    with pytest.raises(DataError, match=r"12 pictures of 6 x 5 need 0 GB, more than the memory.*give data\.size"):
        load(tmp_path)


def mutants(count, seed):
    """Small pictures of every format, each with a few bytes changed, cut or repeated."""
    rng = np.random.default_rng(seed)
    image = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    seeds = []
    for suffix, form in pictures.FORMATS.items():
        content = io.BytesIO()
        image.save(content, form)
        seeds.append((suffix, content.getvalue()))
    for number in range(count):
        suffix, content = seeds[number % len(seeds)]
        mutant = bytearray(content)
        for _ in range(rng.integers(1, 9)):
            place = int(rng.integers(len(mutant)))
            how = rng.integers(4)
            if how == 0:
                mutant[place] = rng.integers(256)
            elif how == 1:
                mutant[place] ^= 1 << int(rng.integers(8))
            elif how == 2:
                del mutant[place : place + int(rng.integers(1, 9))]
            else:
                mutant[place:place] = mutant[place : place + 40]
            mutant = mutant or bytearray(1)
        yield suffix, bytes(mutant)


@pytest.mark.parametrize("count", [300, pytest.param(8000, marks=pytest.mark.slow)])
def test_a_damaged_picture_is_read_or_refused(tmp_path, count):
    outcomes = {"read": 0, "refused": 0}
    for suffix, content in mutants(count, count):
        for file in tmp_path.iterdir():
            file.unlink()
        (tmp_path / f"0{suffix}").write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                read_folder(tmp_path, (4, 4))
            outcomes["read"] += 1
        except VaeError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > count / 20  # neither is the rule
