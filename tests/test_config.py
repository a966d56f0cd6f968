"""The config reader: what it takes, and that every misfit gets its place and the nearest right name."""

import pytest
import yaml

from vae.config import differences, dump, load_yaml, override, plain
from vae.errors import ConfigError
from vae.schema import Part
from vae.training import read_settings

MINIMAL = {"data": {"name": "digits"}, "model": {"latent_dim": 2}}


def write(tmp_path, text):
    path = tmp_path / "x.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_wrong_value_gets_the_nearest_right_one():
    with pytest.raises(ConfigError, match=r"'digitz' is not one of .*; did you mean digits\?"):
        read_settings({**MINIMAL, "data": {"name": "digitz"}})


def test_only_two_settings_are_required():
    settings = read_settings(MINIMAL)
    assert settings.train.epochs == 20
    assert settings.model.encoder == Part(
        "mlp", {"hidden": (512, 256), "activation": "relu", "batch_norm": False, "init": "torch"}
    )
    assert settings.data.options == {"test_size": 297}


def test_the_example_of_the_plan_is_read(tmp_path):
    path = write(
        tmp_path,
        """
data: {name: mnist, pixels: grey, train_size: 60000, validation_size: 0}
model:
  latent_dim: 2
  encoder: {name: mlp, hidden: [512, 256, 128], activation: relu, batch_norm: true}
  decoder: {name: mlp, hidden: [128, 256, 512], activation: relu, batch_norm: true}
  posterior: diagonal_gaussian
  prior: standard_normal
  likelihood: grey_cross_entropy
objective: {name: sgvb_b, num_samples: 1}
modifiers: {beta: 1.0}
train:
  algorithm: aevb
  epochs: 20
  batch_size: 128
  reduction: sum
  optimizer: {name: adam, lr: 1e-3, weight_decay: 1e-5}
  seed: 0
  device: auto
  precision: float32
  compile: auto
""",
    )
    settings = read_settings(path)
    assert settings.train.optimizer.options["lr"] == 1e-3  # PyYAML alone reads a string
    assert settings.train.optimizer.options["weight_decay"] == 1e-5


def test_a_resolved_config_reads_back_as_itself():
    raw = {**MINIMAL, "train": {"optimizer": {"name": "adam", "lr": 1e-3}, "samples": 1e6}}
    settings = read_settings(raw)
    again = read_settings(yaml.safe_load(dump(plain(settings))))
    assert again == settings
    assert settings.train.samples == 1_000_000


def test_overrides_apply_after_the_file():
    raw = {**MINIMAL, "model": {"latent_dim": 2, "likelihood": "bernoulli"}}
    settings = read_settings(
        raw,
        [
            "model.latent_dim=20",
            "model.encoder.hidden=[8, 4]",
            "train.optimizer.lr=2e-2",
            "model.likelihood.name=gaussian",
        ],
    )
    assert settings.model.latent_dim == 20
    assert settings.model.encoder.options["hidden"] == (8, 4)
    assert settings.train.optimizer.options["lr"] == 0.02
    assert settings.model.likelihood.name == "gaussian"
    assert raw["model"]["latent_dim"] == 2  # the caller's config is not changed


def test_a_block_can_be_replaced_whole():
    assert override({"data": {"name": "mnist", "pixels": "grey"}}, ["data={name: digits}"]) == {
        "data": {"name": "digits"}
    }


def test_all_misfits_are_reported_at_once(tmp_path):
    path = write(
        tmp_path, "data: {name: digitz, pixels: gray}\nmodel: {latent_dims: 2}\ntrain: {epochs: 0, seed: true}\n"
    )
    with pytest.raises(ConfigError) as error:
        read_settings(path, ["train.batch_size=-5"])
    lines = str(error.value).splitlines()
    assert f"{path}: model.latent_dims: no such setting; did you mean latent_dim?" in lines
    assert f"{path}: model.latent_dim: this setting is required" in lines
    assert f"{path}: train.epochs: must be at least 1, not 0" in lines
    assert f"{path}: train.seed: expected a whole number, not True" in lines
    assert "--set: train.batch_size: must be at least 1, not -5" in lines
    assert any("data.name: 'digitz' is not one of mnist, fashion_mnist" in line for line in lines)
    assert any("data.pixels: 'gray' is not one of grey, threshold, static, dynamic, levels" in line for line in lines)
    assert len(lines) == 7


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"latent_dim": 20.5}}, "model.latent_dim: expected a whole number, not 20.5"),
        ({"model": {"latent_dim": True}}, "model.latent_dim: expected a whole number, not True"),
        ({"model": {"latent_dim": "2"}}, "model.latent_dim: expected a whole number, not '2'"),
        ({"model": {"latent_dim": None}}, "model.latent_dim: expected a whole number, not nothing"),
        (
            {"data": {"name": "digits"}, "model": {"latent_dim": 2, "likelihood": {}}},
            "model.likelihood: expected one of",
        ),
        ({"model": {"latent_dim": 2, "encoder": "mpl"}}, "model.encoder.name: 'mpl' is not one of mlp, conv"),
        ({"model": {"latent_dim": 2, "encoder": 3}}, "model.encoder: expected one of mlp, conv"),
        (
            {"model": {"latent_dim": 2, "encoder": {"name": "mlp", "channels": [3]}}},
            "model.encoder.channels: no such setting; there are hidden, activation, batch_norm, init",
        ),
        (
            {"model": {"latent_dim": 2, "encoder": {"name": "mlp", "hidden": [3, -1]}}},
            "model.encoder.hidden: must be at least 1, not -1",
        ),
        (
            {"model": {"latent_dim": 2, "encoder": {"name": "mlp", "hidden": 3}}},
            "model.encoder.hidden: expected a list",
        ),
        (
            {"model": {"latent_dim": 2, "encoder": {"name": "mlp", "activation": "rleu"}}},
            "model.encoder.activation: 'rleu' is not one of relu",
        ),
        ({"model": {"latent_dim": 2, "likelihood": {"name": "gaussian", "floor": 0}}}, "must be greater than 0, not 0"),
        ({"train": {"optimizer": {"name": "adam", "betas": [0.9]}}}, "train.optimizer.betas: expected 2 values"),
        ({"train": {"optimizer": {"name": "adam", "lr": ".nan"}}}, "train.optimizer.lr: expected a finite number"),
        ({"train": {"optimizer": {"name": "adam", "lr": float("inf")}}}, "expected a finite number, not inf"),
        ({"train": {"optimizer": "lbfgs"}}, "train.optimizer.name: 'lbfgs' is not one of adam, adamw"),
        ({"train": {"compile": False}}, "train.compile: False is not one of auto, always, never"),
        ({"train": {"epochs": 3, "samples": 4}}, "train: give epochs or samples, not both"),
        ({"train": [1]}, "train: expected a mapping of settings, not [1]"),
        ({"data": {"name": "npz"}}, "data.path: this setting is required"),
        ({"data": {"name": "digits", "path": "x"}}, "data.path: no such setting"),
        ({"data": {}}, "data.name: this setting is required"),
        ({"trian": {}}, "trian: no such setting; did you mean train?"),
        ({"modifiers": {"beta": -1}}, "modifiers.beta: must be at least 0, not -1"),
        (
            {"model": {"latent_dim": 2, "likelihood": {"name": "categorical", "levels": 1}}},
            "model.likelihood.levels: must be at least 2 and at most 65536, not 1",
        ),
        (
            {"model": {"latent_dim": 2, "likelihood": {"name": "negative_binomial", "dispersion": "per_gene"}}},
            "model.likelihood.dispersion: 'per_gene' is not one of per_pixel_and_datum, per_pixel, shared",
        ),
        ({"objective": {"name": "sgvb_b", "num_samples": 0}}, "objective.num_samples: must be at least 1"),
        ({"objective": {"name": "iwae", "num_samples": 0}}, "objective.num_samples: must be at least 1"),
        (
            {"objective": "dreg", "modifiers": {"free_bits": 0.5}},
            "free_bits needs the KL of each latent in closed form, which dreg does not use: set objective.name to sgvb_b",
        ),
    ],
)
def test_a_misfit_is_named(change, message):
    with pytest.raises(ConfigError) as error:
        read_settings({**MINIMAL, **change})
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty"),
        ("# only a comment\n", "the file is empty"),
        ("- a\n- b\n", "a config is a mapping of blocks"),
        ("data: {name: digits\n", "not valid YAML"),
        ("data: {name: digits}\ndata: {name: mnist}\n", "line 2: not valid YAML: the key 'data' is given twice"),
        ("train: {epochs: 1, epochs: 2}\n", "the key 'epochs' is given twice"),
        ("a: !!python/object/apply:os.system [ls]\n", "not valid YAML"),
        ("a: *missing\n", "aliases (*name) are not allowed"),
        ("a: &x [*x]\n", "aliases (*name) are not allowed"),
        ("\tdata: 1\n", "not valid YAML"),
        (b"\xff\xfe\x00binary", "cannot be read as a config file"),
        ("? [a, b]\n: 1\n", "not valid YAML"),
    ],
)
def test_a_bad_file_is_named(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as error:
        load_yaml(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E2", 100.0), ("0.5", 0.5), (".5", 0.5), ("3", 3), ("-2", -2), ("10_000", 10_000), ("1.", 1.0)],
)
def test_numbers_are_read_as_people_write_them(tmp_path, text, value):
    read = load_yaml(write(tmp_path, f"a: {text}\n"))["a"]
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize("text", ["010", "1:30", "0x10", "0b1", "1e", "e3", "1.2.3"])
def test_numbers_of_other_systems_are_words(tmp_path, text):
    assert load_yaml(write(tmp_path, f"a: {text}\n"))["a"] == text


def test_a_misfit_below_an_override_is_blamed_on_it():
    with pytest.raises(ConfigError, match=r"--set: model\.likelihood: expected one of"):
        read_settings(MINIMAL, ["model.likelihood.variance=shared"])


def test_a_missing_file_and_a_folder(tmp_path):
    (tmp_path / "mnist_d2.yaml").touch()
    with pytest.raises(ConfigError, match="no such config file; did you mean .*mnist_d2.yaml"):
        load_yaml(tmp_path / "mnist_d3.yaml")
    with pytest.raises(ConfigError, match="cannot be read as a config file"):
        load_yaml(tmp_path)


@pytest.mark.parametrize(
    "assignment", ["train.epochs", "=3", "train..epochs=3", "train.epochs.x=3", "train.epochs=[", ""]
)
def test_a_bad_override_is_named(assignment):
    with pytest.raises(ConfigError, match="--set"):
        read_settings({**MINIMAL, "train": {"epochs": 3}}, [assignment])


def test_differences_are_dotted_keys():
    assert differences({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 3}) == ["a.c", "d", "e"]
