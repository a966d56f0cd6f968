"""Every setting reaches what it sets, and every command draws and prints what it says.

The parts have their own tests; here the way between a setting and a part is held to account.
"""

import contextlib
import dataclasses
import json
import math
import os
import signal

import numpy as np
import pytest
import torch
import yaml
from torch.optim.adam import adam

import vae
from tests.oracles import numbers
from vae.algorithms import AEVB, OPTIMIZERS, largest_gradient, optimizers
from vae.algorithms.optimizers import optimizer_step
from vae.commands import plot
from vae.commands.base import command
from vae.commands.encode import main as encode
from vae.commands.evaluate import main as evaluate
from vae.commands.train import main as train_command
from vae.data import PIXELS, Data, DataSettings, Split, files, read_user_split
from vae.errors import ConfigError, DataError, UsageError
from vae.evaluation import evaluate_bound, evaluation_line
from vae.files import Log
from vae.training import checkpoint, read_settings, run_directory, run_state
from vae.training.build import build_algorithm, resolve
from vae.training.loading import load_run
from vae.training.run import train
from vae.training.run_directory import acquire, resumed_settings

SHAPE = (1, 8, 8)


def config(**blocks):
    raw = {
        "data": {"name": "digits", "pixels": "static", "train_size": 200, "validation_size": 40},
        "model": {"latent_dim": 2, "encoder": {"hidden": [8]}, "decoder": {"hidden": [8]}},
        "train": {"epochs": 2, "batch_size": 64, "device": "cpu"},
    }
    return {**raw, **{key: {**raw.get(key, {}), **value} for key, value in blocks.items()}}


def metrics(path, split):
    return [x for x in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if x["split"] == split]


# ------------------------------------------------------------------------------------------------- settings to parts


def test_settings_reach_the_algorithm():
    optimizer = {"name": "adam", "weight_decay": 0.1}
    raw = config(
        train={"clip_grad_norm": 0.5, "precision": "bfloat16", "reduction": "sum", "optimizer": optimizer},
        objective={"name": "sgvb_a", "num_samples": 3},
    )
    algorithm = build_algorithm(read_settings(raw), 200, 4)
    state = algorithm.init(vae.build(config()))
    assert (algorithm.clip_grad_norm, algorithm.reduction, algorithm.autocast) == (0.5, "sum", torch.bfloat16)
    assert state.optimizer.param_groups[0]["weight_decay"] == 0.1
    assert algorithm.noises(state, 5)["eps"].shape == (3, 5, 2)  # a draw a datum, L of them
    assert build_algorithm(read_settings(config()), 200, 4).autocast is None


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("adam", {}),
        ("adam", {"weight_decay": 0.1, "betas": (0.8, 0.95), "eps": 1e-3}),
        ("adam", {"amsgrad": True}),
        ("adamw", {"weight_decay": 0.3}),
        ("adagrad", {}),
        ("sgd", {"momentum": 0.9}),
        ("nadam", {}),
    ],
)
def test_a_step_of_an_optimizer_is_torch_s_own_bit_for_bit(name, options, monkeypatch):
    steps = optimizer_step, lambda optimizer: optimizer.step()
    ends, calls = [], []
    monkeypatch.setattr(optimizers, "adam", lambda *args, **how: calls.append(how) or adam(*args, **how))
    for step in steps:
        torch.manual_seed(0)
        layers = [torch.nn.Parameter(torch.randn(shape)) for shape in ((4, 3), (5,), (2,))]  # the last has no gradient
        optimizer = OPTIMIZERS[name](layers, lr=0.05, **options)
        for _ in range(6):
            for layer in layers[:2]:
                layer.grad = torch.randn(layer.shape)
            optimizer.param_groups[0]["lr"] *= 0.9
            step(optimizer)
        ends.append([*layers, *(value for state in optimizer.state.values() for value in state.values())])
    for ours, theirs in zip(*ends, strict=True):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    assert len(calls) == (5 if name in ("adam", "adamw") else 0)  # the first step makes the state


def test_an_optimizer_with_an_option_that_is_not_known_makes_its_own_step(monkeypatch):
    """As a newer torch may have one, which a hand-made call of the fused function would ignore."""
    monkeypatch.setattr(optimizers, "adam", lambda *args, **how: pytest.fail("the option is ignored"))
    layer = torch.nn.Parameter(torch.ones(3))
    optimizer = OPTIMIZERS["adam"]([layer], lr=0.05)
    optimizer.param_groups[0]["cautious"] = True
    for _ in range(2):
        layer.grad = torch.ones(3)
        optimizer_step(optimizer)
    assert optimizer.state[layer]["step"] == 2


def test_every_option_of_torchs_adam_is_known():
    """Else a fused step would be made the slow way without a word."""
    group = AEVB(None, OPTIMIZERS["adam"]).init(torch.nn.Linear(2, 2)).optimizer.param_groups[0]
    assert group.keys() <= optimizers._KNOWN


def test_overrides_reach_settings_too():
    settings = read_settings(config())
    assert vae.build(settings, "model.latent_dim=5").latent_dim == 5
    assert vae.build(settings, ["model.latent_dim=6"]).latent_dim == 6
    assert vae.build(settings).latent_dim == 2


def test_schedules_and_warm_up_count_in_epochs():
    raw = config(train={"schedule": "cosine", "epochs": None, "samples": 1000})
    assert build_algorithm(read_settings(raw), 200, 4).schedule(10) == pytest.approx(0.5)  # half of 5 epochs of 4 steps
    assert build_algorithm(read_settings(config(modifiers={"beta": 2.0, "warm_up": 3})), 1, 7).objective.warm_up == 21


def test_densities_are_float32_under_autocast():
    model = vae.build(config())
    with torch.autocast("cpu", torch.bfloat16):
        assert model.posterior(torch.rand(3, *SHAPE)).mean.dtype == torch.float32
        assert model.likelihood(torch.randn(1, 3, 2)).logits.dtype == torch.float32


def test_samples_of_a_full_gaussian_are_not_rounded_under_autocast():
    q = vae.build(config(model={"posterior": "full_gaussian"})).posterior(torch.rand(3, *SHAPE))
    noise = torch.randn(4, 3, 2)
    expected = q.transform(noise)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(q.transform(noise), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("what", ["order", "noise", "modules"])
def test_the_seed_moves_every_stream(what, monkeypatch):
    def recorded(seed):
        steps, real = [], AEVB.step

        def step(self, state, batch, noise):
            steps.append({"order": batch.x.clone(), "noise": noise["eps"].clone(), "modules": torch.initial_seed()})
            return real(self, state, batch, noise)

        with monkeypatch.context() as patch:
            patch.setattr(AEVB, "step", step)
            train(read_settings(config(train={"seed": seed})), None, verbose=False)
        return steps[0][what]

    one, other, again = recorded(0), recorded(1), recorded(0)
    if what == "modules":
        assert one == again != other
    else:
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


def test_evaluation_comes_at_its_interval_and_at_the_end(tmp_path):
    train(read_settings(config(train={"epochs": 5, "evaluate_every": 2})), tmp_path / "x", verbose=False)
    assert [line["epoch"] for line in metrics(tmp_path / "x", "validation")] == [2, 4, 5]


def test_batch_normalisation_stands_before_the_activation():
    options = {"batch_norm": True}
    for network in (
        vae.mlp_encoder(SHAPE, 4, hidden=(5,), **options),
        vae.conv_encoder(SHAPE, 4, channels=(5,), **options),
    ):
        kinds = [type(layer).__name__ for layer in network.layers if not isinstance(layer, torch.nn.Flatten)]
        assert kinds[1].startswith("BatchNorm")
        assert kinds[2] == "ReLU"


def test_a_learned_variance_starts_at_its_std():
    for variance in ("per_pixel", "shared", "fixed"):
        std = vae.Gaussian((4,), variance=variance, std=0.5)(torch.zeros(1, 1, 4)).std
        assert std.mean().item() == pytest.approx(0.5, abs=1e-4)


def test_prior_samples_have_the_priors_spread():
    """Linear decoder, identity: the standard deviation of 4,000 draws is 1 within 4.5 standard errors."""
    decoder = torch.nn.Linear(2, 2)
    with torch.no_grad():
        decoder.weight.copy_(torch.eye(2))
        decoder.bias.zero_()
    model = vae.VAE(torch.nn.Linear(2, 4), decoder, vae.Gaussian((2,), variance="fixed"))
    assert model.sample(4000).std().item() == pytest.approx(1, abs=4.5 / (2 * 8000) ** 0.5)


# ------------------------------------------------------------------------------------------------- evaluation


def test_noise_of_several_samples_does_not_depend_on_the_batch_size():
    model, split = vae.build(config()), vae.load_data("digits", pixels="static").test.first(20)
    whole = evaluate_bound(model, split, name="test", num_samples=3).elbo
    torch.testing.assert_close(evaluate_bound(model, split, name="test", num_samples=3, batch_size=7).elbo, whole)


class Scaled(torch.nn.Module):
    """Posterior means scale * x_1 and scale * x_2, variances 1."""

    def __init__(self, *scales):
        super().__init__()
        self.scales = torch.tensor(scales)

    def forward(self, x):
        return torch.cat([x[:, : len(self.scales)] * self.scales, torch.zeros(len(x), len(self.scales))], 1)


def test_active_units_go_by_variance_and_the_kl_is_each_dimensions_own():
    model = vae.VAE(Scaled(0.05, 1.0), torch.nn.Linear(2, 4), vae.Gaussian((4,), variance="fixed"))
    x = torch.randn(2000, 4, generator=torch.Generator().manual_seed(0))
    result = evaluate_bound(model, Split(x, None, torch.arange(2000)), name="t")
    assert result.active_units == 1  # 0.05^2 lies below 0.01, and 0.05 above it
    expected = 0.5 * (torch.tensor([0.05, 1.0]) * x[:, :2]).square().mean(0)  # variances of 1: KL = mean^2 / 2
    torch.testing.assert_close(result.kl_per_dimension.float(), expected)


def test_the_test_curve_is_of_the_test_split_at_the_default_seed(tmp_path):
    (tmp_path / "c.yaml").write_text(yaml.dump(config(train={"seed": 3})))
    assert train_command(["--config", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "x")]) == 0
    data = vae.load_data("digits", pixels="static", train_size=200, validation_size=40)
    model = vae.load(tmp_path / "x", checkpoint="last")
    for name, split in (("test", data.test), ("validation", data.validation)):
        expected = evaluate_bound(model, split, name=name).elbo.mean().item()
        assert metrics(tmp_path / "x", name)[-1]["elbo"] == pytest.approx(expected, rel=1e-6)


def test_the_largest_gradient_is_the_largest():
    model = torch.nn.Linear(2, 2)
    model.weight.grad, model.bias.grad = torch.full((2, 2), -7.0), torch.full((2,), 3.0)
    assert largest_gradient(model) == "the largest finite gradient is 7, in weight"
    model.bias.grad = torch.full((2,), float("nan"))
    assert largest_gradient(model).endswith("7, in weight (1 are not finite)")


# ------------------------------------------------------------------------------------------------- runs on disk


def test_a_shape_is_under_the_digest(tmp_path):
    path = tmp_path / "c"
    checkpoint.write(path, {"w": torch.arange(6.0).reshape(2, 3)}, {"step": 1})
    path.write_bytes(path.read_bytes().replace(b'"shape":[2,3]', b'"shape":[3,2]'))
    with pytest.raises(checkpoint.CheckpointError, match="SHA-256"):
        checkpoint.read(path)


def test_best_is_written_before_last_and_metrics_before_both(tmp_path, monkeypatch):
    events = []
    monkeypatch.setattr(Log, "flush", lambda self: events.append("flush"))
    monkeypatch.setattr(checkpoint, "write", lambda path, *_: events.append(path.stem))
    train(read_settings(config(train={"checkpoint_seconds": 0})), tmp_path / "x", verbose=False)
    assert events[:4] == ["flush", "best", "flush", "last"]


def test_metrics_are_flushed_through_a_file_that_is_open_for_writing(tmp_path, monkeypatch):
    """Windows refuses to flush any other."""
    fcntl = pytest.importorskip("fcntl")
    modes = []
    monkeypatch.setattr(os, "fsync", lambda number: modes.append(fcntl.fcntl(number, fcntl.F_GETFL) & os.O_ACCMODE))
    log = Log(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    log.flush()
    assert modes == [os.O_WRONLY]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


def test_a_directory_is_looked_at_again_once_it_is_locked(tmp_path, monkeypatch):
    """Another process may have trained there between the first look and the lock."""
    real = run_directory.lock

    @contextlib.contextmanager
    def late(path):
        (path / "checkpoints").mkdir(parents=True)
        (path / "config.yaml").write_text("{}")
        (path / "environment.json").write_text('{"vae": "0"}')
        with real(path):
            yield

    monkeypatch.setattr(run_directory, "lock", late)
    with pytest.raises(UsageError, match="holds a run already"), acquire(tmp_path / "x", False, False):
        pytest.fail("taken from the other process")


def test_a_folder_of_somebody_elses_gets_no_lock_file(tmp_path):
    (tmp_path / "letter.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files and is not a run"), acquire(tmp_path, False, True):
        pytest.fail("taken")
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_the_values_of_a_checkpoint_are_read_from_its_header_alone(tmp_path, monkeypatch):
    path = tmp_path / "c"
    checkpoint.write(path, {"w": torch.arange(1000.0)}, {"step": 7})
    whole = path.read_bytes()
    path.write_bytes(whole[:-4000])  # the tensors are gone
    assert checkpoint.read_values(path) == {"step": 7}
    with pytest.raises(checkpoint.CheckpointError, match="not a whole checkpoint"):
        checkpoint.read(path)
    path.write_bytes(whole[:20])
    with pytest.raises(checkpoint.CheckpointError, match="not a whole checkpoint"):
        checkpoint.read_values(path)


def test_fit_draws_no_more_pixels_than_it_looks_at(monkeypatch):
    sizes, real = [], PIXELS["dynamic"]
    monkeypatch.setitem(PIXELS, "dynamic", lambda images, *rest: (sizes.append(len(images)), real(images, *rest))[1])
    data = vae.load_data("digits", pixels="dynamic")
    sizes.clear()
    vae.fit(vae.build(config()), data, epochs=1, verbose=False)
    assert sizes == [1000]


def test_an_interrupted_run_is_saved_where_it_stopped(tmp_path, monkeypatch):
    real, count = AEVB.step, [0]

    def step(self, state, batch, noise):
        count[0] += 1
        if count[0] == 6:
            signal.raise_signal(signal.SIGINT)
        return real(self, state, batch, noise)

    monkeypatch.setattr(AEVB, "step", step)
    with pytest.raises(KeyboardInterrupt, match="at step 6"):
        train(read_settings(config()), tmp_path / "x", verbose=False)
    assert load_run(tmp_path / "x", which="last").step == 6


def test_the_claim_on_a_directory_is_held(tmp_path):
    pytest.importorskip("fcntl")
    with (
        acquire(tmp_path / "x", False, False),
        pytest.raises(UsageError, match="another process"),
        acquire(tmp_path / "x", True, False),
    ):
        pass
    with acquire(tmp_path / "x", False, False):  # and given back
        pass


def test_the_fingerprint_covers_all_that_training_sees():
    data = vae.load_data("digits", train_size=100, validation_size=10)
    others = [
        dataclasses.replace(data, validation=dataclasses.replace(data.validation, x=data.validation.x.flip(0))),
        dataclasses.replace(data, train=dataclasses.replace(data.train, scale=255.0)),
        dataclasses.replace(data, train=dataclasses.replace(data.train, x=data.train.x.flatten(1))),
        dataclasses.replace(data, train=dataclasses.replace(data.train, x=data.train.x.flip(0))),
    ]
    assert data.sha256() not in {other.sha256() for other in others}
    test = dataclasses.replace(data.test, x=data.test.x.flip(0))
    assert dataclasses.replace(data, test=test).sha256() == data.sha256()  # it does not see the test split


def test_what_may_change_on_resume_is_paths_device_length_and_how_to_look():
    length = {"train.epochs", "train.samples", "train.evaluate_every", "train.checkpoint_seconds"}
    assert {"data.root", "data.path", "train.device", "train.tensorboard", *length} == run_state.MAY_CHANGE


def test_seconds_go_on_after_a_resume(tmp_path):
    train(read_settings(config()), tmp_path / "x", verbose=False)
    path = tmp_path / "x" / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[-1]["seconds"] = 1000.0
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = train(resumed_settings(tmp_path / "x", ["train.epochs=3"]), tmp_path / "x", resume=True, verbose=False)
    assert run.history[-1]["seconds"] >= 1000


# ------------------------------------------------------------------------------------------------- data


def settings(**options):
    return DataSettings(name="npz", options={}, **options)


def test_a_users_file_is_read_like_the_runs_data(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (9, 8, 8), dtype=np.uint8)
    x[0, 0, 0] = 255
    np.savez(tmp_path / "own.npz", x=x, y=np.arange(9))
    path = tmp_path / "own.npz"
    grey = read_user_split(path, SHAPE, settings())
    assert grey.images().max() == 1
    assert grey.y.tolist() == list(range(9))
    threshold = read_user_split(path, SHAPE, settings(pixels="threshold"))
    assert torch.equal(threshold.images(), (grey.images() > 0.5).float())
    assert set(read_user_split(path, SHAPE, settings(pixels="static")).x.unique().tolist()) == {0, 1}
    np.savez(path, x=np.zeros((3, 4, 16), np.float32))
    with pytest.raises(DataError, match="a datum of x has shape"):  # as many values, in another layout
        read_user_split(path, SHAPE, settings())


@pytest.mark.parametrize("train_from", ["start", "end"])
def test_the_gap_of_the_frey_faces_stands_before_validation_and_test(train_from, monkeypatch):
    monkeypatch.setattr(files, "read_frey", lambda root: np.zeros((1965, 28, 20), np.uint8) + 9)
    data = vae.load_data("frey_face", split="block", validation_size=100, train_size=1000, train_from=train_from)
    assert data.test.index.tolist() == list(range(1500, 1965))
    between = (data.train.index, data.validation.index)
    first, second = between if train_from == "start" else between[::-1]
    assert second.min() - first.max() == 31
    assert data.test.index.min() - max(first.max(), second.max()) >= 31


def test_cifars_axes(monkeypatch, tmp_path):
    raw = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    monkeypatch.setattr(files, "read_torchvision", lambda source, root: [(raw, np.arange(4))] * 2)
    x = vae.load_data("cifar10", root=tmp_path).train.x.numpy()
    assert x[1, 2, 3, 4] == raw[1, 3, 4, 2]


def test_the_kind_is_of_all_splits_and_the_support_is_checked_on_all(tmp_path):
    x = (np.random.default_rng(0).random((40, 64)) > 0.5).astype(np.float32)
    np.savez(tmp_path / "own.npz", x_train=x, x_test=x / 2)
    options = {"name": "npz", "path": str(tmp_path / "own.npz")}
    assert vae.load_data(**options).kind == "grey"
    raw = {**config(model={"likelihood": "bernoulli"}), "data": options}
    with pytest.raises(ConfigError, match="bernoulli needs 0 or 1"):
        train(read_settings(raw), tmp_path / "x", verbose=False)


@pytest.mark.parametrize(
    ("pixels", "likelihood", "options"),
    [
        ("grey", "grey_cross_entropy", {}),
        ("levels", "discretized_logistic", {"levels": 17, "scale": "per_pixel_and_datum"}),
        ("dynamic", "bernoulli", {}),
    ],
)
def test_the_kind_of_the_data_chooses_the_likelihood(pixels, likelihood, options):
    settings, shape, kind = resolve(read_settings(config(data={"pixels": pixels})))
    assert (settings.model.likelihood.name, settings.model.likelihood.options) == (likelihood, options)
    assert kind == vae.load_data("digits", pixels=pixels).kind
    assert shape == SHAPE


def test_bytes_divided_by_256_are_grey():
    raw = config(data={"name": "mnist", "pixels": "grey_256"})
    assert resolve(read_settings(raw))[0].model.likelihood.name == "grey_cross_entropy"


def test_counts_choose_the_negative_binomial(tmp_path):
    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).poisson(3, (40, 7)))
    raw = {**config(), "data": {"name": "npz", "path": str(tmp_path / "own.npz")}}
    assert resolve(read_settings(raw))[0].model.likelihood.name == "negative_binomial"


def own_data(tmp_path, values):
    np.savez(tmp_path / "own.npz", x=np.resize(values, (40, 65)))
    return {"name": "npz", "path": str(tmp_path / "own.npz")}


@pytest.mark.parametrize(
    ("values", "likelihood", "message"),
    [
        (
            [0.0, 0.5],
            {"name": "negative_binomial"},
            r"negative_binomial needs 0, 1, 2, \.\.\., but the data of .*own.npz are grey, on \[0, 0\.5\]; likelihoods that "
            "fit: grey_cross_entropy, gaussian, continuous_bernoulli, categorical, discretized_logistic$",
        ),
        (
            [0, 1, 7],
            {"name": "continuous_bernoulli"},
            r"continuous_bernoulli needs 0 to 1, but the data of .*own.npz are counts, on \[0, 7\]; likelihoods that fit: "
            "gaussian, negative_binomial$",
        ),
        ([0, 7], {"name": "categorical"}, r"categorical needs 0, 1/255, 2/255, \.\.\., 1, but .* are counts"),
        (
            [0.0, 0.3, 1.0],
            {"name": "categorical"},
            r"categorical of 256 levels needs 0, 1/255, 2/255, \.\.\., 1, but the data of .*own.npz contain 0\.3; "
            "model.likelihood.levels=11 fits them",
        ),
        ([0.0, 2**-0.5], {"name": "discretized_logistic"}, "no grid of up to 256 levels fits them"),
    ],
)
def test_data_that_a_likelihood_does_not_fit(tmp_path, values, likelihood, message):
    raw = {**config(model={"likelihood": likelihood}), "data": own_data(tmp_path, values)}
    with pytest.raises(ConfigError, match=message):
        train(read_settings(raw), tmp_path / "x", verbose=False)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("values", "likelihood"),
    [
        ([0.0, 1.0], {"name": "negative_binomial"}),  # counts that happen to be no larger
        ([0.0, 1.0], {"name": "categorical", "levels": 2}),
        ([0.0, 0.3, 1.0], {"name": "categorical", "levels": 11}),
        (np.array([0, 9, 255], np.uint8), {"name": "discretized_logistic"}),
        ([0, 7], {"name": "gaussian"}),
    ],
)
def test_data_that_a_likelihood_fits(tmp_path, values, likelihood):
    raw = config(model={"likelihood": likelihood}, train={"epochs": 1})
    run = train(read_settings({**raw, "data": own_data(tmp_path, values)}), None, verbose=False)
    assert torch.isfinite(run.model.elbo(run.data.test.images())).all()


def test_a_number_of_levels_that_is_not_the_datas_is_named(tmp_path):
    with pytest.raises(ConfigError, match="data of digits contain 0.0625; model.likelihood.levels=17 fits them"):
        train(
            read_settings(config(data={"pixels": "levels"}, model={"likelihood": "categorical"})), None, verbose=False
        )
    model = vae.build(config(data={"pixels": "levels"}))
    with pytest.raises(
        UsageError, match=r"DiscretizedLogistic likelihood is of values 0, 1/16, 2/16, \.\.\., 1; these"
    ):
        model.elbo(torch.full((2, 64), 0.5 / 16))


def test_binary_pixels_drawn_anew_fit_every_likelihood_of_levels():
    raw = config(
        data={"pixels": "dynamic"}, model={"likelihood": {"name": "categorical", "levels": 2}}, train={"epochs": 1}
    )
    run = train(read_settings(raw), None, verbose=False)
    assert run.steps > 0
    assert math.isfinite(run.history[-1]["elbo"])


def test_downloaded_bytes_are_checked_before_they_are_put_in_place(tmp_path, monkeypatch):
    def wrong(self):
        for file in files.MNIST.files:
            path = files.Path(self.root) / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"wrong")

    dataset = files.torchvision_datasets().MNIST
    monkeypatch.setattr(dataset, "download", wrong)
    monkeypatch.setattr(dataset, "_load_data", lambda self: (torch.zeros(1), torch.zeros(1)))
    with pytest.raises(DataError, match="truncated or altered"):
        vae.load_data("mnist", root=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_a_loader_that_drops_its_last_minibatch_is_counted_so():
    from vae.data import Loader

    images = torch.ones(65, *SHAPE)
    loader = torch.utils.data.DataLoader(images, 64, drop_last=True)
    source = Loader(loader, SHAPE, "binary", torch.device("cpu"), torch.float32)
    assert (source.num_data, source.smallest_batch) == (64, 64)
    kept = Loader(torch.utils.data.DataLoader(images, 64), SHAPE, "binary", torch.device("cpu"), torch.float32)
    assert (kept.num_data, kept.smallest_batch) == (65, 1)


# ------------------------------------------------------------------------------------------------- commands


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    path = tmp_path_factory.mktemp("wiring")
    for name, changes in {"d2": {}, "d3": {"model": {"latent_dim": 3}}, "grey": {"data": {"pixels": "grey"}}}.items():
        (path / "c.yaml").write_text(yaml.dump(config(**changes)))
        assert train_command(["--config", str(path / "c.yaml"), "--out", str(path / name)]) == 0
    return path


def printed(capsys, *arguments):
    capsys.readouterr()
    assert evaluate([*map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_evaluates_options_reach_the_evaluation(runs, capsys, tmp_path, monkeypatch):
    plain = printed(capsys, runs / "d2")
    model, test = vae.load(runs / "d2"), vae.load_data("digits", pixels="static").test
    for options, keywords, name in (
        ([], {}, "test"),
        (["--num-samples", 5], {"num_samples": 5}, "test_samples-5"),
        (["--seed", 1], {"seed": 1}, "test_seed-1"),
    ):
        expected = evaluate_bound(model, test, name="test", **keywords).elbo
        record = printed(capsys, runs / "d2", *options)
        assert record["elbo"]["mean"] == pytest.approx(expected.mean().item(), rel=1e-6)
        assert record["elbo"]["stderr"] == pytest.approx(expected.std().item() / 297**0.5, rel=1e-6)
        assert json.loads((runs / "d2" / "evaluations" / f"{name}.json").read_text()) == record
        assert (record == plain) == (not options)
    assert evaluate([str(runs / "d2"), "--save", str(tmp_path / "v.npz")]) == 0
    assert f"{plain['elbo']['stderr']:12.4f}" in capsys.readouterr().out
    assert (np.load(tmp_path / "v.npz")["index"] == test.index.numpy()).all()
    sizes = []
    real = vae.VAE.posterior
    monkeypatch.setattr(vae.VAE, "posterior", lambda self, x: (sizes.append(len(x)), real(self, x))[1])
    printed(capsys, runs / "d2", "--batch-size", 100)
    assert sizes == [100, 100, 97, 100, 100]  # the split, and the 200 training data beside it


@pytest.mark.parametrize(
    ("asked", "key"),
    [
        (["--log-likelihood", "is", "--num-samples", 20], "log_p_x"),
        (["--gaps", "--num-samples", 20], "gaps"),
        (["--self-check", "--num-samples", 5], "self_check"),
        (["--self-check", "--log-likelihood", "quadrature", "--num-samples", 20], "self_check"),
    ],
)
def test_the_batch_size_reaches_every_estimate(asked, key, runs, capsys, monkeypatch):
    from vae.evaluation import annealed, log_likelihood

    sizes, real, schedule = [], log_likelihood.minibatches, annealed.schedule
    monkeypatch.setattr("vae.evaluation.gaps.STEPS", 3)
    monkeypatch.setattr(annealed, "schedule", lambda steps, kind: schedule(5, kind))
    monkeypatch.setattr(
        log_likelihood, "minibatches", lambda model, split, size: (sizes.append(size), real(model, split, size))[1]
    )
    own, given = (printed(capsys, runs / "d2", *asked, "--limit", 7, *more)[key] for more in ([], ["--batch-size", 3]))
    assert 3 not in sizes[: len(sizes) // 2]
    assert sizes[len(sizes) // 2 :] == [3] * (len(sizes) // 2)
    assert means(given) == pytest.approx(means(own), rel=1e-5, abs=1e-4)


def means(record):
    """Every mean of a record, however deep."""
    below = (means(value) for value in record.values() if isinstance(value, dict))
    return [*([record["mean"]] if "mean" in record else []), *(mean for found in below for mean in found)]


def test_evaluate_checks_the_support_of_a_users_file(runs, tmp_path, capsys):
    np.savez(tmp_path / "own.npz", x=np.full((3, 8, 8), 2.5, np.float32))
    assert evaluate([str(runs / "d2"), "--data", str(tmp_path / "own.npz")]) == 2
    assert "bernoulli needs 0 or 1" in capsys.readouterr().err


def test_encoded_samples_are_no_means(runs, tmp_path):
    for more in ([], ["--sample"]):
        assert encode([str(runs / "d2"), "--out", str(tmp_path / f"{len(more)}.npz"), *more]) == 0
    assert (np.load(tmp_path / "0.npz")["z"] != np.load(tmp_path / "1.npz")["z"]).all()


@pytest.fixture
def drawn(monkeypatch):
    """What the commands hand to the figures, by name."""
    seen = {}

    def record(name):
        real = getattr(of_runs, name)

        def call(*given, **named):
            seen.setdefault(name, []).append((given, named))
            return real(*given, **named)

        monkeypatch.setattr(of_runs, name, call)

    from vae.figures import of_runs

    for name in ("curves", "reconstructions", "samples", "manifold", "codes", "tsne"):
        record(name)
    return seen


@pytest.mark.parametrize("name", ["main_reconstructions", "main_samples", "main_manifold", "main_tsne"])
def test_every_plot_of_a_model_is_made_on_the_device_at_hand(name, runs, tmp_path, monkeypatch):
    """The device is one that holds no values: a model gets there, and what it would compute is not asked for."""
    at = []
    monkeypatch.setattr("vae.training.build.choose_device", lambda name: torch.device("meta"))
    monkeypatch.setattr(
        "vae.figures.of_runs.posterior_codes", lambda model, split, **how: seen(at, model, numbers(len(split), 2))
    )
    for method in ("reconstruct", "decode", "sample"):
        monkeypatch.setattr(vae.VAE, method, lambda model, x, **how: seen(at, model, torch.zeros(9, 1, 8, 8)))
    count = ["--limit", "9"] if name == "main_tsne" else ["--count", "3"]
    assert getattr(plot, name)([str(runs / "d2"), "--out", str(tmp_path), *count]) == 0
    assert set(at) == {"meta"}


def seen(at, model, values):
    at.append(model.prior.mean.device.type)
    return values


def test_the_manifold_is_decoded_at_its_grid(runs, tmp_path, drawn):
    from scipy.stats import norm

    assert plot.main_manifold([str(runs / "d2"), "--count", "5", "--range", "3", "--out", str(tmp_path)]) == 0
    model = vae.load(runs / "d2")
    (linear, _), (quantile, _) = drawn["manifold"]
    np.testing.assert_allclose(linear[1], [-3, -1.5, 0, 1.5, 3])
    np.testing.assert_allclose(quantile[1], norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9]))
    for images, grid in ((linear[0], linear[1]), (quantile[0], quantile[1])):
        corners = model.decode(np.array([[grid[0], grid[-1]], [grid[1], grid[-1]], [grid[-1], grid[0]]])).numpy()
        np.testing.assert_allclose(images[[0, 1, -1]], corners, rtol=1e-4, atol=1e-6)


def test_codes_reconstructions_and_samples_are_the_models(runs, tmp_path, drawn):
    model, test = vae.load(runs / "d3"), vae.load_data("digits", pixels="static").test
    out = ["--out", str(tmp_path)]
    assert plot.main_tsne([str(runs / "d3"), "--limit", "60", "--perplexity", "7", "--seed", "5", *out]) == 0
    assert plot.main_tsne([str(runs / "d3"), "--limit", "60", "--sample", *out]) == 0
    (means, _), (sampled, _) = drawn["tsne"]
    np.testing.assert_allclose(means[0], model.encode(test.images()[:60]).numpy(), rtol=1e-5, atol=1e-6)
    assert means[1:] == (7.0, 5)
    assert (sampled[0] != means[0]).all()
    assert plot.main_reconstructions([str(runs / "d3"), "--count", "4", *out]) == 0
    (given, _) = drawn["reconstructions"][0]
    np.testing.assert_allclose(next(iter(given[1].values())), model.reconstruct(test.images()[:4]).numpy(), atol=1e-6)
    assert plot.main_samples([str(runs / "d3"), "--count", "4", "--seed", "5", *out]) == 0
    np.testing.assert_allclose(drawn["samples"][0][0][0], model.sample(4, seed=5).numpy(), atol=1e-6)


def test_curves_say_which_run_is_no_density(runs, tmp_path, drawn, capsys):
    assert plot.main_curves([str(runs / "d2"), str(runs / "grey"), "--out", str(tmp_path)]) == 0
    assert list(drawn["curves"][0][0][0]) == ["d2", "grey (no density)"]
    assert "are not comparable" in capsys.readouterr().err
    assert plot.main_curves([str(runs / "grey"), "--out", str(tmp_path)]) == 0
    assert list(drawn["curves"][1][0][0]) == ["grey (no density)"]


def test_t_sne_is_asked_as_it_is_told(monkeypatch):
    import sklearn.manifold

    from vae import figures

    asked = {}

    class Fake:
        def __init__(self, **keywords):
            asked.update(keywords)

        def fit_transform(self, codes):
            return codes[:, :2]

    monkeypatch.setattr(sklearn.manifold, "TSNE", Fake)
    figures.tsne(np.zeros((9, 3)), 2.5, 11)
    assert (asked["perplexity"], asked["random_state"], asked["n_components"]) == (2.5, 11, 2)


def test_points_names_and_ticks_stand_where_they_belong():
    from vae import figures

    points = np.random.default_rng(0).random((40, 2))
    labels = np.arange(40) % 2
    axes = figures.codes(points, labels, ["a", "b"], ("$z_1$", "$z_2$"), "t").axes[0]
    scatter = axes.collections[0]
    np.testing.assert_allclose(scatter.get_offsets(), points)
    colours = scatter.get_facecolors()
    assert len({tuple(c) for c in colours[::2]}) == len({tuple(c) for c in colours[1::2]}) == 1
    for k, text in enumerate(axes.texts):
        assert text.get_text() == "ab"[k]
        assert tuple(text.get_position()) in {tuple(p) for p in points[labels == k]}
    grid = np.array([-2.0, -1.0, 0.0, 1.0, 2.0])
    axes = figures.manifold(np.zeros((25, 1, 20, 20)), grid, "t").axes[0]
    places = {t.get_text(): t.get_position()[1] for t in axes.get_yticklabels()}
    assert places["2"] < places["0"] < places["-2"]  # rows of an image are counted downwards
    assert places["0"] == pytest.approx(49.5)


def test_signals_become_their_exit_statuses(capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    def terminated(argv):
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()

    assert command(interrupted)() == 130
    assert command(terminated)() == 143


@pytest.mark.parametrize(
    "run",
    [
        lambda argv: torch.empty(10**15),
        lambda argv: np.empty(10**15),
        lambda argv: raising(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore of it.")),
        lambda argv: raising(RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.")),
    ],
)
def test_memory_that_runs_out_is_a_sentence(run, capsys):
    assert command(run)() == 1
    error = capsys.readouterr().err
    assert error.startswith("out of memory: ")
    assert "choose smaller sizes or batches" in error
    assert error.count("\n") == 1


def test_an_error_that_only_speaks_of_memory_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="illegal memory access"):
        command(lambda argv: raising(RuntimeError("CUDA error: an illegal memory access was encountered")))()


def raising(error):
    raise error


def test_observed_lines_are_of_the_split_they_name():
    data = vae.load_data("digits", pixels="static", validation_size=40)
    assert isinstance(data, Data)
    model = vae.build(config())
    values = {name: evaluation_line(model, data, name)["elbo"] for name in ("train", "validation", "test")}
    assert len(set(values.values())) == 3
