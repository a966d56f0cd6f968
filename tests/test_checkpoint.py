"""A checkpoint is one safetensors file: whole or refused, by name, without running anything."""

import contextlib
import json
import os
import pickle
import shutil
import warnings

import numpy as np
import pytest
import torch
from safetensors import safe_open

import vae
from vae.errors import CheckpointError, UsageError, VaeError
from vae.training import checkpoint
from vae.training.loading import load_run
from vae.training.run_state import RunState

TENSORS = {
    "a.weight": torch.randn(3, 4),
    "b": torch.tensor(3),
    "c": torch.zeros(0, 2),
    "d": torch.arange(5, dtype=torch.uint8),
}
VALUES = {"step": 7, "progress": {"epoch": 1, "best": None, "names": ["x", "ü"]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "x"
    data = vae.load_data("digits", pixels="static", train_size=200)
    model = small()
    vae.fit(model, data, epochs=1, out=path, verbose=False)
    return path


def small(latent_dim=2, width=16):
    shape = (1, 8, 8)
    encoder = vae.mlp_encoder(shape, 2 * latent_dim, hidden=(width,), batch_norm=True)
    decoder = vae.mlp_decoder(latent_dim, shape, hidden=(width,))
    return vae.VAE(encoder, decoder, vae.Bernoulli(shape))


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "c.safetensors"
    checkpoint.write(path, TENSORS, VALUES)
    tensors, values = checkpoint.read(path)
    assert values == VALUES
    assert tensors.keys() == TENSORS.keys()
    for name in TENSORS:
        assert tensors[name].dtype == TENSORS[name].dtype
        assert torch.equal(tensors[name], TENSORS[name])
    assert [p.name for p in tmp_path.iterdir()] == ["c.safetensors"]  # no temporary file is left


def test_equal_states_give_equal_files(tmp_path):
    for name in ("one", "two"):
        checkpoint.write(tmp_path / name, TENSORS, VALUES)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_checkpoint_is_plain_safetensors_with_one_metadata_key(run):
    with safe_open(run / "checkpoints" / "last.safetensors", "pt") as file:
        assert file.metadata().keys() == {"vae"}
        record = json.loads(file.metadata()["vae"])
        assert record["format"] == checkpoint.FORMAT == 4
        assert {"model.encoder.layers.1.weight", "optimizer.0.exp_avg", "streams.noise"} <= set(file.keys())


def test_views_and_shared_tensors_are_written(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    checkpoint.write(tmp_path / "c", {"t": base.T, "same": base, "row": base[1]}, {})
    assert torch.equal(checkpoint.read(tmp_path / "c")[0]["t"], base.T)


def test_a_write_that_fails_leaves_the_file_before(tmp_path, monkeypatch):
    path = tmp_path / "c"
    checkpoint.write(path, TENSORS, VALUES)
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match=r"c: cannot be written: No space left.*the last good checkpoint is .*/c"):
        checkpoint.write(path, {"a": torch.ones(9)}, {})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["c"]


def test_every_flipped_byte_is_found(tmp_path):
    """Every byte of a small checkpoint: names, shapes, padding, JSON, digest, tensors."""
    path = tmp_path / "c"
    checkpoint.write(path, {"w": torch.randn(2, 3), "n": torch.tensor(4)}, {"step": 1})
    whole = path.read_bytes()
    for place in range(len(whole)):
        for mask in (0x01, 0x80, 0xFF):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
            with pytest.raises(CheckpointError, match="c: "):
                checkpoint.read(path)
    for blank in (b"\t", b"\n"):  # white space for white space, in the padding of the header
        end = 8 + int.from_bytes(whole[:8], "little")
        if whole[end - 1 : end] == b" ":
            path.write_bytes(whole[: end - 1] + blank + whole[end:])
            with pytest.raises(CheckpointError):
                checkpoint.read(path)


def test_flips_at_random_places_of_a_real_one(run, tmp_path):
    whole = (run / "checkpoints" / "last.safetensors").read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "c"
    for place in rng.integers(0, len(whole), 60):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << rng.integers(8))]) + whole[place + 1 :])
        with pytest.raises(CheckpointError):
            checkpoint.read(path)


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 200, 5000, -1])
def test_a_file_cut_short_is_named(run, tmp_path, length):
    path = tmp_path / "c"
    path.write_bytes((run / "checkpoints" / "last.safetensors").read_bytes()[:length])
    with pytest.raises(CheckpointError, match="c: "):
        checkpoint.read(path)


def test_what_is_no_checkpoint_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        checkpoint.read(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.read(tmp_path)
    foreign = tmp_path / "foreign"
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2)}, foreign)
    with pytest.raises(CheckpointError, match="not a whole checkpoint of this library"):
        checkpoint.read(foreign)


def test_opening_a_pickle_runs_nothing(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "boom"), "w"))

    (tmp_path / "c").write_bytes(pickle.dumps(Bomb()))
    torch.save(Bomb(), tmp_path / "d")
    for name in "cd":
        with pytest.raises(CheckpointError):
            checkpoint.read(tmp_path / name)
    assert not (tmp_path / "boom").exists()


def test_another_format_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "FORMAT", 5)
    checkpoint.write(tmp_path / "c", TENSORS, VALUES)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="is of checkpoint format 5, this version reads 4; train it again"):
        checkpoint.read(tmp_path / "c")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: small(latent_dim=3), r"of another model: .* has shape \(\d+.*\) in it"),
        (lambda: small(width=8), "has shape"),
        (
            lambda: vae.VAE(
                vae.mlp_encoder((1, 8, 8), 4, hidden=(16,)),
                vae.mlp_decoder(2, (1, 8, 8), hidden=(16,)),
                vae.Bernoulli((1, 8, 8)),
            ),
            r"it (holds|lacks) encoder\.layers",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused_by_name(run, other, message):
    path = run / "checkpoints" / "last.safetensors"
    model = other()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message):
        checkpoint.load_model(model, checkpoint.read(path)[0], path)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_run_opens_from_its_checkpoint_alone(run):
    model = vae.load(run)
    assert not model.training
    assert model.latent_dim == 2
    opened = load_run(run)
    assert (opened.checkpoint, opened.step) == ("last", 2)
    with pytest.raises(CheckpointError, match="has no checkpoint best, only last"):
        vae.load(run, checkpoint="best")
    with pytest.raises(UsageError, match="no such run directory"):
        vae.load(run / "nothing")
    with pytest.raises(UsageError, match="is not a run directory"):
        vae.load(run / "checkpoints")


def test_the_directory_says_what_made_it(run):
    assert {p.name for p in run.iterdir()} >= {"config.yaml", "environment.json", "metrics.jsonl", "checkpoints"}
    environment = json.loads((run / "environment.json").read_text())
    assert environment.keys() >= {"vae", "torch", "python", "device", "threads", "commit"}


# ------------------------------------------------------------------------------------------------- hostile files


def with_header(content, change):
    """A checkpoint with another header, whose length is right."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change(header)
    text = json.dumps(header).encode() if not isinstance(header.get("raw"), bytes) else header["raw"]
    return len(text).to_bytes(8, "little") + text + content[8 + size :]


def metadata(text):
    return lambda header: header["__metadata__"].update(vae=text)


@pytest.mark.parametrize(
    "change",
    [
        metadata("[" * 100_000 + "]" * 100_000),
        metadata(json.dumps({"format": checkpoint.FORMAT, "sha256": "0", "values": "\ud800"})),
        metadata(json.dumps({"format": checkpoint.FORMAT, "sha256": "0", "values": 3})),
        metadata("null"),
        lambda header: header.update(raw=b'{"__metadata__":' + b"[" * 100_000),
    ],
)
def test_metadata_that_no_library_wrote_are_refused(run, tmp_path, change):
    path = tmp_path / "c"
    path.write_bytes(with_header((run / "checkpoints" / "last.safetensors").read_bytes(), change))
    for read in (checkpoint.read, checkpoint.read_values):
        with pytest.raises(CheckpointError, match="not a whole checkpoint of this library"):
            read(path)


FOREIGN = [None, [], {}, "x", -1, 1e308, [None], [[]], {"a": None}, [10**12], True, "\udcfc"]


@pytest.mark.parametrize("key", sorted(RunState.VALUES))
@pytest.mark.parametrize("value", FOREIGN, ids=map(repr, FOREIGN))
def test_values_of_another_type_under_a_right_digest_are_refused(run, tmp_path, key, value):
    """Opened and resumed: an error of this library, or no error where the value is a possible one."""
    copy = tmp_path / "x"
    shutil.copytree(run, copy)
    file = copy / "checkpoints" / "last.safetensors"
    tensors, values = checkpoint.read(file)
    checkpoint.write(file, tensors, {**values, key: value})
    with contextlib.suppress(VaeError):
        vae.load(copy)
    data = vae.load_data("digits", pixels="static", train_size=200)
    with warnings.catch_warnings(), contextlib.suppress(VaeError):
        warnings.simplefilter("ignore")
        vae.fit(small(), data, epochs=1, out=copy, resume=True, verbose=False)
    if not isinstance(value, RunState.VALUES[key]):
        with pytest.raises(CheckpointError, match=f"{key} of another type"):
            vae.load(copy)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("checkpoints/last.safetensors", "is not a regular file"),
        ("metrics.jsonl", "is not a regular file"),
        ("environment.json", "holds other files and is not a run"),
        ("config.yaml", "cannot be read as a config file: is not a regular file"),
    ],
)
def test_a_pipe_in_place_of_a_file_of_a_run_does_not_hang(run, tmp_path, name, sentence):
    copy = tmp_path / "x"
    shutil.copytree(run, copy)
    (copy / name).unlink()
    os.mkfifo(copy / name)
    data = vae.load_data("digits", pixels="static", train_size=200)
    how = {"epochs": 1, "out": copy, "resume": name != "environment.json", "verbose": False}
    with pytest.raises((VaeError, OSError), match=sentence):
        vae.load(copy) if name == "config.yaml" else vae.fit(small(), data, **how)


def test_a_header_is_no_longer_than_its_file(tmp_path):
    path = tmp_path / "c"
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    for read in (checkpoint.read, checkpoint.read_values):
        with pytest.raises(CheckpointError):
            read(path)


@pytest.mark.parametrize("count", [300, pytest.param(6000, marks=pytest.mark.slow)])
def test_a_damaged_checkpoint_is_refused(run, tmp_path, count):
    rng, path = np.random.default_rng(count), tmp_path / "c"
    content = (run / "checkpoints" / "last.safetensors").read_bytes()
    header = 8 + int.from_bytes(content[:8], "little")
    for number in range(count):
        mutant = bytearray(content)
        place = int(rng.integers(header if number % 2 else len(content)))
        if number % 3:
            mutant[place] ^= 1 << int(rng.integers(8))
        else:
            del mutant[place : place + int(rng.integers(1, 50))]
        path.write_bytes(mutant)
        with pytest.raises(CheckpointError):
            checkpoint.read(path, RunState.VALUES)
        with contextlib.suppress(CheckpointError):
            checkpoint.read_values(path)
