"""The trainer: what is logged, when it stops, what it refuses, and that data stay where they belong."""

import dataclasses
import json
import math
import warnings

import pytest
import torch

import vae
from vae.algorithms import AEVB, OPTIMIZERS
from vae.data import Batch, Data
from vae.distributions import has_exact_kl
from vae.errors import ConfigError, PosteriorCollapse, TrainingFailed, UsageError, VaeError
from vae.objectives import OBJECTIVES, EstimatorB, WeightedKL
from vae.posteriors import POSTERIORS
from vae.training import read_settings
from vae.training.checks import check_objective
from vae.training.loading import load_run
from vae.training.run import train

SHAPE = (1, 8, 8)


def config(**changes):
    raw = {
        "data": {"name": "digits", "pixels": "static", "train_size": 200},
        "model": {"latent_dim": 2, "encoder": {"hidden": [12]}, "decoder": {"hidden": [12]}},
        "train": {"epochs": 3, "batch_size": 64, "device": "cpu"},
    }
    for key, value in changes.items():
        raw[key] = {**raw.get(key, {}), **value}
    return raw


def lines(path, split="train"):
    return [x for x in map(json.loads, (path / "metrics.jsonl").read_text().splitlines()) if x["split"] == split]


def go(tmp_path, observe=None, **changes):
    return train(read_settings(config(**changes)), tmp_path / "x", verbose=False, observe=observe)


def test_metrics_hold_what_is_promised(tmp_path):
    go(tmp_path, data={"validation_size": 40})
    train_lines = lines(tmp_path / "x")
    assert [line["epoch"] for line in train_lines] == [1, 2, 3]
    assert [line["step"] for line in train_lines] == [4, 8, 12]  # 200 data in minibatches of 64: the rest is used too
    assert [line["samples"] for line in train_lines] == [200, 400, 600]
    for line in train_lines:
        assert {"elbo", "log_p_x_given_z", "kl", "seconds"} <= line.keys()
        assert line["elbo"] == pytest.approx(line["log_p_x_given_z"] - line["kl"], abs=1e-4)
        assert "objective" not in line  # it is the ELBO
    for line in lines(tmp_path / "x", "validation"):
        assert len(line["kl_per_dimension"]) == 2
        assert sum(line["kl_per_dimension"]) == pytest.approx(line["kl"], rel=1e-6)
        assert line["active_units"] in (0, 1, 2)


def test_training_learns(tmp_path):
    go(tmp_path, train={"epochs": 30, "optimizer": {"name": "adam", "lr": 1e-2}})
    bounds = [line["elbo"] for line in lines(tmp_path / "x")]
    assert bounds[-1] > bounds[0] + 10


def test_with_beta_the_objective_stands_beside_the_elbo(tmp_path):
    go(tmp_path, modifiers={"beta": 4.0})
    for line in lines(tmp_path / "x"):
        assert line["elbo"] == pytest.approx(line["log_p_x_given_z"] - line["kl"], abs=1e-4)
        assert line["objective"] == pytest.approx(line["log_p_x_given_z"] - 4 * line["kl"], abs=1e-4)


@pytest.mark.parametrize("name", ["iwae", "dreg"])
def test_with_importance_weights_the_elbo_stands_beside_the_objective(name, tmp_path):
    """One epoch of one step, so that both are of one model: the tighter bound is the larger."""
    go(tmp_path, objective={"name": name, "num_samples": 5}, train={"epochs": 1, "batch_size": 200})
    (line,) = lines(tmp_path / "x")
    assert line["elbo"] == pytest.approx(line["log_p_x_given_z"] - line["kl"], rel=1e-6)
    assert line["objective"] > line["elbo"] + 0.01
    go(tmp_path / "one", objective={"name": name, "num_samples": 1})
    assert "objective" not in lines(tmp_path / "one" / "x")[0]  # it is the ELBO


def test_with_free_bits_the_elbo_stands_beside_the_objective(tmp_path):
    go(tmp_path, modifiers={"free_bits": 50.0}, train={"epochs": 1, "batch_size": 200})
    (line,) = lines(tmp_path / "x")
    assert line["elbo"] == pytest.approx(line["log_p_x_given_z"] - line["kl"], rel=1e-6)
    assert line["objective"] == pytest.approx(line["log_p_x_given_z"] - 2 * 50.0, rel=1e-6)


BIASED = {
    "stl": ({"name": "stl", "num_samples": 3}, "objective: stl is biased for num_samples > 1; use dreg, which is not"),
    "leave_one_out": (
        {"name": "score_function", "baseline": "leave_one_out"},
        "objective: the leave_one_out baseline needs num_samples of at least 2",
    ),
}


@pytest.mark.parametrize(("objective", "message"), BIASED.values(), ids=BIASED)
def test_a_biased_objective_is_refused_before_anything_is_written(objective, message, tmp_path):
    with pytest.raises(ConfigError) as error:
        go(tmp_path, objective=objective)
    assert str(error.value) == message
    assert not (tmp_path / "x").exists()
    with pytest.raises(ConfigError) as error:
        data = vae.load_data("digits", pixels="static", train_size=100)
        vae.fit(vae.build(config()), data, objective=objective, epochs=1, verbose=False)
    assert str(error.value) == message


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_that_leave_out_the_score_are_refused_where_the_support_moves(name):
    """E_q[d log q] is 0 only where the support of q stays; what needs it to be is biased elsewhere."""
    objective = OBJECTIVES[name](num_samples=1)
    check_objective(objective, vae.build(config()))
    model = vae.build(config(), "model.posterior=uniform")
    if name in ("sgvb_a", "sgvb_b", "iwae"):
        check_objective(WeightedKL(objective, 2.0), model)
    else:
        sentence = rf"^objective: {name} is biased if the support of q depends on its parameters; use sgvb_a"
        for each in (objective, WeightedKL(objective, 2.0)):
            with pytest.raises(ConfigError, match=sentence):
                check_objective(each, model)


@pytest.mark.parametrize("posterior", ["cauchy", {"name": "student_t", "df": 2.0}], ids=str)
def test_a_posterior_without_variance_is_refused_since_its_kl_is_infinite(posterior, tmp_path):
    with pytest.raises(
        ConfigError, match=r"^model.posterior: it has no variance, so that its KL to the prior is infinit"
    ):
        go(tmp_path, model={"posterior": posterior})
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("posterior", [name for name in POSTERIORS if name != "cauchy"])
def test_a_run_with_every_posterior_trains_and_is_evaluated(posterior, tmp_path):
    """Its KL is exact, so sgvb_b measures it; of dependent latents there is no KL of each."""
    model = vae.build(config(), f"model.posterior={posterior}")
    assert has_exact_kl(model.posterior_head(torch.zeros(2, model.posterior_head.output_size)), model.prior)
    go(tmp_path, model={"posterior": posterior})
    opened = load_run(tmp_path / "x")
    split = vae.load_data("digits", pixels="static", train_size=200).test.first(20)
    result = vae.evaluate_bound(opened.model, split, name="test")
    assert result.estimator == "sgvb_b"
    assert torch.isfinite(result.elbo).all()
    assert (result.kl_per_dimension is None) == (posterior in ("full_gaussian", "multivariate_t"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model": {"posterior": "full_gaussian"}, "modifiers": {"free_bits": 0.1}},
            "^modifiers.free_bits: the latents of a MultivariateNormal have no KL of their own",
        ),
        ({"model": {"posterior": {"name": "student_t", "df": 1e-300}}}, "df: must be at least 0.1"),
    ],
    ids=["joint KL", "df"],
)
def test_what_a_posterior_cannot_give_is_refused_before_anything_is_written(changes, sentence, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        go(tmp_path, **changes)
    assert not (tmp_path / "x").exists()


def test_without_an_exact_kl_evaluation_falls_back_on_monte_carlo_and_says_so(monkeypatch):
    data = vae.load_data("digits", pixels="static", train_size=200)
    model, split = vae.build(config()), data.test.first(30)
    exact = vae.evaluate_bound(model, split, name="test", num_samples=400)
    for name in ("vae.models.vae", "vae.evaluation.bound"):
        monkeypatch.setattr(f"{name}.has_exact_kl", lambda q, p: False)
    sampled = vae.evaluate_bound(model, split, name="test", num_samples=400)
    assert (exact.estimator, sampled.estimator) == ("sgvb_b", "sgvb_a")
    assert sampled.kl_per_dimension is None
    assert not torch.equal(sampled.kl, exact.kl)
    torch.testing.assert_close(sampled.kl, exact.kl, rtol=0, atol=0.1)


def test_a_count_of_samples_ends_the_run(tmp_path):
    go(tmp_path, train={"epochs": None, "samples": 300})
    last = lines(tmp_path / "x")[-1]
    assert (last["samples"], last["epoch"]) == (328, 2)  # the first minibatch at or past it


def test_early_stopping_and_the_best_checkpoint(tmp_path):
    go(
        tmp_path,
        data={"validation_size": 40},
        train={"epochs": 500, "patience": 4, "optimizer": {"name": "adam", "lr": 5e-2}},
    )
    bounds = [line["elbo"] for line in lines(tmp_path / "x", "validation")]
    best = max(range(len(bounds)), key=bounds.__getitem__)
    assert len(bounds) == best + 1 + 4 < 500
    opened = load_run(tmp_path / "x")
    assert opened.checkpoint == "best"
    assert opened.step == lines(tmp_path / "x")[best]["step"]
    split = vae.load_data("digits", pixels="static", train_size=200, validation_size=40).validation
    assert vae.evaluate_bound(opened.model, split, name="validation").elbo.mean() == pytest.approx(
        bounds[best], abs=1e-9
    )


def test_without_validation_there_is_no_best(tmp_path):
    go(tmp_path)
    assert [p.name for p in (tmp_path / "x" / "checkpoints").iterdir()] == ["last.safetensors"]


def test_reduction_by_sum_and_by_mean_differ_by_the_size_of_the_minibatch():
    gradients = {}
    for reduction in ("sum", "mean"):
        torch.manual_seed(0)
        model = vae.VAE(vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
        algorithm = AEVB(EstimatorB(), OPTIMIZERS["sgd"], reduction)
        x, noise = (torch.rand(7, *SHAPE) > 0.5).float(), torch.randn(1, 7, 2)
        algorithm.step(algorithm.init(model), Batch(x), {"eps": noise})
        gradients[reduction] = torch.cat([p.grad.flatten() for p in model.parameters()])
    torch.testing.assert_close(gradients["sum"], 7 * gradients["mean"], rtol=1e-4, atol=1e-5)


def test_one_step_of_aevb_is_one_step_up_the_bound():
    """Against the same step written out with torch.distributions and plain gradient ascent."""
    torch.manual_seed(0)
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE)).double()
    x, noise = (torch.rand(7, *SHAPE) > 0.5).double(), torch.randn(3, 7, 2, dtype=torch.float64)
    mean, log_variance = model.encoder(x).chunk(2, 1)
    q = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    z = mean + q.stddev * noise
    p = torch.distributions.Bernoulli(logits=model.decoder(z.flatten(0, 1)).view(3, 7, *SHAPE))
    kl = torch.distributions.kl_divergence(q, torch.distributions.Normal(torch.zeros(2).double(), 1.0)).sum(1)
    bound = p.log_prob(x).sum((2, 3, 4)).mean(0) - kl
    gradients = torch.autograd.grad(bound.mean(), list(model.parameters()))
    expected = [p + 0.1 * g for p, g in zip(model.parameters(), gradients, strict=True)]
    algorithm = AEVB(EstimatorB(num_samples=3), lambda p: torch.optim.SGD(p, lr=0.1))
    state = algorithm.init(model)
    assert algorithm.step(state, Batch(x), {"eps": noise})["elbo"].item() == pytest.approx(bound.sum().item(), abs=1e-9)
    assert state.step == 1
    for ours, theirs in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# ------------------------------------------------------------------------------------------------- what goes wrong


class Broken(torch.nn.Module):
    """A decoder that gives NaN from a call on."""

    def __init__(self, after):
        super().__init__()
        self.layer, self.calls, self.after = torch.nn.Linear(2, 64), 0, after

    def forward(self, z):
        self.calls += self.training
        return self.layer(z) * (float("nan") if self.calls > self.after else 1.0)


def test_a_bound_that_is_not_finite_stops_at_once_and_keeps_the_state_before(tmp_path):
    data = vae.load_data("digits", pixels="static", train_size=200)
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4), Broken(after=6), vae.Bernoulli(SHAPE))
    with pytest.raises(TrainingFailed) as error:
        vae.fit(model, data, out=tmp_path / "x", epochs=9, batch_size=64, checkpoint_seconds=0, verbose=False)
    message = str(error.value)
    assert "log_p_x_given_z is not finite at step 7" in message
    assert "gradient" in message
    assert f"the last good checkpoint is {tmp_path / 'x' / 'checkpoints' / 'last.safetensors'}" in message
    opened = load_run(tmp_path / "x", decoder=Broken(after=99))
    assert opened.step == 4
    assert all(torch.isfinite(p).all() for p in opened.model.parameters())


def test_the_largest_gradient_is_named(tmp_path):
    with pytest.raises(TrainingFailed, match=r"(largest finite gradient is|gradients of all)"):
        go(tmp_path, train={"optimizer": {"name": "sgd", "lr": 1e30}})


def falling(bounds, tmp_path, monkeypatch, **modifiers):
    """A run of one step per epoch whose ELBO is given; its warnings."""
    given, values = iter(bounds), AEVB.values

    def faked(self, *batch):
        maximised, memory, sums = values(self, *batch)
        return maximised, memory, {**sums, "elbo": torch.tensor(64.0 * next(given), dtype=torch.float64)}

    with monkeypatch.context() as patch, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        patch.setattr(AEVB, "values", faked)
        train = {"epochs": len(bounds), "compile": "never"}
        run = go(tmp_path, data={"train_size": 64}, train=train, modifiers=modifiers)
    assert [line["elbo"] for line in run.history] == pytest.approx(bounds)
    return [str(w.message) for w in caught]


def test_a_fall_far_below_the_start_is_warned_of_once(tmp_path, monkeypatch):
    """64 values per datum: far is 640 nats."""
    assert falling([-44, -680, -683, -60], tmp_path, monkeypatch) == []
    (said,) = falling([-44, -40, -690, -1e6, -60], tmp_path / "y", monkeypatch)
    assert said.startswith(
        "the mean ELBO fell from -44 nats per datum in epoch 1 to -690 in epoch 3; a smaller learning"
    )


def test_a_warm_up_is_no_fall(tmp_path, monkeypatch):
    """The objective falls as the weight of the KL rises, and the ELBO, which is compared, does not."""
    run = go(
        tmp_path,
        modifiers={"beta": 1e6, "warm_up": 3.0},
        train={"epochs": 3, "optimizer": {"name": "sgd", "lr": 1e-9}},
    )
    objectives = [line["objective"] for line in run.history]
    assert objectives[-1] < objectives[0] - 640
    assert falling([-44, -45, -44], tmp_path / "y", monkeypatch, beta=1e6, warm_up=3.0) == []


class NormalisedConstants(torch.nn.Module):
    """Gives numbers far from 0 that batch normalisation takes away in training; its running mean begins at 0."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(6)

    def forward(self, z):
        mean = self.norm(0 * z.sum(1, keepdim=True) + torch.arange(6) * 1e4)
        return torch.cat([mean, torch.zeros_like(mean)], 1)


def test_a_gap_between_training_and_evaluation_is_named_for_what_it_is():
    data = vae.Data.from_arrays(torch.randn(64, 6, generator=torch.Generator().manual_seed(0)), validation_size=8)
    model = vae.VAE(vae.mlp_encoder((6,), 4), NormalisedConstants(), vae.Gaussian((6,)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        vae.fit(model, data, epochs=3, verbose=False)
    (said,) = [str(w.message) for w in caught if "running averages" in str(w.message)]  # once
    assert said.startswith("the ELBO is -")
    assert (
        "on the validation data: batch normalisation takes the mean and variance of the minibatch in training" in said
    )


def frozen():
    model = vae.VAE(
        vae.mlp_encoder(SHAPE, 4, hidden=(4,)), vae.mlp_decoder(2, SHAPE, hidden=(4,)), vae.Bernoulli(SHAPE)
    )
    return model.requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (frozen, {}, "no parameter of the model requires a gradient"),
        (lambda: torch.nn.Linear(2, 2), {}, "model: expected a vae.VAE, such as vae.build gives, not Linear"),
        (lambda: None, {}, "not NoneType"),
        (None, {"out": "a\0b"}, "out: 'a\\x00b' is no path"),
        (None, {"out": "x" * 5000}, "out: 'xx.* is no path, or too long for one"),
        (None, {"out": ""}, "out: '' is no path"),
        (None, {"out": 3}, "out: 3 is no path"),
        (None, {"seed": 1.5}, r"train\.seed: expected a whole number, not 1\.5"),
        (None, {"seed": "x"}, r"train\.seed: expected a whole number, not 'x'"),
        (
            None,
            {"out": "{tmp}", "resume": True, "overwrite": True},
            "resume continues a run, and overwrite replaces it",
        ),
    ],
)
def test_arguments_of_fit_are_checked(tmp_path, model, options, sentence):
    given = {key: str(tmp_path / "x") if value == "{tmp}" else value for key, value in options.items()}
    made = frozen().requires_grad_(True) if model is None else model()
    with pytest.raises(VaeError, match=sentence.replace("\\x", r"\\x")):
        vae.fit(made, vae.load_data("digits", pixels="static", train_size=64), epochs=1, verbose=False, **given)


def test_places_and_seeds_elsewhere_are_checked():
    for place in ("a\0b", "x" * 5000, "", None):
        with pytest.raises(VaeError, match=r"run: .*is no path, or too long for one"):
            vae.load(place)
        with pytest.raises(VaeError):
            vae.load_data("folder", path=place)
    model = frozen()
    for seed in (1.5, "x", None):
        for call in (lambda s: model.elbo(torch.zeros(2, 64), seed=s), lambda s: model.sample(2, seed=s)):
            with pytest.raises(UsageError, match="seed: expected a whole number"):
                call(seed)


@pytest.mark.parametrize("how", ["never", "always"])
def test_a_batch_size_beyond_the_data_costs_no_memory(how):
    """A billion data of a minibatch would be 64 GB."""
    data = vae.load_data("digits", pixels="static")
    run = vae.fit(frozen().requires_grad_(True), data, epochs=1, batch_size=10**9, compile=how, verbose=False)
    assert run.steps == 1


def test_one_datum_left_over_under_batch_normalisation_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"train\.batch_size: the last minibatch of an epoch holds a single datum"):
        go(tmp_path, data={"train_size": 193}, model={"encoder": {"hidden": [8], "batch_norm": True}})
    assert not (tmp_path / "x").exists()
    go(tmp_path, data={"train_size": 193})  # without it, a minibatch of one is fine
    go(tmp_path / "y", data={"train_size": 3}, train={"batch_size": 1})  # M = 1, and N < M elsewhere


@pytest.mark.parametrize("part", [{"name": "mlp", "hidden": [8]}, {"name": "conv", "channels": [4, 4, 4]}])
def test_batch_normalisation_over_one_value_is_refused_whatever_l_is(tmp_path, part):
    """The encoder sees M data whatever L; three convolutions bring 8 x 8 images to 1 x 1."""
    with pytest.raises(ConfigError, match="batch normalisation"):
        go(
            tmp_path,
            data={"train_size": 193},
            model={"encoder": {**part, "batch_norm": True}},
            objective={"name": "sgvb_b", "num_samples": 5},
        )
    conv = {"name": "conv", "channels": [4, 4], "batch_norm": True}  # 2 x 2 values of one datum have a variance
    go(tmp_path, data={"train_size": 193}, model={"encoder": conv})


def test_a_model_is_in_training_mode_while_it_trains():
    data = vae.load_data("digits", pixels="static", train_size=128)
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4, batch_norm=True), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
    for fits in (1, 2):  # a first fit leaves evaluation mode behind
        vae.fit(model, data, epochs=1, batch_size=64, verbose=False)
        assert model.encoder.layers[2].num_batches_tracked == 2 * fits
        assert not model.training


def test_two_settings_are_enough_to_train(tmp_path):
    raw = {"data": {"name": "digits"}, "model": {"latent_dim": 2}}
    assert read_settings(raw).train.optimizer.name == "adam"
    made = train(read_settings(raw, ["train.epochs=1"]), tmp_path / "x", verbose=False)
    assert made.settings.model.likelihood.name == "grey_cross_entropy"


@pytest.mark.parametrize(
    "optimizer",
    [{"name": "adam", "betas": [2, 0.9]}, {"name": "sgd", "nesterov": True}, {"name": "adamax", "betas": [1, 1]}],
)
def test_what_torch_refuses_of_an_optimizer_is_a_sentence(tmp_path, optimizer):
    with pytest.raises(ConfigError, match=r"train\.optimizer: torch\.optim\.\w+ refuses: "):
        go(tmp_path, train={"optimizer": optimizer})
    assert not (tmp_path / "x").exists()


def test_a_model_of_another_shape_is_refused(tmp_path):
    model = vae.VAE(vae.mlp_encoder((1, 6, 6), 4), vae.mlp_decoder(2, (1, 6, 6)), vae.Bernoulli((1, 6, 6)))
    with pytest.raises(UsageError, match=r"the data have shape \(1, 8, 8\), and the model is of \(1, 6, 6\)"):
        vae.fit(model, vae.load_data("digits", pixels="static"), out=tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("images", "options", "message"),
    [
        (torch.rand(20, 1, 6, 6), {}, r"gives \(20, 1, 6, 6\), and the model is of \(1, 8, 8\)"),
        (7 * torch.rand(20, 1, 8, 8), {}, "the likelihood's support is binary"),
        (torch.ones(3, 1, 8, 8), {"drop_last": True}, "gives no minibatch"),
    ],
)
def test_a_dataloader_is_looked_at(images, options, message):
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
    with pytest.raises(UsageError, match=message):
        vae.fit(model, torch.utils.data.DataLoader(images, batch_size=20, **options), epochs=1, verbose=False)


def test_fewer_data_than_a_minibatch(tmp_path):
    go(tmp_path, data={"train_size": 5}, train={"batch_size": 64})
    assert [line["step"] for line in lines(tmp_path / "x")] == [1, 2, 3]


@pytest.mark.parametrize(
    ("pixels", "likelihood", "message"),
    [
        (
            "grey",
            "bernoulli",
            r"bernoulli needs 0 or 1.*grey, on \[0, 1\].*that fit: grey_cross_entropy, gaussian.*static",
        ),
    ],
)
def test_values_outside_the_support_are_refused_before_training(tmp_path, pixels, likelihood, message):
    with pytest.raises(ConfigError, match=message):
        go(tmp_path, data={"pixels": pixels}, model={"likelihood": likelihood})
    assert not (tmp_path / "x").exists()


def test_real_values_fit_the_gaussian_alone(tmp_path):
    import numpy as np

    np.savez(tmp_path / "own.npz", x=np.random.default_rng(0).standard_normal((40, 64)))
    data = {"name": "npz", "path": str(tmp_path / "own.npz")}
    raw = {**config(), "data": data}
    for likelihood in ("bernoulli", "grey_cross_entropy"):
        with pytest.raises(ConfigError, match=r"own.npz are real, on \[-\d.*likelihoods that fit: gaussian"):
            train(read_settings(raw, [f"model.likelihood={likelihood}"]), tmp_path / "x", verbose=False)
    assert train(read_settings(raw), tmp_path / "x", verbose=False).settings.model.likelihood.name == "gaussian"


def test_a_collapsed_posterior_is_warned_of():
    data = vae.load_data("digits", pixels="static", train_size=200)
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4, init="normal"), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
    with pytest.warns(PosteriorCollapse, match=r"active units 0.*modifiers\.warm_up"):
        vae.fit(model, data, epochs=2, modifiers={"beta": 50.0}, verbose=False)


def test_training_and_selection_never_see_the_test_split():
    data = vae.load_data("digits", pixels="static", train_size=200, validation_size=40)
    poisoned = dataclasses.replace(data.test, x=torch.full_like(data.test.x, 1))
    results = []
    for test in (data.test, poisoned):
        torch.manual_seed(0)
        model = vae.VAE(vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
        results.append(vae.fit(model, dataclasses.replace(data, test=test), epochs=3, patience=2, verbose=False))
    assert isinstance(data, Data)
    for a, b in zip(results[0].model.parameters(), results[1].model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_batch_normalisation_is_moved_by_training_steps_alone():
    data = vae.load_data("digits", pixels="static", train_size=192, validation_size=40)
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4, batch_norm=True), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())  # building moved nothing
    vae.fit(model, data, epochs=2, batch_size=64, verbose=False)
    assert model.encoder.layers[2].num_batches_tracked == 6


def test_the_learning_rate_follows_the_schedule(tmp_path):
    go(
        tmp_path,
        train={"schedule": {"name": "step", "every": 1, "gamma": 0.1}, "optimizer": {"name": "sgd", "lr": 1e-2}},
    )
    _, values = vae.training.checkpoint.read(tmp_path / "x" / "checkpoints" / "last.safetensors")
    group = values["optimizer"]["param_groups"][0]
    assert group["initial_lr"] == 1e-2
    assert group["lr"] == pytest.approx(1e-4)


def test_precisions_and_compilation_train(tmp_path):
    for i, precision in enumerate(("float64", "bfloat16")):
        made = go(tmp_path / str(i), train={"precision": precision})
        assert next(made.model.parameters()).dtype == (torch.float64 if precision == "float64" else torch.float32)
        assert math.isfinite(made.history[-1]["elbo"])
    with pytest.raises(ConfigError, match=r"train\.precision: tf32"):
        go(tmp_path, train={"precision": "tf32"})


def test_a_gradient_is_clipped_to_its_norm():
    torch.manual_seed(0)
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
    algorithm = AEVB(EstimatorB(), OPTIMIZERS["sgd"], "sum", clip_grad_norm=0.5)
    algorithm.step(algorithm.init(model), Batch((torch.rand(7, *SHAPE) > 0.5).float()), {"eps": torch.randn(1, 7, 2)})
    norm = torch.cat([p.grad.flatten() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-5)


def test_what_is_no_data_is_refused():
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
    with pytest.raises(UsageError, match=r"data must come from vae\.load_data, or be a torch\.utils\.data\.DataLoader"):
        vae.fit(model, torch.rand(4, 1, 8, 8))
    with pytest.raises(ConfigError, match=r"train\.epoch: no such setting; did you mean epochs"):
        vae.fit(model, vae.load_data("digits"), epoch=3)
