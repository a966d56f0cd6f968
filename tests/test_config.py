"""The config reader: what it takes, and that every misfit gets its place and the nearest right name."""

import json
import random
import time
from pathlib import Path

import pytest
import yaml

from vae.config import differences, dump, flatten, load_yaml, override, plain
from vae.errors import ConfigError, VaeError
from vae.schema import Part
from vae.training import read_settings

CONFIGS = Path(__file__).parent.parent / "configs"
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
    assert any(
        "data.pixels: 'gray' is not one of grey, grey_256, threshold, static, dynamic, levels" in line for line in lines
    )
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


# ------------------------------------------------------------------------------------------------- hostile text

WORDS = [
    "1e3", "010", "1:30", "1_0", ".5", "0x1f", "yes", "No", "null", "~", "", " ", "2020-01-01", "<<", "=", "!!int", "*a",
    "&b", "%", "@", "- a", "a: b", "#x", "'q'", '"', "m\udcfcll", "日本", "\x1b[2J", "\x85", "\ufeff", "1" * 60, "-.inf",
]  # fmt: skip


@pytest.mark.parametrize("word", WORDS)
def test_any_text_survives_being_written_and_read(tmp_path, word):
    settings = plain(read_settings({"data": {"name": "npz", "path": word, "root": word}, "model": {"latent_dim": 2}}))
    file = tmp_path / "c.yaml"
    file.write_text(dump(settings))
    assert plain(read_settings(file)) == settings
    assert yaml.safe_load(file.read_text())["data"]["path"] == word  # also for other readers
    again = [f"{key}={json.dumps(value)}" for key, value in flatten(settings).items()]  # as a sweep resumes a cell
    assert plain(read_settings({"data": {"name": "digits"}, "model": {"latent_dim": 9}}, again)) == settings


@pytest.mark.parametrize("value", ["1e3", "7", "true", "0.5"])
def test_what_yaml_did_not_read_as_text_is_to_be_quoted(value):
    raw = {"data": {"name": "npz"}, "model": {"latent_dim": 2}}
    with pytest.raises(ConfigError, match=r"--set: data\.path: expected a word, not .*; put it in quotes if it is one"):
        read_settings(raw, [f"data.path={value}"])
    assert read_settings(raw, [f"data.path='{value}'"]).data.options["path"] == value


@pytest.mark.parametrize(
    "text",
    [
        "!!timestamp foo", "!!int ''", "!!bool foo", "!!float '" + "1:" * 300 + "1'", "!!python/object:os.system x", "! x",
        "!!null {a: b}", "!!set {a}", "!!binary '*'",
    ],
)  # fmt: skip
def test_tags_are_refused_with_their_line(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(f"model: {{latent_dim: 2}}\ndata: {text}\n")
    with pytest.raises(ConfigError, match=r"c\.yaml: line 2: not valid YAML: tags \(!!name\) are not allowed"):
        read_settings(file)
    with pytest.raises(ConfigError, match=r"--set data=.*tags \(!!name\) are not allowed"):
        read_settings({}, [f"data={text}"])


@pytest.mark.parametrize(
    "number", ["1" * 310, "1" * 5000, "-" + "9" * 60_000 + "x", "1" * 60_000 + ".", "1" * 400 + "e1"]
)
def test_long_numbers_are_words_and_cost_no_time(number):
    start = time.monotonic()
    with pytest.raises(ConfigError, match=r"model\.latent_dim: expected a whole number, not '-?[19]+") as error:
        read_settings({"data": {"name": "digits"}}, [f"model.latent_dim={number}"])
    assert time.monotonic() - start < 1
    assert len(str(error.value)) < 400
    with pytest.raises(ConfigError, match="expected a finite number"):
        read_settings({"data": {"name": "digits"}, "model": {"latent_dim": 2}, "modifiers": {"beta": 10**400}})


def test_control_characters_of_a_key_are_escaped(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text('data: {name: digits}\nmodel: {latent_dim: 2, "a\\e[2J\\nb": 1}\n')
    with pytest.raises(ConfigError, match=r"model\.a\\x1b\[2J\\nb: no such setting"):
        read_settings(file)
    with pytest.raises(ConfigError, match=r"--set \\x1b\[2J: expected KEY=VALUE"):
        read_settings({}, ["\x1b[2J"])


PIECES = ["!!int ", "!", "&a ", "*a", "<<: ", "? ", "{", "}", "[", "]", ": ", "- ", "#", "'", '"', "|\n", ">\n", "%", "1" * 400,
          "1e", ".inf", "\t", "\n", "\x07", "\udcfc", "1:1:1", "---\n", "...", "=", "~", "0x", "日", "\\", ","]  # fmt: skip


@pytest.mark.parametrize("count", [300, pytest.param(8000, marks=pytest.mark.slow)])
def test_a_damaged_config_is_read_or_refused(tmp_path, count):
    rng = random.Random(count)
    seeds = [file.read_text() for file in sorted(CONFIGS.glob("*.yaml"))]
    outcomes, file = {"read": 0, "refused": 0}, tmp_path / "c.yaml"
    for number in range(count):
        text = seeds[number % len(seeds)]
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(len(text))
            text = (
                text[:place] + rng.choice([*PIECES, "", chr(rng.randrange(32, 127))]) + text[place + rng.randrange(4) :]
            )
        file.write_bytes(text.encode("utf-8", "surrogateescape"))
        start = time.monotonic()
        try:
            read_settings(file)
            read_settings(MINIMAL, [f"model={text[-60:]}"])
            outcomes["read"] += 1
        except VaeError:
            outcomes["refused"] += 1
        assert time.monotonic() - start < 1
    assert outcomes["refused"] > count / 4
