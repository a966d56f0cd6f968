"""A user's own arrays: what they are taken as, what is asked for, and what is told; nothing is guessed in silence."""

import contextlib
import os
import warnings
import zipfile

import numpy as np
import pytest
import torch

import vae
from vae.commands import evaluate, train
from vae.data import files, outliers, warn_of_range
from vae.errors import ConfigError, DataError, DataWarning, UsageError, VaeError
from vae.training.checks import check
from vae.training.run import train as train_run
from vae.training.settings import read_settings

RNG = np.random.default_rng(3)
UNIT = RNG.random((60, 1, 8, 8)).astype(np.float32)
WHOLE = RNG.integers(0, 256, (60, 64))
LABELS = RNG.integers(0, 3, 60)


def npz(tmp_path, **arrays):
    path = tmp_path / "own.npz"
    np.savez(path, **arrays)
    return str(path)


def config(path, **model):
    networks = {"encoder": {"hidden": [6]}, "decoder": {"hidden": [6]}, "likelihood": None}
    return {
        "data": {"name": "npz", "path": path},
        "model": {"latent_dim": 2, **networks, **model},
        "train": {"epochs": 1, "batch_size": 16},
    }


def with_one(x, place, value):
    x = x.copy()
    x[place] = value
    return x


@contextlib.contextmanager
def told(*texts):
    """The block warns of exactly these."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield
    found = [str(w.message) for w in seen if issubclass(w.category, DataWarning)]
    assert len(found) == len(texts), found
    for text, message in zip(texts, found, strict=True):
        assert text in message


# ------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (WHOLE.astype(np.float32).clip(0, 255), r"x: whole numbers on \[0, 255\] \(float32\), grey levels or counts"),
        (WHOLE, r"\(int64\), grey levels or counts; if they are grey levels, save them as uint8: x.astype\('uint8'\)"),
        (WHOLE.astype(np.uint16) * 257, r"on \[0, 65535\] \(uint16\), grey levels or counts; .*divide them by 65535"),
        (RNG.integers(0, 17, (60, 8, 8)), r"on \[0, 16\] \(int64\), grey levels or counts"),  # pictures, whatever the top
        (RNG.integers(0, 4096, (60, 1, 8, 8)).astype(np.float64), r"\[0, 4095\] \(float64\), grey levels or counts"),
        (
            with_one(UNIT, (7, 0, 3, 4), np.nextafter(np.float32(1), np.float32(2))),
            r"x: 1 of 3840 values just outside of 0 to 1, the first 1\.0000001 at \(7, 0, 3, 4\); .*x\.clip\(0, 1\)",
        ),
        (with_one(UNIT, (9, 0, 0, 0), -1e-7), r"the first -0\.0000001 at \(9, 0, 0, 0\)"),
        (with_one((UNIT > 0.5) * 1.0, (7, 0, 3, 3), 0.9999999), r"just outside of 0 or 1, the first 0\.9999999 at"),
        (with_one(RNG.poisson(3, (60, 9)) * 1.0, (2, 1), 2.9999998), r"just outside of 0, 1, 2, \.\.\., the first 2\.9"),
    ],
)  # fmt: skip
def test_a_likelihood_has_to_be_named_where_the_values_are_in_doubt(tmp_path, x, words):
    path = npz(tmp_path, x=x)
    with pytest.raises(ConfigError, match=words) as error:
        train_run(read_settings(config(path)), None, verbose=False)
    assert "name a likelihood, such as model.likelihood=" in str(error.value)
    named = str(error.value).rpartition("=")[2]
    run = train_run(read_settings(config(path, likelihood=named)), None, verbose=False)
    assert np.isfinite(run.history[-1]["elbo"])  # what is named is trained on as it is


@pytest.mark.parametrize(
    ("x", "kind"),
    [
        (RNG.poisson(3, (60, 9)), "counts"),
        (RNG.integers(0, 256, (60, 9)) * 1e-5, "grey"),  # all of it near 0
        (np.c_[UNIT.reshape(60, -1)[:, :3], 5e-5 * RNG.standard_normal((60, 4))], "real"),  # many values, and not a few
        (RNG.standard_normal((60, 9)), "real"),
        (WHOLE.astype(np.uint8), "grey"),
        (UNIT, "grey"),
        (RNG.integers(0, 2, (60, 8, 8)), "binary"),
    ],
)
def test_values_without_a_doubt(x, kind):
    data = vae.Data.from_arrays(x)
    assert (data.kind, data.doubt) == (kind, None)


def test_a_refusal_names_range_and_mend(tmp_path):
    path = npz(tmp_path, x=WHOLE.astype(np.float32))
    for likelihood in ("bernoulli", "grey_cross_entropy"):
        with pytest.raises(ConfigError, match=r"own\.npz are counts, on \[0, 255\].*save them as uint8"):
            train_run(read_settings(config(path, likelihood=likelihood)), None, verbose=False)
    path = npz(tmp_path, x=with_one(UNIT, (7, 0, 3, 4), 1.0000001))
    with pytest.raises(ConfigError, match=r"on \[.*, 1\.00000012\].*the first 1\.0000001 at .*x\.clip\(0, 1\)"):
        train_run(read_settings(config(path, likelihood="bernoulli")), None, verbose=False)
    with pytest.raises(DataError, match=r"data\.pixels: static .* 1\.00000012\]; x: 1 of 3840 .*x\.clip\(0, 1\)"):
        vae.load_data("npz", path=path, pixels="static")


def test_bytes_that_stay_far_below_their_scale_are_told(tmp_path):
    levels = RNG.integers(0, 17, (60, 8, 8)).astype(np.uint8)
    with told("x: bytes are divided by 255, and these go up to 16 only; if that is the largest level, save them as"):
        vae.load_data("npz", path=npz(tmp_path, x=levels))
    with told():
        vae.load_data("npz", path=npz(tmp_path, x=WHOLE.astype(np.uint8)))


# ------------------------------------------------------------------------------------------------- shapes


@pytest.mark.parametrize(
    ("shape", "taken"),
    [
        ((60, 16, 16, 4), "channels last"),
        ((60, 16, 12, 2), "channels last"),
        ((60, 32, 32, 3), "channels last"),
        ((60, 28, 28, 1), "channels last"),
        ((16, 16, 3, 50), "(H, W, C, N)"),
        ((28, 20, 1, 300), "(H, W, C, N)"),
        ((16, 16, 200), "(H, W, N)"),
        ((28, 20, 1965), "(H, W, N)"),
        ((100, 64, 300), (1, 64, 300)),
        ((60, 4, 16, 16), (4, 16, 16)),
        ((60, 16, 4, 4), (16, 4, 4)),  # feature maps
        ((60, 3, 2, 2), (3, 2, 2)),
        ((28, 28, 28), (1, 28, 28)),
        ((60, 16, 16), (1, 16, 16)),
        ((60, 9, 1), (9,)),
        ((60, 1, 9), (9,)),
        ((60, 1, 9, 1), (1, 9, 1)),
    ],
)
def test_layouts(shape, taken):
    x = RNG.random(shape)
    if isinstance(taken, str):
        with pytest.raises(DataError, match=r"looks like .*save it as .*x\.transpose") as error:
            vae.Data.from_arrays(x)
        assert f"looks like {taken}" in str(error.value)
        axes = str(error.value).partition("x.transpose(")[2].partition(")")[0]
        mended = x.transpose([int(axis) for axis in axes.split(",")])
        assert len(vae.Data.from_arrays(mended).train) > 0  # the mends are some
        as_it_is = x[:, None] if x.ndim == 3 else x.reshape(len(x), -1)
        assert len(vae.Data.from_arrays(as_it_is).train) == len(x) - max(1, len(x) // 10)
    else:
        data = vae.Data.from_arrays(x)
        assert data.shape == taken
        assert torch.equal(data.train.x[0].flatten(), torch.from_numpy(x[data.train.index[0]].ravel()).float())


# ------------------------------------------------------------------------------------------------- names and labels


@pytest.mark.parametrize(
    "y",
    [LABELS.astype(np.float32), LABELS[:, None], LABELS.astype(np.uint8), LABELS[:, None] * 1.0, LABELS.astype(np.int8)],
)  # fmt: skip
def test_numbers_that_are_labels(tmp_path, y):
    data = vae.load_data("npz", path=npz(tmp_path, x=UNIT, y=y))
    assert torch.equal(data.train.y, torch.from_numpy(LABELS)[data.train.index])
    assert data.classes == ()


def test_words_and_booleans_are_labels(tmp_path):
    words = np.array(["dog", "cat", "Öl"])[LABELS]
    data = vae.load_data("npz", path=npz(tmp_path, x=UNIT, y=words))
    assert data.classes == ("cat", "dog", "Öl")
    assert [data.classes[k] for k in data.test.y] == words[data.test.index].tolist()
    in_bytes = vae.load_data("npz", path=npz(tmp_path, x=UNIT, y=np.char.encode(words, "utf-8")))
    assert in_bytes.classes == data.classes
    assert torch.equal(in_bytes.train.y, data.train.y)
    # over the splits in one order, though each has some of the words only
    data = vae.Data.from_arrays(UNIT, words, x_test=UNIT[:2], y_test=np.array(["emu", "cat"]))
    assert data.classes == ("cat", "dog", "emu", "Öl")
    assert data.test.y.tolist() == [2, 0]
    assert vae.Data.from_arrays(UNIT, LABELS > 0).train.y.max() == 1
    column = words.astype(object)  # as tables have them
    assert vae.Data.from_arrays(UNIT, column).classes == ("cat", "dog", "Öl")
    assert vae.Data.from_arrays(UNIT.reshape(60, -1).astype(object)).shape == (64,)
    assert vae.Data.from_arrays(UNIT, LABELS, classes=("a", "b", "c")).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (LABELS[:40], r"y: 60 data and labels of shape \(40,\)"),
        (np.zeros((60, 3, 1)), r"y: 60 data and labels of shape \(60, 3, 1\)"),
        (np.full(60, 2**63, np.uint64), r"y: has labels beyond 2\^53"),
        (np.full(60, np.nan), "y: row 0 is not finite"),
        (LABELS.astype("timedelta64[s]"), r"y: is timedelta64\[s\]"),
    ],
)
def test_a_fault_of_the_labels_is_not_blamed_on_the_data(tmp_path, y, words):
    with pytest.raises(DataError, match=rf"own\.npz: {words}"):
        vae.load_data("npz", path=npz(tmp_path, x=UNIT, y=y))
    with pytest.raises(DataError, match=r"own\.npz: y_test: "):
        vae.load_data("npz", path=npz(tmp_path, x_train=UNIT, x_test=UNIT, y_train=LABELS, y_test=y))


@pytest.mark.parametrize("y", [LABELS + 0.5, np.eye(3)[LABELS]])
def test_targets_of_a_regression_are_no_labels_of_a_vae(y):
    model = vae.build({"data": {"name": "digits"}, "model": {"latent_dim": 2}})
    with pytest.raises(
        DataError, match="from_arrays|arrays: y are targets of a regression .*; labels are whole numbers"
    ):
        vae.fit(model, vae.Data.from_arrays(UNIT, y), epochs=1, verbose=False)


def test_timedeltas_are_no_counts(tmp_path):
    with pytest.raises(DataError, match=r"x: is timedelta64\[s\]; save grey levels"):
        vae.load_data("npz", path=npz(tmp_path, x=WHOLE.astype("timedelta64[s]")))


def test_validation_data_of_the_file(tmp_path):
    given = {"x_train": UNIT, "x_test": UNIT[:5], "y_train": LABELS, "y_test": LABELS[:5]}
    for name in ("val", "valid", "validation"):
        path = npz(tmp_path, **given, **{f"x_{name}": UNIT[5:9], f"y_{name}": LABELS[5:9]})
        data = vae.load_data("npz", path=path)
        assert torch.equal(data.validation.x, torch.from_numpy(UNIT[5:9]))
        assert data.validation.y.tolist() == LABELS[5:9].tolist()
        assert len(data.train) == 60
    with pytest.raises(DataError, match=r"data\.validation_size: these data have validation data of their own"):
        vae.load_data("npz", path=path, validation_size=3)
    with pytest.raises(DataError, match="x_train is float32 .* and x_validation is float32"):
        vae.load_data("npz", path=npz(tmp_path, **given, x_val=UNIT[:4, :, :5]))
    data = vae.Data.from_arrays(UNIT, x_val=UNIT[:4])
    assert (len(data.train), len(data.validation), len(data.test)) == (54, 4, 6)
    settings = config(npz(tmp_path, **given, x_val=UNIT[5:9]))
    settings["train"]["patience"] = 1  # needs validation data, from wherever
    train_run(read_settings(settings), None, verbose=False)
    settings["data"]["path"] = npz(tmp_path, **given)
    with pytest.raises(ConfigError, match=r"train\.patience stops early by the validation ELBO"):
        train_run(read_settings(settings), None, verbose=False)


@pytest.mark.parametrize("name", ["x", "y"])
def test_an_array_for_all_beside_those_of_splits_is_asked_for(tmp_path, name):
    given = {"x_train": UNIT, "x_test": UNIT[:5], name: UNIT if name == "x" else LABELS}
    with pytest.raises(
        DataError, match=rf"holds {name} beside x_train and x_test; name it {name}_train, {name}_test or"
    ):
        vae.load_data("npz", path=npz(tmp_path, **given))


@pytest.mark.parametrize("name", ["labels", "Y", "x_tst", "targets"])
def test_arrays_that_are_not_read_are_told(tmp_path, name):
    with told("own.npz: only arrays of certain names are read: x, x_train, x_test, x_val, and the same with y"):
        vae.load_data("npz", path=npz(tmp_path, x=UNIT, **{name: LABELS}))
    with told():
        vae.load_data("npz", path=npz(tmp_path, x=UNIT, y=LABELS))


def test_what_was_taken_how_is_said(tmp_path, capsys):
    file = tmp_path / "c.yaml"
    path = npz(tmp_path, x=RNG.poisson(3, (60, 9)))
    file.write_text(
        f"data: {{name: npz, path: '{path}'}}\nmodel: {{latent_dim: 2, encoder: {{hidden: [6]}}, decoder: {{hidden: [6]}}}}\n"
        "train: {epochs: 1}\n"
    )
    run = tmp_path / "run"
    assert train.main(["--config", str(file), "--out", str(run), "--no-figures"]) == 0
    said = capsys.readouterr().err
    assert f"{path}, counts on [0, " in said
    assert "shape (9,): 54 to train, 0 to validate, 6 to test" in said
    assert "likelihood negative_binomial" in said
    other = tmp_path / "other.npz"
    np.savez(other, x=RNG.poisson(3, (7, 9)))
    assert evaluate.main([str(run), "--data", str(other), "--json"]) == 0
    assert f"{other}: 7 data of shape (9,), counts on [0, " in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- outliers


def far_out(kind):
    rng = np.random.default_rng(0)
    if kind == "incomes":
        return np.exp(2.5 * rng.standard_normal((1000, 8)))
    x = rng.standard_normal((1000, 8))
    x[500] *= 1e4
    return x


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize("kind", ["one_outlier", "incomes"])
def test_outliers_do_not_stop_a_run(tmp_path, kind, batch_norm):
    network = {"name": "mlp", "hidden": [256, 128], "activation": "relu", "batch_norm": batch_norm}
    for seed in (0, 1, 2):
        settings = config(npz(tmp_path, x=far_out(kind)), encoder=network, decoder=network)
        settings["train"] = {"epochs": 2, "seed": seed}
        with told("rows far out, beyond 20 interquartile ranges of a column: "):
            run = train_run(read_settings(settings), tmp_path / f"{seed}", verbose=False)
        assert np.isfinite(run.history[-1]["elbo"])
        loaded = vae.load(tmp_path / f"{seed}")  # what the encoder is given stays with the run
        x = run.data.test.images()
        assert torch.equal(loaded.encode(x), run.model.encode(x))
        assert torch.equal(loaded.standardise.mean, run.data.train.x.double().mean(0).float())


def test_rows_far_out_are_named_by_their_places_in_the_file():
    x = far_out("one_outlier")
    data = vae.Data.from_arrays(x)
    with told("rows far out, beyond 20 interquartile ranges of a column: 500; "):
        check(*plain_run(data))
    assert outliers(x).tolist() == [500]
    x[:, 3] = 0  # a range of 0 says nothing
    x[7, 3] = 5
    assert outliers(x).tolist() == [500]
    x[[3, 4, 5, 6, 8, 9], 0] = 1e6
    assert outliers(x).tolist() == [3, 4, 5, 6, 8, 9, 500]
    data = vae.Data.from_arrays(x, x_test=x[:9])
    with told("of a column: 3, 4, 5, 6, 8 and 2 more; "):
        check(*plain_run(data))


def plain_run(data):
    settings = read_settings(config("x.npz", likelihood="gaussian"))
    model = vae.VAE(vae.mlp_encoder(data.shape, 4, hidden=(6,)), torch.nn.Linear(2, 16), vae.Gaussian(data.shape))
    return settings, data, model


def test_columns_far_from_a_unit_scale_are_told():
    x = RNG.standard_normal((60, 8))
    x[:, 6] *= 1e6
    with told("column 6 has a standard deviation of "):
        check(*plain_run(vae.Data.from_arrays(x)))
    with told():
        check(*plain_run(vae.Data.from_arrays(x / x.std(0))))


def test_data_that_are_all_the_same_are_told(tmp_path):
    with told("own.npz: all training data are the same; there is nothing to learn"):
        train_run(read_settings(config(npz(tmp_path, x=np.full((60, 8), 0.3)))), None, verbose=False)


def test_real_values_reach_the_encoder_standardised():
    x = np.c_[1e6 + 3 * RNG.standard_normal((60, 2)), np.full(60, 7.0)]
    data = vae.Data.from_arrays(x)
    seen = []
    encoder = vae.mlp_encoder((3,), 4, hidden=(6,))
    encoder.register_forward_pre_hook(lambda module, given: seen.append(given[0].detach()))
    model = vae.VAE(encoder, torch.nn.Linear(2, 6), vae.Gaussian((3,)))
    vae.fit(model, data, epochs=1, batch_size=60, verbose=False)
    whole = max(seen, key=len)
    torch.testing.assert_close(whole.mean(0), torch.zeros(3), atol=0.05, rtol=0)
    torch.testing.assert_close(whole[:, :2].std(0, correction=0), torch.ones(2), atol=0.05, rtol=0)
    unit = vae.VAE(vae.mlp_encoder((64,), 4, hidden=(6,)), torch.nn.Linear(2, 64), vae.Bernoulli((64,)))
    vae.fit(unit, vae.Data.from_arrays(WHOLE > 99), epochs=1, verbose=False)
    assert unit.standardise is None  # pixels are given as they are


# ------------------------------------------------------------------------------------------------- other data later


@pytest.mark.parametrize(
    ("found", "trained", "count", "warned"),
    [
        ((0.0, 1.0), (-1.0, 1.0), 30, True),  # half of a scale
        ((0.0, 1.0), (-1.0, 1.0), 3, False),  # too few to say
        ((-0.9, 1.0), (-1.0, 1.0), 30, False),
        ((0.0, 1.0), (0.0, 1.0), 30, False),
        ((0.0, 255.0), (0.0, 1.0), 1, True),
        ((-1.0, 1.0), (0.0, 1.0), 1, True),
        ((-3.0, 3.2), (-3.4, 3.1), 30, False),
        ((-0.2, 0.2), (-3.4, 3.1), 30, False),  # the ends are no scale
        ((0.0, 311.0), (0.0, 194.0), 30, False),
        ((0.0, 255.0), (0.0, 1.0), 30, True),
        ((-9.0, 9.0), (-2.4, 3.1), 30, True),
    ],
)
def test_data_on_another_range(found, trained, count, warned):
    with told(*(["the model was trained on"] * warned)):
        warn_of_range(found, trained, "x", count)


def test_the_range_of_the_training_data_stays_with_the_run(tmp_path, capsys):
    x = (2 * UNIT.reshape(60, -1) - 1).clip(-1, 1)
    x[0, :2] = -1, 1
    path = npz(tmp_path, x_train=x, x_test=x[:30])
    run = train_run(read_settings(config(path, likelihood="gaussian")), tmp_path / "run", verbose=False)
    loaded = vae.load(tmp_path / "run")
    assert loaded.data_range == run.model.data_range == (-1.0, 1.0)
    for model in (loaded, run.model):
        with told(
            "x lies on [0",
        ):  # in Python too
            model.encode(UNIT.reshape(60, -1))
        with told():
            model.encode(x)
    np.savez(tmp_path / "unit.npz", x=UNIT.reshape(60, -1))
    assert evaluate.main([str(tmp_path / "run"), "--data", str(tmp_path / "unit.npz")]) == 0
    assert "and the model was trained on [-1, 1]; put it on the same scale" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------- loaders


def test_the_last_minibatch_is_what_the_sampler_gives():
    x = torch.rand(40, 9)
    network = {"hidden": (6,), "batch_norm": True}
    model = vae.VAE(
        vae.mlp_encoder((9,), 4, **network), vae.mlp_decoder(2, (9,), **network), vae.GreyCrossEntropy((9,))
    )
    torch_data = torch.utils.data
    loaders = {
        "subset": torch_data.DataLoader(x, 16, sampler=torch_data.SubsetRandomSampler(range(33))),
        "weighted": torch_data.DataLoader(x, 16, sampler=torch_data.WeightedRandomSampler([1.0] * 40, 17)),
        "batches": torch_data.DataLoader(
            x, batch_sampler=torch_data.BatchSampler(torch_data.SequentialSampler(range(33)), 16, False)
        ),
        "own": torch_data.DataLoader(x, batch_sampler=[[0, 1, 2], [3]]),
    }
    for name, loader in loaders.items():
        with pytest.raises(
            (ConfigError, UsageError), match=r"a single datum.*drop_last=True.*batch_norm: false"
        ) as error:
            vae.fit(model, loader, epochs=1, verbose=False)
        assert ("a minibatch of the DataLoader" in str(error.value)) == (name == "own")
    fine = torch_data.DataLoader(x, 16, sampler=torch_data.SubsetRandomSampler(range(34)))
    run = vae.fit(model, fine, epochs=1, verbose=False)
    assert run.history[-1]["samples"] == 34


# ------------------------------------------------------------------------------------------------- hostile files


def test_only_what_is_needed_is_read_and_no_more_than_memory_holds(tmp_path, monkeypatch):
    path = tmp_path / "own.npz"
    np.savez_compressed(path, x=UNIT, y=LABELS, huge=np.zeros(10**7))
    taken, real = [], np.lib.npyio.NpzFile.__getitem__
    monkeypatch.setattr(
        np.lib.npyio.NpzFile, "__getitem__", lambda self, name: (taken.append(name), real(self, name))[1]
    )
    with told("not huge"):
        vae.load_data("npz", path=str(path))
    assert sorted(taken) == ["x", "y"]
    monkeypatch.setattr(files, "memory", lambda: 1e4)
    with pytest.raises(DataError, match=r"it needs 0 GB, more than the memory of this machine"):
        vae.load_data("npz", path=str(path))


def test_a_header_that_claims_more_than_there_is_is_refused(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 8), }"
    header += b" " * (118 - len(header) - 1) + b"\n"
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    with pytest.raises(DataError, match=r"own\.npz: cannot be read as an \.npz file of plain arrays \("):
        vae.load_data("npz", path=str(tmp_path / "own.npz"))


def test_a_pipe_in_place_of_a_file_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / "own.npz")
    with pytest.raises(DataError, match="is not a regular file"):
        vae.load_data("npz", path=str(tmp_path / "own.npz"))
    for file in files.MNIST.files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(tmp_path / file)
    with pytest.raises(DataError, match="is not a regular file"):
        vae.load_data("mnist", root=str(tmp_path))


def test_names_of_arrays_are_escaped_and_cut(tmp_path):
    with zipfile.ZipFile(tmp_path / "own.npz", "w") as archive:
        archive.writestr("evil\x1b[2J\n.npy", b"")
        archive.writestr("long" * 1000 + ".npy", b"")
        for i in range(30):
            archive.writestr(f"m{i}.npy", b"")
    with pytest.raises(DataError, match="it needs x_train and x_test") as error:
        vae.load_data("npz", path=str(tmp_path / "own.npz"))
    assert "\n" not in str(error.value)
    assert "\x1b" not in str(error.value)
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("count", [300, pytest.param(8000, marks=pytest.mark.slow)])
def test_a_damaged_npz_is_read_or_refused(tmp_path, count):
    rng, path, outcomes = np.random.default_rng(count), tmp_path / "own.npz", {"read": 0, "refused": 0}
    contents = []
    for save in (np.savez, np.savez_compressed):
        save(path, x=UNIT[:12, :, :3, :3], y=LABELS[:12])
        contents.append(path.read_bytes())
    for number in range(count):
        mutant = bytearray(contents[number % 2])
        for _ in range(rng.integers(1, 6)):
            place = int(rng.integers(len(mutant)))
            if rng.integers(3):
                mutant[place] ^= 1 << int(rng.integers(8))
            else:
                del mutant[place : place + int(rng.integers(1, 30))]
        path.write_bytes(mutant)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                vae.load_data("npz", path=str(path))
            outcomes["read"] += 1
        except VaeError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 0
