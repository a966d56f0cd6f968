"""The linear models against scikit-learn, against one another, and as the optimum that AEVB has to reach."""

import math
import warnings

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn import decomposition as sk

import vae
from tests.oracles import numbers, z_score
from tests.problems import LinearGaussian as Problem
from tests.problems import probabilistic_pca as optimum
from vae.errors import UsageError
from vae.models import EM, PCA, LinearGaussian, NotConverged, factor_analysis, pca
from vae.models import probabilistic_pca as ppca

pytestmark = pytest.mark.usefixtures("float64")
N, D, J = 203, 10, 3
TIGHT = EM(tolerance=1e-14)
LINEAR_MODELS = {"pca": pca, "probabilistic_pca": ppca, "factor_analysis": factor_analysis}


def data(n=N, d=D, j=J, seed=0):
    """Factors of different sizes, noise of different sizes, and a mean."""
    loadings, noise = numbers(d, j, seed=seed + 1) * torch.arange(j, 0, -1.0).sqrt(), torch.linspace(0.7, 1.3, d)
    return numbers(n, j, seed=seed + 2) @ loadings.T + noise * numbers(n, d, seed=seed + 3) + torch.arange(float(d))


X = data()


def angle(U, V):
    """The largest principal angle between the columns of two matrices, degrees."""
    return np.degrees(subspace_angles(U.numpy(), V.numpy()).max())


def covariance(model):
    return model.W @ model.W.T + torch.diag(model.variance.expand(len(model.mean)))


# ------------------------------------------------------------------------------------- against scikit-learn


@pytest.mark.parametrize("em", [None, TIGHT], ids=["svd", "em"])
@pytest.mark.parametrize("x", [X, data(6, 12, 2)], ids=["N > D", "N < D"])
def test_pca_is_scikit_learns(x, em):
    ours, theirs = pca(x, J, em=em), sk.PCA(J, svd_solver="full").fit(x)
    sign = torch.sign((ours.W.T * torch.from_numpy(theirs.components_)).sum(1))
    # An angle is of the order of the root of what the share explained lacks: 1e-14 there is 1e-7 times a condition here.
    tight = {"rtol": 1e-5, "atol": 1e-5} if em else {"rtol": 1e-11, "atol": 1e-11}
    torch.testing.assert_close(ours.W.T, sign[:, None] * torch.from_numpy(theirs.components_), **tight)
    torch.testing.assert_close(ours.variances * len(x) / (len(x) - 1), torch.from_numpy(theirs.explained_variance_))
    torch.testing.assert_close(ours.transform(x), sign * torch.from_numpy(theirs.transform(x)), **tight)
    back = torch.from_numpy(theirs.inverse_transform(theirs.transform(x)))
    torch.testing.assert_close(ours.reconstruct(x), back, **tight)


@pytest.mark.parametrize("j", [1, J, D - 1])
def test_log_p_x_of_probabilistic_pca_is_scikit_learns(j):
    """Theirs has the covariance divided by N - 1, and is no maximum: the same model at the other scale agrees."""
    model, theirs = ppca(X, j), sk.PCA(j, svd_solver="full").fit(X)
    other = N / (N - 1)
    scaled = LinearGaussian(model.mean, model.W * math.sqrt(other), model.variance * other)
    torch.testing.assert_close(scaled.log_p_x(X), torch.from_numpy(theirs.score_samples(X)))
    assert model.log_p_x(X).mean() > theirs.score(X)


def test_factor_analysis_is_scikit_learns():
    model = factor_analysis(X, J, em=EM(tolerance=1e-13))
    theirs = sk.FactorAnalysis(J, tol=1e-12, max_iter=100_000, svd_method="lapack").fit(X)
    torch.testing.assert_close(model.variance, torch.from_numpy(theirs.noise_variance_), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.log_p_x(X), torch.from_numpy(theirs.score_samples(X)), rtol=1e-5, atol=1e-5)
    assert model.log_p_x(X).mean().item() == pytest.approx(theirs.score(X), abs=1e-9)
    torch.testing.assert_close(covariance(model), torch.from_numpy(theirs.get_covariance()), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------- EM


@pytest.mark.parametrize("x", [X, data(6, 12, 2)], ids=["N > D", "N < D"])
def test_em_of_probabilistic_pca_comes_to_the_closed_form(x):
    closed, em = ppca(x, J), ppca(x, J, em=TIGHT)
    torch.testing.assert_close(em.W, closed.W, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(em.variance, closed.variance, rtol=1e-8, atol=0)
    torch.testing.assert_close(em.log_p_x(x), closed.log_p_x(x), rtol=1e-5, atol=1e-5)
    assert em.trace[-1].item() == pytest.approx(closed.log_p_x(x).mean().item(), abs=1e-10)


@pytest.mark.parametrize("name", LINEAR_MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_em_never_falls_and_its_trace_is_of_the_model_that_it_gives(name, seed):
    model = LINEAR_MODELS[name](X, 2, em=EM(seed=seed))
    assert len(model.trace) > 5
    assert model.trace.diff().min() > -1e-12
    if isinstance(model, PCA):
        left = (X - model.reconstruct(X)).square().sum() / (X - X.mean(0)).square().sum()
        assert model.trace[-1].item() == pytest.approx(1 - left.item(), abs=1e-12)
    else:
        assert model.trace[-1].item() == pytest.approx(model.log_p_x(X).mean().item(), abs=1e-12)
        assert model.trace[-1] > model.trace[0] + 1


@pytest.mark.parametrize("name", LINEAR_MODELS)
def test_em_starts_where_its_seed_says(name):
    starts = [LINEAR_MODELS[name](X, 2, em=EM(seed=seed)).trace[0].item() for seed in (0, 0, 1)]
    assert starts[0] == starts[1] != starts[2]


def test_closed_forms_have_no_trace():
    assert len(pca(X, 2).trace) == len(ppca(X, 2).trace) == 0


@pytest.mark.parametrize("name", LINEAR_MODELS)
def test_em_that_does_not_converge_says_so(name):
    fit = LINEAR_MODELS[name]
    with pytest.warns(NotConverged, match="step 3 still gained .* raise max_steps") as caught:
        model = fit(X, 2, em=EM(max_steps=3))
    assert caught[0].filename == __file__
    assert len(model.trace) == 4  # the start, and the model after each step
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = fit(X, 2, em=EM(max_steps=3, tolerance=1e3))
    assert len(again.trace) == 2


def test_more_factors_never_fit_worse_and_factor_analysis_never_worse_than_probabilistic_pca():
    fits = {name: [LINEAR_MODELS[name](X, j, em=EM()).trace[-1] for j in (1, 2, 3)] for name in LINEAR_MODELS}
    assert all((torch.stack(values).diff() > 0).all() for values in fits.values())
    for shared, own in zip(fits["probabilistic_pca"], fits["factor_analysis"], strict=True):
        assert own > shared + 0.05


# ------------------------------------------------------------------------------------- the closed forms


@pytest.mark.parametrize("j", range(1, D + 1))
def test_maximum_of_probabilistic_pca(j):
    model = ppca(X, j)
    if j < D:
        best, s2, values = optimum(X, j)
        torch.testing.assert_close(model.variance, s2)
        torch.testing.assert_close(model.W.T @ model.W, torch.diag(values[:j] - s2), rtol=1e-10, atol=1e-10)
    else:  # a full covariance: the Gaussian's own maximum
        best = torch.distributions.MultivariateNormal(X.mean(0), torch.cov(X.T, correction=0)).log_prob(X).mean()
        assert ppca(X, D, em=TIGHT).log_p_x(X).mean().item() == pytest.approx(best.item(), abs=1e-6)
    assert model.log_p_x(X).mean().item() == pytest.approx(best.item(), abs=1e-11)


def test_pca_of_all_dimensions_loses_nothing():
    for em in (None, EM()):
        torch.testing.assert_close(pca(X, D, em=em).reconstruct(X), X, rtol=1e-12, atol=1e-12)


# A shared and an own variance; W in no special rotation, as a decoder has it.
PROBLEM = Problem.random(D, J)
MODELS = {
    "shared": LinearGaussian(PROBLEM.b, PROBLEM.W, torch.tensor(PROBLEM.s2)),
    "own": LinearGaussian(PROBLEM.b, PROBLEM.W, torch.linspace(0.2, 2.0, D)),
}


@pytest.mark.parametrize("name", MODELS)
class TestModel:
    def test_log_p_x(self, name):
        model, W = MODELS[name], PROBLEM.W
        C = W @ W.T + torch.diag(model.variance.expand(D))
        torch.testing.assert_close(covariance(model), C)  # whatever the rotation of W
        expected = torch.distributions.MultivariateNormal(PROBLEM.b, C).log_prob(X)
        torch.testing.assert_close(model.log_p_x(X), expected, rtol=1e-11, atol=1e-11)

    def test_posterior(self, name):
        model = MODELS[name]
        precision = torch.eye(J) + model.W.T @ (model.W / model.variance.expand(D)[:, None])
        mean = (X - model.mean) / model.variance @ model.W @ torch.linalg.inv(precision)
        q = model.posterior(X)
        torch.testing.assert_close(q.mean, mean)
        torch.testing.assert_close(model.transform(X), mean)
        torch.testing.assert_close(model.posterior_covariance, torch.linalg.inv(precision))
        torch.testing.assert_close(torch.diag(q.std.square()), torch.linalg.inv(precision), rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(model.reconstruct(X), model.likelihood(mean[None]).mean[0])

    def test_bayes_rule_at_every_z(self, name):
        """log p(x, z) - log p(z|x) is log p(x), wherever z is: estimator A at the exact posterior has no variance."""
        model = MODELS[name]
        assert model.noise[:2] == ("normal", (J,))
        z, log_q = model.posterior(X).transform_and_log_prob(numbers(5, N, J))
        weights = model.log_joint(X, z) - log_q.sum(2)  # (5, N)
        torch.testing.assert_close(weights, model.log_p_x(X).expand(5, N), rtol=1e-11, atol=1e-11)

    def test_moments_of_samples(self, name):
        """Each moment within 4.5 standard errors: a false alarm in 3000 runs, and the seed is fixed."""
        model, n = MODELS[name], 40_000
        x = model.sample(numbers(n, J + D, seed=5)) - model.mean
        C = covariance(model)
        for d in range(D):
            assert abs(z_score(x[:, d], 0.0)) < 4.5
            for e in range(d + 1):
                assert abs(z_score(x[:, d] * x[:, e], C[d, e].item())) < 4.5


def test_elbo_of_the_vae_with_the_posterior_as_encoder_is_log_p_x():
    """A diagonal posterior has no gap in the rotation that W is kept in."""
    model = MODELS["shared"]
    precision = 1 / model.posterior_covariance.diagonal()
    A = (model.W / model.variance / precision).T
    same = Problem(model.W, model.mean, model.variance.item(), A, -A @ model.mean, 1 / precision)
    torch.testing.assert_close(same.elbo(X), model.log_p_x(X), rtol=1e-11, atol=1e-11)


def test_columns_are_in_order_and_of_one_sign():
    for model in (*MODELS.values(), ppca(X, J), pca(X, J), factor_analysis(X, J)):
        assert (model.W.gather(0, model.W.abs().argmax(0, keepdim=True)) > 0).all()
    assert (pca(X, J).variances.diff() < 0).all()
    assert all((model.posterior_covariance.diagonal().diff() > 0).all() for model in MODELS.values())


# ------------------------------------------------------------------------------------- what cannot be fitted


def test_constant_and_wholly_explained_elements_are_bounded_by_the_floor():
    x = torch.cat([X, torch.full((N, 1), 0.5), X[:, :1]], 1)
    model = factor_analysis(x, J, em=EM(tolerance=1e-4))
    assert (model.variance >= (1 / 510) ** 2 * (1 - 1e-12)).all()
    assert model.variance[-2].item() == pytest.approx((1 / 510) ** 2)
    assert torch.isfinite(model.log_p_x(x)).all()
    assert torch.isfinite(ppca(x, J).log_p_x(x)).all()  # a shared variance needs no floor


NAN = X.clone()
NAN[4, 2] = float("nan")


@pytest.mark.parametrize("name", LINEAR_MODELS)
@pytest.mark.parametrize(
    ("x", "j", "message"),
    [
        (X[:1], 2, "at least two data, not 1"),
        (X, D + 1, "from 1 to the 10 elements of a datum, not 11"),
        (X, 0, "from 1 to the 10 elements of a datum, not 0"),
        (X, 2.0, "not 2.0"),
        (NAN, 2, "x has values that are not finite"),
        (X[0], 2, r"shape \(N, D\), not \(10,\)"),
        (X[:, None], 2, r"x.flatten\(1\)"),
        (X[:, :0], 1, r"not \(203, 0\)"),
        ("digits", 2, "a tensor or an array, not str"),
    ],
)
def test_bad_input_is_refused(name, x, j, message):
    with pytest.raises(UsageError, match=message):
        LINEAR_MODELS[name](x, j)


@pytest.mark.parametrize("em", [None, EM()], ids=["closed", "em"])
def test_data_in_too_few_directions_are_refused(em):
    few = X[:4]  # vary in three directions of ten
    assert pca(few, 3, em=em).W.shape == (D, 3)
    assert ppca(few, 2, em=em).variance > 0
    with pytest.raises(UsageError, match="vary in 3 directions, fewer than the 4"):
        pca(few, 4, em=em)
    with pytest.raises(UsageError, match="no maximum; give at most 2"):
        ppca(few, 3, em=em)
    with pytest.raises(UsageError, match="vary in 0 directions"):
        ppca(torch.ones(5, 3), 1, em=em)


def test_misuse_is_named():
    with pytest.raises(UsageError, match="PCA defines no density"):
        pca(X, 2).log_p_x(X)
    with pytest.raises(UsageError, match=r"\(N, 10\), not \(203, 6\)"):
        ppca(X, 2).log_p_x(X[:, :6])
    with pytest.raises(UsageError, match="noise must have shape"):
        ppca(X, 2).sample(numbers(5, D))
    with pytest.raises(UsageError, match="floor: .* below"):
        factor_analysis(1e-4 * X, 2)
    with pytest.raises(UsageError, match="variance must be greater than 0"):
        LinearGaussian(X[0], X[:2].T, torch.tensor(0.0))
    with pytest.raises(UsageError, match="must have shapes"):
        LinearGaussian(X[0], X[:2], torch.tensor(1.0))
    with pytest.raises(vae.VaeError, match="max_steps"):
        EM(max_steps=0)


# ------------------------------------------------------------------------------------- AEVB comes to the same optimum


def trained_linear_vae(data, J, **train):
    """A VAE of linear networks and one shared variance, trained by AEVB with estimator B; and its marginal p(x)."""
    size = math.prod(data.shape)
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(size, 2 * J))
    model = vae.VAE(encoder, torch.nn.Linear(J, size), vae.Gaussian(data.shape, variance="shared"))
    vae.fit(model, data, objective="sgvb_b", schedule="cosine", seed=0, verbose=False, **train)
    with torch.no_grad():
        z = torch.zeros(1, 1, J).to(model.decoder.weight)
        variance = model.likelihood(z).std.max().square()
    return model, LinearGaussian(model.decoder.bias, model.decoder.weight, variance)


ADAM = {"name": "adam", "lr": 0.015}


def compare_with_the_optimum(name, **train):
    """Mean log p(x) of training data, nats a datum (closed form, AEVB), the ELBO, and the largest angle, degrees."""
    data, J = vae.load_data(name), 4
    x = data.train.images(dtype=torch.float64).flatten(1)
    model, reached = trained_linear_vae(data, J, **train)
    best = ppca(x, J)
    elbo = vae.evaluate_bound(model, data.train, name="train", num_samples=16).elbo.mean().item()
    values = [m.log_p_x(x).mean().item() for m in (best, reached)]
    print(
        f"{name}, J = {J}: closed form {values[0]:.4f}, AEVB {values[1]:.4f} (ELBO {elbo:.4f}), {angle(best.W, reached.W):.3f} degrees"
    )
    return *values, elbo, angle(best.W, reached.W)


def test_aevb_comes_to_the_optimum_of_probabilistic_pca():
    """Digits, some pixels of which are constant: the shared variance keeps the likelihood bounded."""
    best, reached, elbo, degrees = compare_with_the_optimum("digits", epochs=200, batch_size=100, optimizer=ADAM)
    assert best - 0.01 < reached < best + 1e-6
    assert reached - 0.05 < elbo < reached + 0.01  # no gap is left to a diagonal posterior
    assert degrees < 1


@pytest.mark.slow
@pytest.mark.real_data
def test_aevb_comes_to_the_optimum_on_faces():
    best, reached, elbo, degrees = compare_with_the_optimum("frey_face", epochs=1500, batch_size=100, optimizer=ADAM)
    assert best - 0.1 < reached < best + 1e-6
    assert reached - 0.2 < elbo < reached + 0.01
    assert degrees < 1
