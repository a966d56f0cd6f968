"""The VAE as a scikit-learn estimator: its conventions, its density in the units of X, its p-values."""

import math
import pickle

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.estimator_checks import check_estimator

import vae
from vae import VAETransformer

QUICK = {"hidden": (16,), "epochs": 3, "random_state": 0}


def table(n=400, seed=0):
    """Five columns of two latent numbers, of very different scales."""
    generator = np.random.default_rng(seed)
    z = generator.normal(size=(n, 2))
    x = np.tanh(z @ np.random.default_rng(9).normal(size=(2, 5))) + 0.1 * generator.normal(size=(n, 5))
    return x * [1e-3, 1, 5, 100, 1] + [0, 3, 0, -50, 0]


@pytest.fixture(scope="module")
def fitted():
    return VAETransformer(2, hidden=(32,), epochs=150, validation_fraction=0.3, random_state=0).fit(table(1000))


@pytest.mark.filterwarnings("ignore")
def test_it_passes_the_checks_of_scikit_learn():
    found = check_estimator(VAETransformer(epochs=2, random_state=0), on_fail=None, on_skip=None)
    assert [r["check_name"] for r in found if r["status"] == "failed"] == []
    assert sum(r["status"] == "passed" for r in found) >= 45


def test_the_density_is_that_of_x_as_given():
    """A change of units by c moves log p(x) by -log |c| a column, exactly; so does leaving standardisation to others."""
    x, c = table(), np.array([2.0, 1e3, 0.5, 1e-4, 7.0])
    ours, other = (VAETransformer(**QUICK).fit(of) for of in (x, x * c))
    np.testing.assert_allclose(other.score_samples(x * c), ours.score_samples(x) - np.log(c).sum(), atol=2e-4)


def test_the_two_estimates_lie_below_and_at_quadrature(fitted):
    model = pickle.loads(pickle.dumps(fitted)).set_params(estimate="importance", num_samples=4000)
    x = table(40, seed=5)
    inside = torch.from_numpy(model.scaler_.transform(x))
    exact = vae.measure(model.model_, inside, vae.Quadrature())["log_p_x"] - math.log(model.scaler_.scale_.prod())
    np.testing.assert_allclose(model.score_samples(x), exact, atol=0.1)
    assert fitted.set_params(num_samples=1000).score(x) < exact.mean()


def test_components_are_ordered_by_kl_everywhere(fitted):
    model, x = pickle.loads(pickle.dumps(fitted)), table(20, seed=1)
    assert (np.diff(model.kl_per_component_) <= 0).all()
    mean, std = model.posterior(x)
    np.testing.assert_array_equal(model.transform(x), mean)
    back = model.inverse_transform(mean)
    inside = torch.from_numpy(model.scaler_.transform(x))
    np.testing.assert_allclose(back, model.scaler_.inverse_transform(model.model_.reconstruct(inside).numpy()))
    model.order_ = model.order_.flip(0)
    np.testing.assert_array_equal(model.transform(x), mean[:, ::-1])
    np.testing.assert_allclose(model.inverse_transform(mean[:, ::-1]), back)
    assert std.shape == mean.shape == (20, 2)


def test_it_has_learned_the_table(fitted):
    """Reconstructions explain nine tenths of each column; samples have its moments, to a fifth of a deviation."""
    x = table(500, seed=2)
    left = ((fitted.inverse_transform(fitted.transform(x)) - x) ** 2).mean(0) / x.var(0)
    assert (left < 0.15).all()
    drawn = fitted.sample(2000)
    assert (abs(drawn.mean(0) - x.mean(0)) / x.std(0) < 0.2).all()
    np.testing.assert_allclose(drawn.std(0), x.std(0), rtol=0.2)


def test_p_values_of_rows_like_those_of_the_training_are_uniform(fitted):
    """Of 2,000 new rows a share alpha has a p-value of at most alpha: to 4 standard errors of the 300 rows held out and
    the 2,000 (a false-alarm rate of 2e-4 for the three)."""
    new, n, m = table(2000, seed=3), len(fitted.held_out_scores_), 2000
    p = fitted.outlier_p_value(new)
    for alpha in (0.05, 0.2, 0.5):
        error = math.sqrt(alpha * (1 - alpha) * (1 / n + 1 / m))
        assert abs((p <= alpha).mean() - alpha) < 4 * error
    strange = new[:50] + np.array([0, 0, 60, 0, 0])
    assert (fitted.outlier_p_value(strange) <= 1 / (1 + n)).all()
    assert (fitted.predict(strange) == -1).all()
    np.testing.assert_array_equal(fitted.predict(new) == -1, p <= fitted.alpha)


def test_p_values_count_the_rows_held_out(fitted):
    model = pickle.loads(pickle.dumps(fitted))
    scores = np.sort(model.score_samples(table(9, seed=4)))
    model.held_out_scores_ = scores
    np.testing.assert_allclose(np.sort(model.outlier_p_value(table(9, seed=4))), np.arange(2, 11) / 10)


def test_zeros_and_ones_are_bernoulli():
    x = (table() > table().mean(0)).astype(float)
    model = VAETransformer(**QUICK).fit(x)
    assert model.likelihood_ == "bernoulli"
    assert (model.score_samples(x) < 0).all()
    assert set(np.unique(model.sample(50))) <= {0.0, 1.0}
    back = model.inverse_transform(model.transform(x))
    assert ((back > 0) & (back < 1)).all()


@pytest.mark.parametrize("likelihood", ["negative_binomial", "continuous_bernoulli"])
def test_other_likelihoods(likelihood):
    x = np.random.default_rng(0).poisson(4.0, (100, 3)).astype(float)
    x = x if likelihood == "negative_binomial" else x / x.max()
    model = VAETransformer(likelihood=likelihood, **QUICK).fit(x)
    assert np.isfinite(model.score_samples(x)).all()
    assert model.sample(5).shape == (5, 3)


def test_it_works_in_pipelines_and_searches():
    x, y = load_digits(return_X_y=True)
    x, y = x[:300], y[:300]
    pipeline = make_pipeline(VAETransformer(4, **QUICK), LogisticRegression(max_iter=50)).fit(x, y)
    assert pipeline.predict(x).shape == (300,)
    search = GridSearchCV(VAETransformer(**QUICK), {"latent_dim": [1, 3]}, cv=2).fit(x)
    assert search.best_params_["latent_dim"] in (1, 3)
    copied = clone(search.best_estimator_).fit(x)
    np.testing.assert_array_equal(copied.transform(x), clone(copied).fit(x).transform(x))
    assert copied.get_feature_names_out().tolist() == [f"vaetransformer{j}" for j in range(copied.latent_dim)]
    again = pickle.loads(pickle.dumps(copied))
    np.testing.assert_array_equal(again.score_samples(x), copied.score_samples(x))


def test_partial_fit_goes_on():
    x = table()
    model = VAETransformer(**QUICK).partial_fit(x)
    first = model.score(x)
    for _ in range(30):
        model.partial_fit(x)
    assert model.score(x) > first + 0.5
    twice = [VAETransformer(**QUICK).partial_fit(x).partial_fit(x) for _ in range(2)]
    np.testing.assert_array_equal(twice[0].transform(x), twice[1].transform(x))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(twice[0])).partial_fit(x).transform(x),
                                  twice[1].partial_fit(x).transform(x))  # fmt: skip
    with pytest.raises(ValueError, match="rows held out in fit"):
        model.outlier_p_value(x)


def test_it_stops_early():
    model = VAETransformer(hidden=(64,), epochs=500, patience=3, validation_fraction=0.5, random_state=0).fit(table(60))
    assert model.history_[-1]["epoch"] < 500


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"latent_dim": 0}, "latent_dim: must be at least 1, not 0"),
        ({"likelihood": "normal"}, "likelihood: 'normal' is not one of auto, gaussian"),
        ({"hidden": (0,)}, "hidden"),
        ({"activation": "rely"}, "did you mean relu"),
        ({"estimate": "elbo"}, "estimate: 'elbo' is not one of bound, importance"),
        ({"likelihood": "bernoulli"}, "bernoulli needs 0 or 1, but the data of arrays are real"),
    ],
)
def test_a_parameter_that_does_not_fit_is_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        VAETransformer(**{**QUICK, **options}).fit(table())
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "x", [[["a", "b"]] * 5, scipy.sparse.eye(5).tocsr(), [[1.0, np.nan]] * 5, np.ones((4, 4, 4)), np.ones(4)]
)
def test_what_is_no_table_is_refused(x):
    with pytest.raises((ValueError, TypeError)):
        VAETransformer(**QUICK).fit(x)


def test_codes_and_rows_of_another_width_are_refused(fitted):
    with pytest.raises(ValueError, match="3 features, but VAETransformer is expecting 5"):
        fitted.transform(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"finite numbers of shape \(N, 2\), not \(2, 3\)"):
        fitted.inverse_transform(np.ones((2, 3)))


def test_too_few_rows_held_out_for_alpha_is_a_warning():
    x = table(40)
    model = VAETransformer(**QUICK).fit(x)
    with pytest.warns(UserWarning, match="below the smallest p-value that 4 rows held out can tell"):
        model.predict(x)
