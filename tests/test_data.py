"""Data sets: splits, pixels, kinds, the user's own files; and every misfit of a file by name."""

import io
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

import vae
from tests.oracles import z_score
from vae.data import DATASETS, PIXELS, Loader, Resident, files, kind_of
from vae.errors import ConfigError, DataError, UsageError
from vae.randomness import Streams
from vae.training.run import train
from vae.training.settings import read_settings

CPU = torch.device("cpu")
RNG = np.random.default_rng(0)
GREYS = RNG.integers(0, 256, (30, 6, 7), dtype=np.uint8)


def images(source, epoch, streams):
    return torch.cat([batch.x for batch in source.epoch(epoch, 0, streams)])


def npz(tmp_path, **arrays):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    return str(path)


# ------------------------------------------------------------------------------------------------- splits


def test_digits_need_nothing_and_split_without_overlap():
    data = vae.load_data("digits")
    assert data.shape == DATASETS["digits"].shape
    assert (len(data.train), len(data.test)) == (1500, 297)
    assert data.kind == "grey"
    assert data.train.images().max() == 1
    whole = torch.cat([data.train.x, data.test.x]).flatten(1)
    assert len({row.numpy().tobytes() for row in whole}) == len(whole)  # no image is in both
    assert torch.equal(vae.load_data("digits").train.x, data.train.x)
    assert not torch.equal(vae.load_data("digits", seed=1).train.x, data.train.x)


@pytest.mark.parametrize("train_from", ["start", "end"])
def test_sizes_and_order(tmp_path, train_from):
    x = np.arange(40, dtype=np.float32).reshape(20, 2)
    path = npz(tmp_path, x_train=x, x_test=x[:3], y_train=np.arange(20))
    data = vae.load_data("npz", path=path, train_size=11, validation_size=4, train_from=train_from)
    rows = slice(0, 11) if train_from == "start" else slice(9, 20)
    held = slice(11, 15) if train_from == "start" else slice(5, 9)
    assert torch.equal(data.train.x, torch.from_numpy(x[rows]))
    assert torch.equal(data.train.index, torch.arange(20)[rows])
    assert torch.equal(data.train.y, torch.arange(20)[rows])
    assert torch.equal(data.validation.x, torch.from_numpy(x[held]))
    assert torch.equal(data.validation.index, torch.arange(20)[held])


def test_without_a_size_validation_comes_off_the_training_split(tmp_path):
    path = npz(tmp_path, x_train=GREYS, x_test=GREYS[:4])
    data = vae.load_data("npz", path=path, validation_size=7)
    assert (len(data.train), len(data.validation), len(data.test)) == (23, 7, 4)
    assert not set(data.train.index.tolist()) & set(data.validation.index.tolist())


@pytest.mark.parametrize(
    "sizes", [{"train_size": 31}, {"validation_size": 30}, {"train_size": 25, "validation_size": 6}]
)
def test_sizes_that_do_not_fit(tmp_path, sizes):
    with pytest.raises(DataError, match="do not fit into the 30 data"):
        vae.load_data("npz", path=npz(tmp_path, x_train=GREYS, x_test=GREYS), **sizes)


def test_x_alone_is_split_by_the_seed(tmp_path):
    path = npz(tmp_path, x=GREYS, y=np.arange(30))
    data = vae.load_data("npz", path=path)
    assert (len(data.train), len(data.test)) == (27, 3)
    for split in (data.train, data.test):  # images keep their labels
        assert torch.equal(split.x[:, 0], torch.from_numpy(GREYS[split.y.numpy()]))
    assert len(vae.load_data("npz", path=path, test_size=8).test) == 8


@pytest.mark.parametrize(
    ("array", "shape", "kind"),
    [
        (GREYS, (1, 6, 7), "grey"),
        (GREYS.reshape(30, 42), (42,), "grey"),
        (np.stack([GREYS] * 3, 1), (3, 6, 7), "grey"),
        (GREYS > 100, (1, 6, 7), "binary"),
        ((GREYS > 100).astype(np.float32), (1, 6, 7), "binary"),
        (GREYS / 255.0, (1, 6, 7), "grey"),
        (GREYS / 100.0, (1, 6, 7), "real"),
        (GREYS.astype(np.int64), (1, 6, 7), "counts"),
        (GREYS.reshape(30, 42).astype(np.uint16), (42,), "counts"),
        (GREYS.astype(np.float32), (1, 6, 7), "counts"),
        ((GREYS > 100).astype(np.int64), (1, 6, 7), "binary"),
        (-1.0 * GREYS, (1, 6, 7), "real"),
    ],
)
def test_shapes_and_kinds_of_own_arrays(tmp_path, array, shape, kind):
    data = vae.load_data("npz", path=npz(tmp_path, x_train=array, x_test=array[:5]))
    assert data.shape == shape
    assert data.kind == kind
    assert data.train.images().dtype == torch.float32
    assert data.train.images().shape == (30, *shape)


def test_bytes_stay_bytes_until_they_are_used(tmp_path):
    data = vae.load_data("npz", path=npz(tmp_path, x_train=GREYS, x_test=GREYS))
    assert data.train.x.dtype == torch.uint8
    torch.testing.assert_close(data.train.images()[:, 0], torch.from_numpy(GREYS / 255.0).float())


def test_an_index_is_the_place_in_the_file(tmp_path):
    path = npz(tmp_path, x=GREYS)
    data = vae.load_data("npz", path=path, train_size=20, validation_size=5)
    for split in (data.train, data.validation, data.test):
        assert torch.equal(split.x[:, 0], torch.from_numpy(GREYS[split.index.numpy()]))


# ------------------------------------------------------------------------------------------------- pixels


def test_threshold():
    grey, binary = vae.load_data("digits"), vae.load_data("digits", pixels="threshold")
    assert torch.equal(binary.train.images(), (grey.train.images() > 0.5).float())
    assert binary.kind == "binary"


def test_static_pixels_are_fixed_by_seed_and_index():
    static = vae.load_data("digits", pixels="static")
    assert torch.equal(static.train.x, vae.load_data("digits", pixels="static").train.x)
    some = vae.load_data("digits", pixels="static", train_size=100, train_from="end")
    assert torch.equal(some.train.x, static.train.x[-100:])  # the same draw in another selection
    grey = vae.load_data("digits")
    residual = (static.train.images() - grey.train.images()).double().flatten()
    assert abs(z_score(residual, 0)) < 4.4  # E[x] = intensity; false alarms 1e-5
    assert set(static.train.x.unique().tolist()) == {0, 1}


def test_static_pixels_of_the_same_place_in_two_splits_are_drawn_apart(tmp_path):
    """Greys of one half; false alarms at a rate of 1e-12, that of 42 equal pixels in one of 5 data."""
    halves = np.full((5, 6, 7), 0.5, dtype=np.float32)
    data = vae.load_data("npz", path=npz(tmp_path, x_train=halves, x_test=halves), pixels="static")
    assert torch.equal(data.train.index, data.test.index)
    assert (data.train.x != data.test.x).flatten(1).any(1).all()


def test_dynamic_pixels_are_drawn_anew_for_training_and_fixed_for_evaluation():
    data = vae.load_data("digits", pixels="dynamic", validation_size=200)
    assert data.kind == "binary"
    source, streams = Resident(data.train, 500, 0, CPU, torch.float32), Streams(0, CPU)
    epochs = [images(source, 0, streams) for _ in range(2)]
    assert not torch.equal(epochs[0], epochs[1])
    assert set(epochs[0].unique().tolist()) == {0.0, 1.0}
    grey = Resident(vae.load_data("digits", validation_size=200).train, 500, 0, CPU, torch.float32)
    order = grey.expand(images(grey, 0, streams))
    assert abs(z_score((epochs[0] - order).double().flatten(), 0)) < 4.4
    for name in ("train", "validation", "test"):
        assert torch.equal(data.evaluation_split(name).images(), data.evaluation_split(name).images())
        assert kind_of(data.evaluation_split(name)) == "binary"
    static = vae.load_data("digits", pixels="static", validation_size=200)
    assert torch.equal(static.test.x, data.test.x)
    assert torch.equal(static.train.x, data.evaluation_split("train").x)


def test_the_first_data_of_a_split_are_drawn_alone_and_the_same(monkeypatch):
    data = vae.load_data("digits", pixels="dynamic", validation_size=200)
    whole = {name: data.evaluation_split(name) for name in ("train", "validation", "test")}
    drawn, real = [], PIXELS["dynamic"]
    monkeypatch.setitem(PIXELS, "dynamic", lambda images, *more: (drawn.append(len(images)), real(images, *more))[1])
    for name, split in whole.items():
        first = data.evaluation_split(name, 7)
        assert torch.equal(first.x, split.x[:7])
        assert torch.equal(first.index, split.index[:7])
        assert torch.equal(first.y, split.y[:7])
        assert len(data.evaluation_split(name, None)) == len(split)
    assert drawn == [7, 1300]  # the others stand still since they were read


def test_real_values_are_not_binarized(tmp_path):
    path = npz(tmp_path, x_train=GREYS / 100.0, x_test=GREYS / 100.0)
    with pytest.raises(DataError, match=r"data\.pixels: static binarizes intensities on \[0, 1\].*lie on \[0, 2\.5"):
        vae.load_data("npz", path=path, pixels="static")


@pytest.mark.parametrize("pixels", ["grey", "threshold", "static", "levels"])
def test_bytes_of_a_users_file_are_on_the_scale_of_the_runs_data(tmp_path, pixels):
    data = vae.load_data("digits", pixels=pixels)
    grey = vae.load_data("digits").test
    path = npz(tmp_path, x=grey.x.numpy())  # the bytes that digits are made of, 0 to 16
    own = vae.data.read_user_split(path, data.shape, data.settings)
    if pixels != "static":  # whose draws depend on the place in the file
        assert torch.equal(own.images(), data.test.images())
    assert own.images().mean().item() == pytest.approx(data.test.images().mean().item(), abs=0.02)


def test_bytes_above_the_scale_of_the_runs_data_are_refused(tmp_path):
    path, settings = npz(tmp_path, x=np.full((2, 8, 8), 17, np.uint8)), vae.load_data("digits").settings
    sentence = (
        r"own\.npz: x: has bytes up to 17, but those that the model was trained on go up to 16; .*as floats on \[0, 1\]"
    )
    with pytest.raises(DataError, match=sentence):
        vae.data.read_user_split(path, (1, 8, 8), settings)
    with pytest.raises(DataError, match=r"x: bytes are divided by 16, but these are 0 and 1 only"):
        vae.data.read_user_split(npz(tmp_path, x=np.eye(8, dtype=np.uint8)[None]), (1, 8, 8), settings)


def test_levels_are_the_grey_levels_as_discrete_data(tmp_path):
    grey, levels = vae.load_data("digits"), vae.load_data("digits", pixels="levels", validation_size=9)
    assert levels.kind == "levels"
    assert torch.equal(levels.test.images(), grey.test.images())
    assert torch.equal(levels.evaluation_split("validation").x, grey.train.x[-9:])
    assert torch.equal(levels.test.values[:, 0], torch.arange(17).double() / 16)
    for array, wrong in ((GREYS / 100.0, r"\[0, 2\.5"), (GREYS.astype(np.int64), r"\[0, 255\]")):
        path = npz(tmp_path, x=array)
        with pytest.raises(DataError, match=rf"data\.pixels: levels keeps grey levels on \[0, 1\].*lie on {wrong}"):
            vae.load_data("npz", path=path, pixels="levels")
    path = npz(tmp_path, x=GREYS)
    own = vae.data.read_user_split(path, (1, 6, 7), vae.load_data("npz", path=path, pixels="levels").settings)
    assert torch.equal(own.x[:, 0], torch.from_numpy(GREYS))


def test_bytes_are_divided_by_256_if_asked(tmp_path):
    path = npz(tmp_path, x=GREYS)
    data = vae.load_data("npz", path=path, pixels="grey_256", test_size=5, validation_size=3)
    assert data.kind == "grey"
    for split in (data.train, data.evaluation_split("validation"), data.test):
        assert torch.equal(split.images()[:, 0], torch.from_numpy(GREYS)[split.index] / 256)
    own = vae.data.read_user_split(path, data.shape, data.settings)
    assert torch.equal(own.images()[:, 0], torch.from_numpy(GREYS) / 256)
    sentence = r"data\.pixels: grey_256 is of bytes on 0\.\.255, and .* has none; use pixels: grey"
    for name, options in (("digits", {}), ("npz", {"path": npz(tmp_path, x=GREYS / 255)})):
        with pytest.raises(DataError, match=sentence):
            vae.load_data(name, pixels="grey_256", **options)


# ------------------------------------------------------------------------------------------------- order


@pytest.mark.parametrize(("n", "batch_size"), [(17, 5), (3, 8), (6, 1), (6, 6)])
def test_every_datum_once_an_epoch_and_any_minibatch_from_its_number(tmp_path, n, batch_size):
    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    split = vae.load_data("npz", path=npz(tmp_path, x_train=x, x_test=x)).train
    source, streams = Resident(split, batch_size, 3, CPU, torch.float32), Streams(0, CPU)
    first, second = ([batch.x for batch in source.epoch(epoch, 0, streams)] for epoch in (0, 1))
    assert len(first) == source.num_batches == -(-n // batch_size)
    for batches in (first, second):
        assert torch.equal(torch.cat(batches)[:, 0].sort().values, torch.from_numpy(x[:, 0]))
    if n > 3:
        assert not torch.equal(torch.cat(first), torch.cat(second))
    later = [batch.x for batch in source.epoch(0, 1, streams)]
    assert all(torch.equal(a, b) for a, b in zip(later, first[1:], strict=True))


def test_a_minibatch_holds_the_labels_of_its_data():
    data = vae.Data.from_arrays(np.arange(14, dtype=np.float32).reshape(7, 2), np.arange(7) * 10, test_size=2)
    source, streams = Resident(data.train, 3, 0, CPU, torch.float32), Streams(0, CPU)
    for batch in source.epoch(0, 0, streams):
        assert torch.equal(batch.y, (5 * batch.x[:, 0]).long())
    x, y = torch.rand(4, 3), torch.arange(4)
    pairs = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=2)
    assert [batch.y.tolist() for batch in Loader(pairs, (3,), "real", CPU, torch.float32).epoch(0, 0, streams)] == [
        [0, 1],
        [2, 3],
    ]
    alone = torch.utils.data.DataLoader(x, batch_size=2)
    assert all(batch.y is None for batch in Loader(alone, (3,), "real", CPU, torch.float32).epoch(0, 0, streams))


def test_a_loader_must_give_floats():
    bytes_ = torch.utils.data.DataLoader(torch.zeros(4, 3, dtype=torch.uint8), batch_size=2)
    with pytest.raises(UsageError, match="must give tensors of floats"):
        list(Loader(bytes_, (3,), "real", CPU, torch.float32).epoch(0, 0, Streams(0, CPU)))
    off = torch.utils.data.DataLoader(torch.rand(4, 3), batch_size=2)
    with pytest.raises(UsageError, match=r"the likelihood's support is levels_17: 0, 1/16, 2/16, \.\.\., 1"):
        list(Loader(off, (3,), "levels_17", CPU, torch.float32).epoch(0, 0, Streams(0, CPU)))
    with pytest.raises(UsageError, match="must have a length"):
        Loader(iter([]), (3,), "real", CPU, torch.float32)


# ------------------------------------------------------------------------------------------------- bad files


def test_settings_of_data_are_checked():
    with pytest.raises(ConfigError, match="'digit' is not one of mnist"):
        vae.load_data("digit")
    with pytest.raises(ConfigError, match="pixel: no such setting; did you mean pixels"):
        vae.load_data("digits", pixel="grey")


OBJECTS = np.array([{"a": 1}], dtype=object)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"images": GREYS}, "holds images; it needs x_train and x_test, or x alone"),
        ({"x_train": GREYS}, "holds x_train; it needs x_train and x_test"),
        ({"x": OBJECTS}, "cannot be read as an .npz file of plain arrays"),
        ({"x": GREYS[0, 0]}, r"has shape \(7,\)"),
        ({"x": np.float32(3)}, r"has shape \(\)"),
        ({"x": np.zeros((0, 4), np.float32)}, "none of them 0"),
        (
            {"x": -GREYS.astype(np.int64)},
            r"is int64 on \[-255, 0\]; whole numbers are counts.*grey levels 0..255 as uint8",
        ),
        ({"x": 2**24 + GREYS.astype(np.int64)}, "what float32 holds"),
        ({"x": np.array([["a", "b"]])}, "save grey levels"),
        ({"x": GREYS.astype(complex)}, "is complex128"),
        ({"x": np.full((4, 3), np.nan)}, "datum 0 has a value that is not finite"),
        ({"x": np.full((4, 3), 1e300)}, "datum 0 has a value that is not finite"),
        ({"x": (GREYS > 9).astype(np.uint8)}, "these are 0 and 1 only"),
        ({"x": np.zeros((5, 32, 32, 3), np.uint8)}, "channels last"),
        ({"x": GREYS, "y": np.arange(29)}, "30 data and labels of shape"),
        ({"x": GREYS, "y": np.ones(30) * 1j}, "labels are whole numbers"),
        ({"x_train": GREYS, "x_test": GREYS[:, :5]}, "a datum must have the same shape"),
        ({"x_train": GREYS, "x_test": GREYS / 255.0}, "a datum must have the same shape and type"),
        ({"x": GREYS[:1]}, "leave nothing to train on"),
    ],
)
def test_bad_arrays_are_named(tmp_path, arrays, message):
    with pytest.raises(DataError, match=message) as error:
        vae.load_data("npz", path=npz(tmp_path, **arrays))
    assert "own.npz" in str(error.value) or "test_size" in str(error.value)
    given = {name.removesuffix("_train"): array for name, array in arrays.items()}
    if given.keys() <= {"x", "y", "x_test"} and arrays.keys() != {"x_train"} and given["x"] is not OBJECTS:
        with pytest.raises(DataError, match=message) as error:  # in memory, with the same sentence
            vae.Data.from_arrays(**given)
        assert "from_arrays" in str(error.value) or "test_size" in str(error.value)


@pytest.mark.parametrize("own_test", [False, True])
def test_arrays_in_memory_are_read_as_those_of_a_file(tmp_path, own_test):
    y = np.arange(30) % 3
    if own_test:
        path, given = npz(tmp_path, x_train=GREYS, y_train=y, x_test=GREYS[:9]), {"x_test": torch.from_numpy(GREYS[:9])}
    else:
        path, given = npz(tmp_path, x=GREYS, y=y), {}
    how = {"validation_size": 4, "pixels": "static", "seed": 5}
    mine = GREYS.copy()
    ours, theirs = vae.Data.from_arrays(mine, y, **given, **how), vae.load_data("npz", path=path, **how)
    mine[:] = 0  # the data are a copy
    assert (ours.shape, ours.kind) == (theirs.shape, theirs.kind)
    assert ours.sha256() == theirs.sha256()
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(ours, split).x, getattr(theirs, split).x)
        assert torch.equal(getattr(ours, split).index, getattr(theirs, split).index)
    assert vae.Data.from_arrays(GREYS, y + 1, **given, **how).sha256() != ours.sha256()  # labels are data too


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": [[1.0, 2.0], [3.0]]}, "x is not an array: its rows differ in length"),
        ({"x": OBJECTS}, r"from_arrays: x: has shape \(1,\)"),
        ({"x": GREYS, "y_test": [1]}, "from_arrays: holds y_test without x_test"),
        ({"x": GREYS, "x_test": GREYS, "test_size": 3}, "from_arrays has its own test data; leave test_size out"),
        ({"x": GREYS, "test_sise": 3}, "from_arrays: test_sise: no such setting; did you mean test_size"),
        ({"x": GREYS, "validation_size": 40}, "do not fit into the 27 data"),
    ],
)
def test_what_from_arrays_cannot_use_is_named(given, message):
    with pytest.raises((DataError, ConfigError), match=message):
        vae.Data.from_arrays(**given)


@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "text", "one array", "bad member", "folder"])
def test_bad_npz_files_are_named(tmp_path, how):
    path = tmp_path / "own.npz"
    buffer = io.BytesIO()
    np.savez(buffer, x=GREYS)
    if how == "empty":
        path.touch()
    elif how == "truncated":
        path.write_bytes(buffer.getvalue()[:-100])
    elif how == "text":
        path.write_text("hello")
    elif how == "one array":
        np.save(path.open("wb"), GREYS)
    elif how == "bad member":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x.npy", b"no array")
    elif how == "folder":
        path.mkdir()
    with pytest.raises(DataError, match=r"own\.npz"):
        vae.load_data("npz", path=str(path))


def test_a_pickle_in_an_npz_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (print, ("boom",))

    np.savez(tmp_path / "own.npz", x=np.array([Bomb()], dtype=object))
    with pytest.raises(DataError, match="plain arrays"):
        vae.load_data("npz", path=str(tmp_path / "own.npz"))


# ------------------------------------------------------------------------------------------------- folders


def folder(tmp_path, sizes=((5, 6),) * 12, mode="L"):
    for i, size in enumerate(sizes):
        place = tmp_path / "images" / ("a" if i % 2 else "b") / f"{i:02}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(RNG.integers(0, 256, (*size, 3), dtype=np.uint8)).convert(mode).save(place)
    return str(tmp_path / "images")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("1", 1)])
def test_a_folder_of_images(tmp_path, mode, channels):
    data = vae.load_data("folder", path=folder(tmp_path, mode=mode), test_size=2)
    assert data.shape == (channels, 5, 6)
    assert data.classes == ("a", "b")
    assert len(data.train) == 10
    assert set(data.train.y.tolist()) == {0, 1}


def test_sixteen_bits_are_scaled_and_pixels_without_a_range_refused(tmp_path):
    levels = np.linspace(0, 65535, 30).astype(np.uint16).reshape(5, 6)
    for i in range(12):
        Image.fromarray(levels).save(tmp_path / f"{i}.png")
    data = vae.load_data("folder", path=str(tmp_path))
    assert data.shape == (1, 5, 6)
    np.testing.assert_allclose(data.train.images()[0, 0].numpy(), levels / 65535, atol=1 / 255)
    Image.fromarray(levels.astype(np.float32)).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff: .*pixels of mode F have no stated range"):
        vae.load_data("folder", path=str(tmp_path))


def test_pictures_stand_upright_and_transparent_pixels_are_white(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    for i in range(12):
        Image.new("RGBA", (6, 5), (9, 9, 9, 0)).save(tmp_path / f"{i}.png", exif=exif)
    data = vae.load_data("folder", path=str(tmp_path))
    assert data.shape == (3, 6, 5)
    assert (data.train.images() == 1).all()


def test_labels_of_the_wrong_name_are_not_dropped_silently(tmp_path):
    path = npz(tmp_path, x_train=GREYS, x_test=GREYS, y=np.arange(30))
    with pytest.raises(DataError, match="name it y_train, y_test or y_val"):
        vae.load_data("npz", path=path)


def test_images_are_resized(tmp_path):
    path = folder(tmp_path, sizes=((5, 6), (9, 4)) * 6)
    assert vae.load_data("folder", path=path, size=8).shape == (1, 8, 8)
    assert vae.load_data("folder", path=path, size=(4, 7)).shape == (1, 4, 7)
    with pytest.raises(DataError, match=r"its size differs.*data\.size"):
        vae.load_data("folder", path=path)


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        vae.load_data("folder", path=str(tmp_path / "nothing"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no images in this folder"):
        vae.load_data("folder", path=str(tmp_path / "empty"))
    path = folder(tmp_path)
    (tmp_path / "images" / "a" / "broken.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"broken\.png: cannot be read as an image"):
        vae.load_data("folder", path=path)


# ------------------------------------------------------------------------------------------------- the sets of torchvision


def test_a_missing_set_is_named_and_leaves_nothing(tmp_path, monkeypatch):
    def offline(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(files.torchvision_datasets().MNIST, "download", offline)
    with pytest.raises(
        DataError, match=r"MNIST is not there and could not be downloaded \(no route to host\).*VAE_DATA"
    ):
        vae.load_data("mnist", root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_download_that_breaks_off_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    def half(self):
        files.Path(self.raw_folder).mkdir(parents=True)
        for file in files.MNIST.files:
            (files.Path(self.root) / file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(files.torchvision_datasets().MNIST, "download", half)
    with pytest.raises(KeyboardInterrupt):
        vae.load_data("mnist", root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_torchvision_that_cannot_be_imported_is_a_sentence(monkeypatch):
    """A CPU build of torch beside a CUDA build of torchvision fails with a RuntimeError."""
    import builtins

    real = builtins.__import__

    def broken(name, *args, **kwargs):
        if name.startswith("torchvision"):
            raise RuntimeError("operator torchvision::nms does not exist")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", broken)
    with pytest.raises(
        DataError, match="install the torchvision build that matches torch.*digits, frey_face, npz, folder"
    ):
        files.torchvision_datasets()


def test_svhn_is_read_in_its_own_format(tmp_path, monkeypatch):
    from scipy.io import savemat

    svhn = files.torchvision_datasets().SVHN
    x = RNG.integers(0, 256, (32, 32, 3, 7), dtype=np.uint8)
    for split in ("train", "test"):
        savemat(tmp_path / f"{split}_32x32.mat", {"X": x, "y": np.array([[1, 2, 3, 4, 5, 6, 10]]).T})
    with pytest.raises(DataError, match="SVHN cannot be read"):  # these are not the published files
        vae.load_data("svhn", root=str(tmp_path))
    monkeypatch.setattr(svhn, "_check_integrity", lambda self: True)
    data = vae.load_data("svhn", root=str(tmp_path))
    assert data.shape == DATASETS["svhn"].shape
    assert data.train.y.tolist() == [1, 2, 3, 4, 5, 6, 0]
    assert torch.equal(data.train.x[3], torch.from_numpy(x[..., 3].transpose(2, 0, 1).copy()))
    raw = {"data": {"name": "svhn", "root": str(tmp_path)}, "train": {"epochs": 1, "batch_size": 4}}
    networks = {name: {"name": "conv", "channels": [2]} for name in ("encoder", "decoder")}
    run = train(read_settings({**raw, "model": {"latent_dim": 3, **networks}}), None, verbose=False)
    assert run.steps == 2


def test_arrays_in_the_data_root_stand_for_a_published_set(tmp_path):
    x = RNG.integers(0, 256, (5, 3, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "cifar10.npz", x_train=x[:3], y_train=np.arange(3), x_test=x[3:], y_test=np.arange(2))
    data = vae.load_data("cifar10", root=str(tmp_path))
    assert torch.equal(data.test.x, torch.from_numpy(x[3:]))
    assert data.classes[0] == "airplane"
    np.savez(tmp_path / "cifar10.npz", x_train=x[:3, :1], x_test=x[3:, :1])
    with pytest.raises(DataError, match=r"cifar10\.npz: holds data of shape \(1, 32, 32\), and CIFAR10 has"):
        vae.load_data("cifar10", root=str(tmp_path))


def test_cifar10_is_read_in_its_own_format(tmp_path, monkeypatch):
    import pickle

    import torchvision.datasets.cifar as cifar

    folder = tmp_path / cifar.CIFAR10.base_folder
    folder.mkdir()
    x = RNG.integers(0, 256, (4, 3, 32, 32), dtype=np.uint8)
    names = [name for name, _ in cifar.CIFAR10.train_list + cifar.CIFAR10.test_list]
    for name in names:
        (folder / name).write_bytes(pickle.dumps({"data": x.reshape(4, -1), "labels": [3, 1, 4, 1]}))
    (folder / cifar.CIFAR10.meta["filename"]).write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    with pytest.raises(DataError, match="CIFAR10 cannot be read"):  # these are not the published files
        vae.load_data("cifar10", root=str(tmp_path))
    monkeypatch.setattr(cifar, "check_integrity", lambda *_: True)
    data = vae.load_data("cifar10", root=str(tmp_path))
    assert data.shape == DATASETS["cifar10"].shape
    assert (len(data.train), len(data.test)) == (20, 4)
    assert torch.equal(data.test.x, torch.from_numpy(x))
    assert data.test.y.tolist() == [3, 1, 4, 1]


def test_frey_faces_that_are_not_there_or_not_they(tmp_path):
    from scipy.io import savemat

    with pytest.raises(DataError, match=r"frey_rawface\.mat: no such file.*Roweis"):
        vae.load_data("frey_face", root=str(tmp_path))
    path = tmp_path / "FreyFace" / "frey_rawface.mat"
    path.parent.mkdir()
    path.write_bytes(b"MATLAB")
    with pytest.raises(DataError, match="cannot be read as a MATLAB file"):
        vae.load_data("frey_face", root=str(tmp_path))
    savemat(path, {"ff": np.zeros((560, 1965), np.uint8)})
    with pytest.raises(DataError, match="the array is not that of the Frey faces"):
        vae.load_data("frey_face", root=str(tmp_path))


def test_every_set_has_a_test_or_is_one_of_torchvisions():
    assert DATASETS.keys() == {
        "mnist",
        "fashion_mnist",
        "cifar10",
        "svhn",
        "frey_face",
        "digits",
        "npz",
        "csv",
        "folder",
        "li",
        "arrays",
        "loader",
    }
