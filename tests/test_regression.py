"""Regression with random weights: exact answers, whether its intervals hold, and what users get wrong."""

import copy
import itertools
import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import multivariate_normal, norm
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.estimator_checks import parametrize_with_checks

import vae
from vae.commands import evaluate, sweep
from vae.data import Batch, Split
from vae.data.synthetic import li_data, li_law
from vae.distributions import Normal
from vae.errors import ConfigError, DataError, UsageError
from vae.evaluation.regression import covered, crps
from vae.models import Predictive, Regression, VariationalLinear, networks, weights_kl, weights_noises
from vae.models.regression import SMALLEST_STD
from vae.objectives import RegressionBound
from vae.regression import VariationalRegressor
from vae.reproduce.document import Made
from vae.reproduce.li import measures
from vae.reproduce.li.methods import METHODS, Published, Sample
from vae.training import read_settings
from vae.training.run import train

N, D, T, M = 11, 3, 2, 5  # sizes all different
GENERATOR = np.random.default_rng(7)
X, Y = GENERATOR.normal(size=(N, D)), GENERATOR.normal(size=(N, T))


def doubles(*arrays):
    return [torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in arrays]


def split_of(x, y):
    return Split(x, y, torch.arange(len(x)))


def model_of(**options):
    torch.manual_seed(0)
    return Regression((D,), T, **{"hidden": (4,), **options}).double()


# ------------------------------------------------------------------------------------- the layers


def test_a_variational_layer_has_the_law_of_its_random_weights():
    """Drawn weights, drawn activations and the formula agree; false-alarm rate 1e-5 for each of the 8 means."""
    torch.manual_seed(1)
    layer = VariationalLinear(D, T, initial_std=0.3).double()
    (x,) = doubles(X[:2])
    padded = torch.cat([x, torch.ones(2, 1)], 1)
    mean, variance = padded @ layer.mean.T, padded.square() @ layer.std.square().T
    draws, S = {}, 200_000
    for sampling in ("weights", "activations"):
        noise = torch.randn(layer.noise(sampling, S, 2).shape, dtype=torch.float64)
        draws[sampling] = layer(x[None], {f"{sampling}/a": noise}, "a").detach()
    for sample in draws.values():
        z = (sample.mean(0) - mean) / (variance / S).sqrt()
        assert z.abs().max() < norm.isf(0.5e-5)
        assert ((sample.var(0) / variance - 1) / math.sqrt(2 / S)).abs().max() < norm.isf(0.5e-5)
    # Weights are shared by the data of a draw, activations are not.
    shared, own = (np.corrcoef(sample[:, :, 0].T)[0, 1] for sample in draws.values())
    exact = ((padded[0] * padded[1]) @ layer.std.square()[0] / variance[:, 0].prod().sqrt()).item()
    assert shared == pytest.approx(exact, abs=4.5 / math.sqrt(S))
    assert abs(own) < 4.5 / math.sqrt(S)


def test_the_kl_of_the_weights_is_torchs_and_is_counted_once_for_all_data():
    model = model_of(layers="all", prior_std=0.7)
    layers = [module for module in model.modules() if isinstance(module, VariationalLinear)]
    assert len(layers) == 4
    wanted = sum(
        torch.distributions.kl_divergence(
            torch.distributions.Normal(layer.mean, layer.std), torch.distributions.Normal(0.0, 0.7)
        ).sum()
        for layer in layers
    )
    torch.testing.assert_close(model.kl(), wanted)
    assert weights_kl(model_of(weights="point")) == 0
    x, y = doubles(X, Y)
    model.prepare(split_of(x, y))
    total = 0.0
    for rows in torch.arange(N).split(M):  # minibatches of 5, 5 and 1
        noise = {k: torch.zeros(n.shape) for k, n in weights_noises(model, "activations", 1, len(rows)).items()}
        estimate, _ = RegressionBound()(model, Batch(x[rows], y[rows]), noise, {}, 0)
        total = total + estimate.terms["kl"].sum()
    torch.testing.assert_close(total, wanted)


def test_without_noise_a_network_uses_the_means():
    model = model_of(layers="all", dropout=0.5)
    (x,) = doubles(X)
    mean = model.eval().likelihood(x, {}).mean[0]
    by_hand = x
    for layer in (model.mean[0], model.mean[1], model.mean[3]):
        by_hand = by_hand @ layer.mean[:, :-1].T + layer.mean[:, -1] if hasattr(layer, "rho") else layer(by_hand)
    torch.testing.assert_close(mean, by_hand)


# ------------------------------------------------------------------------------------- the bound, against exact answers


def linear_problem():
    """Bayesian linear regression: w ~ N(0, I / alpha), y ~ N(X w, s^2), one target; its exact posterior and evidence."""
    alpha, s, (x, y) = 1 / 0.7**2, 0.3, doubles(X, Y[:, :1])
    design = torch.cat([x, torch.ones(N, 1)], 1)
    precision = alpha * torch.eye(D + 1, dtype=torch.float64) + design.T @ design / s**2
    mean = torch.linalg.solve(precision, design.T @ y[:, 0] / s**2)
    covariance = s**2 * torch.eye(N, dtype=torch.float64) + design @ design.T / alpha
    evidence = multivariate_normal(np.zeros(N), covariance.numpy()).logpdf(y[:, 0].numpy())
    return x, y, s, precision, mean, evidence


@pytest.mark.parametrize("sampling", ["activations", "weights"])
def test_the_optimum_of_a_linear_model_is_bayesian_linear_regression(sampling):
    """The best mean-field q has the exact means and variances 1 / Lambda_ii; its bound falls short of the evidence by
    (sum log Lambda_ii - log det Lambda) / 2 (mean-field Gaussian), and the gradient there is 0. The bound is quadratic
    in the noise, so noise of all signs gives it exactly."""
    x, y, s, precision, mean, evidence = linear_problem()
    options = {"noise": "fixed", "noise_std": s, "hidden": (), "prior_std": 0.7, "standardise": False}
    model = Regression((D,), 1, layers="all", sampling=sampling, **options).double()
    model.prepare(split_of(x, y))
    layer = model.mean[1]
    with torch.no_grad():
        layer.mean.copy_(mean[None])
        layer.rho.copy_(torch.expm1(precision.diagonal() ** -0.5).log()[None])
    name, size = f"{sampling}/mean.1", 1 if sampling == "activations" else D + 1
    signs = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=size)), dtype=torch.float64)  # (S, size)
    noise = signs[:, None, :] if sampling == "weights" else signs[:, None, :].expand(-1, N, -1)
    estimate, _ = RegressionBound(num_samples=len(noise))(model, Batch(x, y), {name: noise}, {}, 0)
    shortfall = 0.5 * (precision.diagonal().log().sum() - torch.logdet(precision))
    assert shortfall > 0.1
    torch.testing.assert_close(estimate.elbo.sum().item(), evidence - shortfall.item(), rtol=1e-10, atol=0)
    estimate.surrogate.sum().backward()
    torch.testing.assert_close(layer.mean.grad, torch.zeros_like(layer.mean), rtol=0, atol=1e-10)
    torch.testing.assert_close(layer.rho.grad, torch.zeros_like(layer.rho), rtol=0, atol=1e-10)


def test_training_finds_bayesian_linear_regression():
    x, y, s, precision, mean, _ = linear_problem()
    data = vae.Data.from_arrays(x, y, x_test=x, y_test=y)
    model = Regression(
        (D,), 1, noise="fixed", noise_std=s, layers="all", hidden=(), prior_std=0.7, standardise=False
    ).double()
    vae.fit(
        model, data, epochs=3000, batch_size=N, optimizer={"name": "adam", "lr": 0.02}, schedule="cosine", verbose=False
    )
    found = model.mean[1]
    torch.testing.assert_close(found.mean[0], mean, rtol=0, atol=0.03)
    torch.testing.assert_close(found.std[0], precision.diagonal() ** -0.5, rtol=0.05, atol=0)


def test_drawn_activations_have_less_variance_of_the_gradient_than_drawn_weights():
    """Local reparameterization: its noise is each datum's own, so the variance falls with M."""
    x, y = doubles(GENERATOR.normal(size=(64, D)), GENERATOR.normal(size=(64, T)))
    variance = {}
    for sampling in ("activations", "weights"):
        model = model_of(layers="all", sampling=sampling, initial_std=0.2)
        model.prepare(split_of(x, y))
        gradients = []
        for seed in range(60):
            g = torch.Generator().manual_seed(seed)
            needed = RegressionBound().noises(model, 64)
            noise = {k: torch.randn(n.shape, dtype=torch.float64, generator=g) for k, n in needed.items()}
            estimate, _ = RegressionBound()(model, Batch(x, y), noise, {}, 0)
            gradients.append(torch.autograd.grad(estimate.surrogate.mean(), model.mean[0].mean)[0])
        variance[sampling] = torch.stack(gradients).var(0).sum()
    assert variance["activations"] < 0.5 * variance["weights"]


def test_standardising_changes_the_density_by_its_jacobian():
    """The same function in other units of x and y: log p falls by log of the factor of y, per target."""
    x, y = doubles(X, Y)
    one, other = model_of(), model_of()
    one.prepare(split_of(x, y))
    other.prepare(split_of(1000 * x - 5, 20 * y + 7))
    difference = Predictive.of(one, x, 7, 0).log_prob(y) - Predictive.of(other, 1000 * x - 5, 7, 0).log_prob(20 * y + 7)
    torch.testing.assert_close(difference, torch.full_like(difference, T * math.log(20)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("noise", "std"), [("fixed", 0.3), ("constant", None), ("heteroscedastic", None)])
def test_what_the_noise_is(noise, std):
    x, y = doubles(X, 10 * Y)
    model = model_of(noise=noise, noise_std=0.3)
    model.prepare(split_of(x, y))
    found = model.likelihood(x, {}).std[0]
    assert found.shape == (N, T)
    if std is not None:  # in the units of y, whatever is standardised inside
        torch.testing.assert_close(found, torch.full_like(found, std))
    assert (found.std(0) > 0).all() == (noise == "heteroscedastic")


# ------------------------------------------------------------------------------------- the predictive law


def mixture():
    g = torch.Generator().manual_seed(3)
    return Predictive(Normal(*torch.randn(2, 6, N, T, dtype=torch.float64, generator=g)))


def test_the_variances_add_up_and_are_those_of_the_mixture():
    law = mixture()
    parts = law.variances()
    torch.testing.assert_close(parts["total"], parts["aleatoric"] + parts["epistemic"])
    second = (law.of_networks.variance + law.of_networks.mean.square()).mean(0)
    torch.testing.assert_close(parts["total"], second - law.mean.square())


def test_density_distribution_function_and_quantiles_agree():
    law = mixture()
    quantiles = law.quantile([0.001, 0.3, 0.95])
    torch.testing.assert_close(
        law.cdf(quantiles), doubles([0.001, 0.3, 0.95])[0][:, None, None].expand(3, N, T), rtol=0, atol=1e-9
    )
    y = law.quantile([0.4])[0].requires_grad_()
    (slope,) = torch.autograd.grad(law.cdf(y).sum(), y)
    torch.testing.assert_close(slope, law.of_networks.log_prob(y).exp().mean(0))
    torch.testing.assert_close(  # all targets together: not the product of the mixtures
        law.log_prob(y), law.of_networks.log_prob(y).sum(2).exp().mean(0).log()
    )


def test_crps_is_that_of_a_normal_law():
    """The closed form of Gneiting & Raftery 2007, equation 5; false-alarm rate 1e-5 for each of 3."""
    g = torch.Generator().manual_seed(5)
    y = torch.tensor([-1.0, 0.2, 3.0], dtype=torch.float64)
    repeats = torch.stack([crps(torch.randn(40, 3, dtype=torch.float64, generator=g), y) for _ in range(4000)])
    exact = y * (2 * torch.special.ndtr(y) - 1) + 2 * torch.from_numpy(norm.pdf(y)) - 1 / math.sqrt(math.pi)
    z = (repeats.mean(0) - exact) / (repeats.std(0) / math.sqrt(4000))
    assert z.abs().max() < norm.isf(0.5e-5)


def test_coverage_is_counted_by_the_distribution_function():
    """Of a skew law, the interval of highest density is not the central one: counting by densities is wrong there."""
    pit = torch.linspace(0.005, 0.995, 100)[:, None]
    for level in (0.5, 0.9):
        assert covered(pit, level).mean().item() == pytest.approx(level, abs=0.011)
    assert covered(torch.tensor([[0.04, 0.06]]), 0.9).tolist() == [0.5]  # a mean over targets


# ------------------------------------------------------------------------------------- the estimator


def law(x):
    return np.sin(x[:, 0]) * x[:, 1], 0.1 + 0.2 * np.abs(x[:, 1])


def drawn(n, seed):
    g = np.random.default_rng(seed)
    x = g.uniform(-3, 3, (n, 2))
    mean, std = law(x)
    return x, mean + std * g.standard_normal(n)


@pytest.fixture(scope="module")
def fitted():
    return VariationalRegressor(random_state=0, steps=600).fit(*drawn(800, 1))


@parametrize_with_checks([VariationalRegressor(steps=30, num_samples=20)])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def test_predictions_have_the_shapes_that_are_promised(fitted):
    x, y = drawn(13, 2)
    mean, std = fitted.predict(x, return_std=True)
    assert mean.shape == std.shape == fitted.predict_var(x).shape == fitted.log_prob(x, y).shape == (13,)
    assert fitted.predict_interval(x).shape == (13, 2)
    assert fitted.predict_quantiles(x, (0.1, 0.5, 0.9)).shape == (13, 3)
    assert fitted.sample(x, 7).shape == (7, 13)
    np.testing.assert_allclose(std**2, fitted.predict_var(x))
    several = VariationalRegressor(random_state=0, steps=30).fit(x, np.stack([y, 2 * y], 1))
    assert several.predict(x).shape == (13, 2)
    assert several.log_prob(x, np.stack([y, y], 1)).shape == (13,)
    assert several.predict_interval(x).shape == (13, 2, 2)
    assert several.predict_quantiles(x, 0.5).shape == (13, 2, 1)
    assert several.sample(x, 7).shape == (7, 13, 2)
    assert several.uncertainty(x)["epistemic"].shape == (13, 2)


def test_the_law_that_is_predicted_is_one_law(fitted):
    """Quantiles, samples, moments and density are of the same mixture; false-alarm rate about 1e-4 in all."""
    x, _ = drawn(5, 3)
    samples = fitted.sample(x, 3000)
    mean, std = fitted.predict(x, return_std=True)
    assert np.abs((samples.mean(0) - mean) / (std / math.sqrt(3000))).max() < 4.5
    inside = (samples < fitted.predict_quantiles(x, 0.8)[:, 0]).mean(0)
    assert np.abs(inside - 0.8).max() < 4.5 * math.sqrt(0.16 / 3000)
    grid = mean[0] + std[0] * np.linspace(-12, 12, 4001)
    density = np.exp(fitted.log_prob(np.repeat(x[:1], 4001, 0), grid))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)


def test_intervals_hold_on_fresh_data_and_epistemic_variance_grows_outside(fitted):
    x, y = drawn(4000, 4)
    lower, upper = fitted.predict_interval(x, 0.9).T
    assert 0.86 < np.mean((lower <= y) & (y <= upper)) < 0.94
    _, std = law(x)
    noise = np.sqrt(fitted.uncertainty(x)["aleatoric"])
    assert np.corrcoef(noise, std)[0, 1] > 0.9
    outside = fitted.uncertainty(np.array([[0.0, 0.0], [12.0, 12.0]]))["epistemic"]
    assert outside[1] > 30 * outside[0]


def test_a_seed_gives_the_same_again_and_clones_start_anew(fitted):
    again = VariationalRegressor(random_state=0, steps=600).fit(*drawn(800, 1))
    x, _ = drawn(20, 5)
    np.testing.assert_array_equal(again.predict_interval(x), fitted.predict_interval(x))


@pytest.mark.parametrize("unit", [1e-30, 1e100])
def test_units_of_x_and_y_do_not_matter(unit):
    x, y = drawn(60, 6)
    plain, other = (
        VariationalRegressor(random_state=0, steps=60).fit(x * scale, y * scale).predict(x * scale) / scale
        for scale in (1.0, unit)
    )
    np.testing.assert_allclose(other, plain, rtol=1e-3, atol=1e-3)


def test_large_numbers_close_to_one_another_lose_nothing():
    x, y = drawn(200, 6)
    plain = VariationalRegressor(random_state=0, steps=60).fit(x, y)
    shifted = VariationalRegressor(random_state=0, steps=60).fit(x + 1e9, y - 1e9)
    np.testing.assert_allclose(shifted.predict(x + 1e9) + 1e9, plain.predict(x), atol=1e-3)


class Predicts(RegressorMixin, BaseEstimator):
    """A fitted estimator for MAPIE, out of a function."""

    def __init__(self, function):
        self.function, self.fitted_ = function, True

    def fit(self, x, y):
        return self

    def predict(self, x):
        return self.function(x)


def test_conformal_intervals_are_those_of_mapie_and_hold(fitted):
    mapie, scores = pytest.importorskip("mapie.regression"), pytest.importorskip("mapie.conformity_scores")
    calibration, (x, y) = drawn(99, 7), drawn(4000, 8)
    std = Predicts(lambda inputs: fitted.predict(inputs, return_std=True)[1])
    theirs = mapie.SplitConformalRegressor(
        Predicts(fitted.predict), 0.9, scores.ResidualNormalisedScore(std, prefit=True), prefit=True
    )
    wanted = theirs.conformalize(*calibration).predict_interval(x)[1][:, :, 0]
    found = copy.copy(fitted).conformal(*calibration).predict_interval(x, 0.9)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    # Given 99 calibration data, the coverage is Beta(90, 10) (Vovk 2012): standard deviation 0.03.
    assert np.mean((found[:, 0] <= y) & (y <= found[:, 1])) > 0.9 - 4 * 0.03


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m, x, y: m.predict_interval(x, 1.0), "coverage: 1 is not between 0 and 1"),
        (lambda m, x, y: m.predict_quantiles(x, 0.001), "num_samples = 300 networks tell; set it to 1000 or more"),
        (lambda m, x, y: m.predict_quantiles(x, [0.5, 2]), "alpha: 2 is not between 0 and 1"),
        (lambda m, x, y: m.log_prob(x, y[:-1]), r"y: expected finite numbers of shape \(13,\)"),
        (lambda m, x, y: m.sample(x, 0), "n: must be at least 1, not 0"),
        (lambda m, x, y: m.predict(x[:, :1]), "X has 1 features, but VariationalRegressor is expecting 2"),
        (lambda m, x, y: m.fit(np.where(x > 2, np.nan, x), y), "Input X contains NaN"),
        (lambda m, x, y: m.fit(x.astype(str) + "a", y), "could not convert string to float"),
        (lambda m, x, y: m.fit(x, y[1:]), "inconsistent numbers of samples"),
        (lambda m, x, y: m.fit(x[:1], y[:1]), "Found array with 1 sample"),
        (lambda m, x, y: m.fit(x, np.ones(13)), "target 0 is 0 in every row; there is nothing to learn"),
        (lambda m, x, y: m.predict_interval(x, "0.9"), "coverage: expected a finite number, not '0.9'"),
        (
            lambda m, x, y: m.set_params(validation_fraction=1.0).fit(x, y),
            "validation_fraction: must be at least 0 and",
        ),
        (lambda m, x, y: m.set_params(steps=-1).fit(x, y), "steps: must be at least 1, not -1"),
        (lambda m, x, y: m.set_params(noise="loud").fit(x, y), "noise: 'loud' is not one of heteroscedastic"),
    ],
)
def test_a_mistake_is_one_sentence(call, sentence):
    x, y = drawn(13, 9)
    model = VariationalRegressor(random_state=0, steps=20).fit(x, y)
    with pytest.raises(ValueError, match=sentence):
        call(model, x, y)


def test_a_coverage_that_calibration_data_cannot_give_is_refused():
    x, y = drawn(13, 9)
    model = VariationalRegressor(random_state=0, steps=20).fit(x, y).conformal(x, y)
    model.predict_interval(x, 0.92)
    with pytest.raises(ValueError, match="cannot be guaranteed by 13 calibration data; it needs 19 or more"):
        model.predict_interval(x, 0.95)


# ------------------------------------------------------------------------------------- the shared trainer and its data

CONFIG = {
    "data": {"name": "li", "size": 40, "test_size": 30},
    "model": {"name": "regression", "hidden": [6], "dropout": 0.25},
    "train": {"epochs": 4, "batch_size": 16},
}


def test_a_run_resumes_bit_for_bit_and_is_opened_again(tmp_path):
    settings = read_settings(CONFIG)
    whole = train(settings, tmp_path / "whole", verbose=False)
    train(read_settings(CONFIG, ["train.epochs=2"]), tmp_path / "part", verbose=False)
    train(settings, tmp_path / "part", resume=True, verbose=False)
    states = [vae.load(tmp_path / name).state_dict() for name in ("whole", "part")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert {"elbo", "log_p_y_given_x", "kl"} < whole.history[-1].keys()
    model = vae.load(tmp_path / "whole")
    assert int(model.num_data) == 40
    assert model.targets == 1


@pytest.mark.parametrize("form", ["never", "always"])
def test_a_compiled_step_of_a_regression_is_the_plain_one(form, tmp_path):
    raw = {**CONFIG, "model": {"name": "regression", "hidden": [6]}}
    run = train(read_settings(raw, [f"train.compile={form}"]), tmp_path / "x", verbose=False)
    plain = train(read_settings(raw, ["train.compile=never"]), None, verbose=False)
    assert run.history[-1]["elbo"] == pytest.approx(plain.history[-1]["elbo"], rel=1e-4)


def test_a_grid_of_regressions_has_its_table(tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text(json.dumps({**CONFIG, "train": {"epochs": 1, "batch_size": 16}}))
    assert (
        sweep.main(["--config", str(file), "--grid", "model.weights=point,variational", "--out", f"{tmp_path}/x"]) == 0
    )
    table = (tmp_path / "x" / "sweep.md").read_text()
    assert "log p(y|x)".replace("|", r"\|") in table
    assert "log p(x" not in table


def test_lis_data_are_those_of_its_figures():
    """Values of its own code by the same seed, those of another generator, and of the algorithm as printed."""
    for generator, printed, raw, first, low_high in (
        (np.random.RandomState(123), False, (3.345829, 3.081416), (-24.784955, 1.781614), (-4.540254, 2.576434)),
        (np.random.default_rng(0), False, (2.904742, 3.870032), (-24.780920, 1.883439), (-3.164086, 2.677911)),
        (np.random.default_rng(0), True, (8.751529, 41.985413), (-209.224313, 2.648479), (-2.026468, 2.963823)),
    ):
        x, y = li_data(generator, 150, printed)
        z = (y - y.mean()) / y.std()
        assert (y.mean(), y.std()) == pytest.approx(raw, abs=1e-6)
        assert (x[0], z[0]) == pytest.approx(first, abs=1e-6)
        assert (z.min(), z.max()) == pytest.approx(low_high, abs=1e-6)
    data = vae.load_data("li", seed=123)
    assert data.train.y[0, 0].item() == pytest.approx(1.781614, abs=1e-5)
    assert len(data.test) == 1000
    x, y = li_data(np.random.default_rng(1), 200_000)
    mean, std = li_law(x)
    z = (y - mean) / std
    assert abs(z.mean()) < 4.5 / math.sqrt(len(z))
    assert abs(z.var() - 1) < 4.5 * math.sqrt(2 / len(z))


def csv_file(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_text(text)
    return str(path)


def test_a_csv_file_is_read_by_its_columns(tmp_path):
    path = csv_file(tmp_path, "size,price,rooms\n" + "30,100,1\n50,170,2\n" * 10)
    data = vae.load_data("csv", path=path, target="price", test_size=4)
    assert data.shape == (2,)
    assert data.targets == 1
    assert len(data.train) == 16
    assert set(map(tuple, torch.cat([data.train.x, data.train.y], 1).tolist())) == {(30, 1, 100), (50, 2, 170)}
    assert vae.load_data("csv", path=path, target=["price", "rooms"]).targets == 2
    assert vae.load_data("csv", path=path).shape == (3,)


def test_a_run_on_a_table_is_evaluated_on_another(tmp_path, capsys):
    rows = "".join(
        f"{size},{3 * size + noise},{size % 4}\n" for size, noise in zip(range(40), drawn(40, 1)[1], strict=True)
    )
    raw = {"data": {"name": "csv", "path": csv_file(tmp_path, "size,price,rooms\n" + rows), "target": "price"}}
    train(read_settings({**raw, "model": CONFIG["model"], "train": {"epochs": 2}}), tmp_path / "run", verbose=False)
    other = tmp_path / "other.csv"
    other.write_text("size,price,rooms\n" + rows)
    assert evaluate.main([str(tmp_path / "run"), "--data", str(other), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["log_density"]["n"] == 40
    other.write_text("size,price\n1,2\n")
    assert evaluate.main([str(tmp_path / "run"), "--data", str(other)]) == 2
    assert "has 1 columns beside the target, and the model is of 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "target", "sentence"),
    [
        ("a,b\n1,2\n3,red\n", "b", "column b, row 2: is 'red', which is no finite number"),
        ("a,b\n1,2\n,4\n", "b", "column a, row 2: is missing"),
        ("a,b\n1,2\n3,nan\n", "b", "column b, row 2: is 'nan', which is no finite number"),
        ("a,b\n1,2\n3\n", "b", "row 2 has 1 values, and the first line names 2 columns"),
        ("a,a\n1,2\n", "a", "column names, all different"),
        ("", "a", "needs a first line of column names"),
        ("price,b\n1,2\n3,4\n", "prise", "has no column prise; did you mean price?"),
        ("a\n1\n2\n", "a", "no other column than the target"),
    ],
)
def test_a_csv_file_that_cannot_be_used_is_named_by_column_and_row(text, target, sentence, tmp_path):
    with pytest.raises(DataError, match=sentence):
        vae.load_data("csv", path=csv_file(tmp_path, text), target=target)


def test_targets_of_an_npz_file(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=X[:4], y_test=Y[:4])
    raw = {"data": {"name": "npz", "path": str(tmp_path / "a.npz")}, "model": "regression", "train": {"epochs": 1}}
    run = train(read_settings(raw), None, verbose=False)
    assert run.model.targets == T
    words = vae.Data.from_arrays(X, ["a", "b"] * 5 + ["a"])
    with pytest.raises(DataError, match="targets y are words"):
        vae.fit(model_of(), words, epochs=1, verbose=False)
    with pytest.raises(DataError, match="y: row 3 is not finite"):
        vae.Data.from_arrays(X, np.where(np.arange(N) == 3, np.nan, 0.5))


@pytest.mark.parametrize(
    ("change", "error", "sentence"),
    [
        ({"objective": "iwae"}, ConfigError, "iwae is of VAEs; a regression is trained by sgvb_b"),
        ({"model": {"name": "regresion"}}, ConfigError, "'regresion' is not one of vae, regression; did you mean"),
        ({"model": {"name": "regression", "latent_dim": 2}}, ConfigError, "model.latent_dim: no such setting"),
        (
            {"data": {"name": "digits"}, "model": {"name": "vae"}},
            ConfigError,
            "model.latent_dim: this setting is required",
        ),
        ({"model": {"name": "regression", "dropout": 1.0}}, ConfigError, "must be at least 0 and at most 0.99"),
    ],
)
def test_a_config_of_a_regression_is_checked(change, error, sentence):
    with pytest.raises(error, match=sentence):
        read_settings({**CONFIG, **change})


def test_a_regression_without_targets_is_refused(tmp_path):
    np.savez(tmp_path / "a.npz", x=X)
    raw = {"data": {"name": "npz", "path": str(tmp_path / "a.npz")}, "model": "regression"}
    with pytest.raises(ConfigError, match="regression needs targets beside the data"):
        train(read_settings(raw), None, verbose=False)
    with pytest.raises(UsageError, match="y has 2 targets per datum, and the model is of 1"):
        vae.fit(Regression((D,), 1), vae.Data.from_arrays(X, Y), epochs=1, verbose=False)


def test_networks_are_drawn_by_their_number():
    model = model_of(layers="all")
    few, many = networks(model, 3, 5), networks(model, 9, 5)
    assert all(torch.equal(few[name], many[name][:3]) for name in few)


# ------------------------------------------------------------------------------------- Li 2021


@pytest.mark.parametrize(("m", "v"), [(0.0, 0.0625), (1.2, 0.3), (-0.4, 1.44)])
def test_the_best_standard_deviation_of_lis_objective_is_the_root_of_the_residuals(m, v):
    """At s^4 = E r^2 and mu = m / (1 + s^2) the gradient of its mean is 0: two data at m +- sqrt(v) have that mean and
    variance, and the objective is quadratic in eps, so eps = +-1 gives its mean."""
    t = brentq(lambda t: t**2 - v - m**2 * t**2 / (1 + t) ** 2, 1e-3, 10)  # s^2
    model = Regression((1,), 1, hidden=(), noise="constant", weights="point", standardise=False).double()
    with torch.no_grad():
        model.mean[1].weight.zero_()
        model.mean[1].bias.fill_(m / (1 + t))
        model.raw_std.fill_(math.log(math.expm1(math.sqrt(t) - SMALLEST_STD)))
    x, y = doubles(np.zeros((2, 1)), m + math.sqrt(v) * np.array([[-1.0], [1.0]]))
    for sign in (-1.0, 1.0):
        estimate, _ = Published()(model, Batch(x, y), {"eps": torch.full((1, 2, 1), sign).double()}, {}, 0)
        estimate.surrogate.sum().backward()
    assert model.mean[1].bias.grad.abs().max() < 1e-10
    assert model.raw_std.grad.abs().max() < 1e-10


def test_the_law_of_a_sample_is_that_of_its_data():
    """Standardised y less its mean, over its standard deviation: standard normal; false-alarm rate 1e-5."""
    sample = Sample.drawn(3)
    mean, std = sample.truth(sample.x_test)
    z = (sample.y_test[:, 0].double().numpy() - mean) / std
    assert abs(z.mean()) < 4.5 / math.sqrt(1000)
    assert abs(z.var() - 1) < 4.5 * math.sqrt(2 / 1000)
    assert abs(sample.y.mean()) < 1e-6


def test_the_linear_reference_is_the_conjugate_posterior():
    """With known noise that differs from datum to datum: the mean and variance of y given y_1..n by one joint normal."""
    sample, at_x = Sample.drawn(4, 20), torch.tensor([[-30.0], [10.0]])
    found = METHODS["Bayesian linear regression, true noise"](sample, 0, True)(at_x)
    x = np.concatenate([sample.x[:, 0], at_x[:, 0]]).astype(float)
    design = np.stack([np.ones(22), x / 25], 1)
    joint = design @ design.T + np.diag(np.concatenate([sample.truth(sample.x)[1], sample.truth(at_x)[1]]) ** 2)
    gain = joint[20:, :20] @ np.linalg.inv(joint[:20, :20])
    np.testing.assert_allclose(found.mean[:, 0], gain @ sample.y[:, 0].double().numpy(), rtol=1e-6)
    variance = np.diag(joint[20:, 20:] - gain @ joint[:20, 20:])
    np.testing.assert_allclose(found.variances()["total"][:, 0], variance, rtol=1e-6)


@pytest.mark.parametrize("measure", [measures.aleatoric, measures.epistemic, measures.gradients, measures.choices])
def test_what_is_measured_of_li_depends_on_the_seed_alone(measure):
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(measure(Made(0, True, False))[0])
    assert found[0] == found[1]
