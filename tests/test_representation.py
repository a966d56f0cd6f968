"""What codes are worth: known answers for classifiers, auto-encoders and moments; nothing is learned from the test split."""

import json
import math

import numpy as np
import pytest
import torch
from scipy.linalg import subspace_angles
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import vae
from tests.oracles import numbers
from tests.problems import LinearGaussian
from tests.test_model import assert_untouched, state
from vae.data import Split
from vae.errors import UsageError
from vae.evaluation import evaluate_representation, representation_table
from vae.evaluation.representation import (
    CLASSIFIERS,
    REPRESENTATIONS,
    _linear_twin,
    _plain_twin,
    accuracy,
    aggregate_moments,
    posterior_moments,
    train_autoencoder,
)

SHAPE, J = (1, 8, 8), 3
DATA = vae.load_data("digits")
TRAIN, TEST = DATA.train.first(300), DATA.test.first(101)


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = vae.mlp_encoder(SHAPE, 2 * J, hidden=(16,), batch_norm=True)
    return vae.VAE(encoder, vae.mlp_decoder(J, SHAPE, hidden=(16,)), vae.GreyCrossEntropy(SHAPE))


# ------------------------------------------------------------------------------------- classifiers

# Three clouds, labelled by their place; scaled so that the informative axis is the shortest.
LABELS = torch.arange(200) % 3
CLOUDS = torch.stack([LABELS + 0.2 * (numbers(200).sigmoid() - 0.5), 3 * numbers(200, seed=1)], 1)


def test_linear_probe_is_right_where_classes_are_separable_at_any_scale():
    for scale in (1.0, 1e-3, 1e4):
        codes = CLOUDS * torch.tensor([scale, 1.0])
        predicted = CLASSIFIERS["linear_probe"](codes[:150], LABELS[:150], codes[150:])
        assert accuracy(predicted, LABELS[150:]) == {"accuracy": 1.0, "stderr": 0.0}


def test_linear_probe_is_at_chance_where_codes_say_nothing():
    predicted = CLASSIFIERS["linear_probe"](numbers(900, 2), torch.arange(900) % 3, numbers(900, 2, seed=1))
    score = accuracy(predicted, torch.arange(900) % 3)
    assert abs(score["accuracy"] - 1 / 3) < 4.5 * math.sqrt(2 / 9 / 900)  # a false alarm in 140,000


def test_linear_probe_finds_no_ring_and_neighbours_do():
    x = numbers(900, 2)
    inside = (x.norm(dim=1) < 1.177).long()  # half of them
    right = {
        name: accuracy(f(x[:600], inside[:600], x[600:]), inside[600:])["accuracy"] for name, f in CLASSIFIERS.items()
    }
    assert right["linear_probe"] < 0.6
    assert right["nearest_neighbours"] > 0.9


def test_neighbours_are_five_and_not_standardised():
    codes = torch.tensor([[0.0], [0.1], [0.2], [0.3], [0.4], [5.0], [5.1], [5.2]])
    labels = torch.tensor([0, 0, 1, 1, 1, 0, 0, 0])
    assert CLASSIFIERS["nearest_neighbours"](codes, labels, torch.tensor([[-0.1], [5.2]])).tolist() == [1, 0]
    far = torch.cat([CLOUDS[:, :1], 1e3 * CLOUDS[:, 1:]], 1)  # the long axis, which says nothing, decides
    predicted = CLASSIFIERS["nearest_neighbours"](far[:150], LABELS[:150], far[150:])
    assert accuracy(predicted, LABELS[150:])["accuracy"] < 0.7


def test_standard_error_is_that_of_a_share():
    score = accuracy(torch.tensor([1, 1, 0, 2]), torch.tensor([1, 0, 0, 2]))
    assert score == {"accuracy": 0.75, "stderr": pytest.approx(math.sqrt(0.75 * 0.25 / 4))}


# ------------------------------------------------------------------------------------- the aggregate posterior


@pytest.mark.parametrize("posterior", ["full_gaussian", "multivariate_t", "student_t", "laplace"])
def test_aggregate_moments_of_other_posteriors_are_those_of_their_samples(posterior):
    """20,000 samples of each of 3 data: means within 4.5 standard errors, the heavy-tailed covariances within 8 %."""
    from vae.posteriors import POSTERIORS

    head = POSTERIORS[posterior](2, **({"df": 9.0} if posterior.endswith("t") else {}))
    model = vae.VAE(
        torch.nn.Linear(4, head.output_size),
        torch.nn.Linear(2, 4),
        vae.Gaussian((4,), variance="fixed"),
        posterior=head,
    ).double()
    x = numbers(3, 4, seed=3)
    mean, covariance = aggregate_moments(*posterior_moments(model, Split(x, None, torch.arange(3))))
    noise = vae.evaluation.DatumNoise(0, "t", torch.arange(3), x)("", head.noise, 20_000)
    with torch.no_grad():
        z = model.posterior(x).transform(noise).flatten(0, 1)
    scale = covariance.diagonal().sqrt()
    assert ((mean - z.mean(0)).abs() < 4.5 * scale / len(z) ** 0.5).all()
    torch.testing.assert_close(covariance / scale.outer(scale), torch.cov(z.T) / scale.outer(scale), rtol=0, atol=0.08)


def test_aggregate_moments_are_those_of_the_linear_gaussian_model():
    problem = LinearGaussian.random(5, J)
    x = problem.data(47)
    mean, covariance = aggregate_moments(*posterior_moments(problem.model(), Split(x, None, torch.arange(47))))
    expected = problem.A @ x.mean(0) + problem.c
    torch.testing.assert_close(mean, expected, rtol=1e-11, atol=1e-11)
    expected = torch.diag(problem.S) + problem.A @ torch.cov(x.T, correction=0) @ problem.A.T
    torch.testing.assert_close(covariance, expected, rtol=1e-11, atol=1e-11)


def test_aggregate_of_the_exact_posterior_of_data_from_the_model_is_the_prior():
    """E_p(x)[q(z|x)] = p(z) where q is exact; the data's moments are set to those of the model, without error."""
    problem = LinearGaussian.random(5, J)
    linear = vae.models.LinearGaussian(problem.b, problem.W, torch.tensor(problem.s2).double())
    raw = numbers(60, 5)
    raw = (raw - raw.mean(0)) @ torch.linalg.inv(
        torch.linalg.cholesky(torch.cov(raw.T, correction=0))
    ).T  # covariance I
    C = linear.W @ linear.W.T + linear.variance * torch.eye(5)
    q = linear.posterior(linear.mean + raw @ torch.linalg.cholesky(C).T)
    mean, covariance = aggregate_moments(q.mean, q.std.square().expand_as(q.mean))
    torch.testing.assert_close(mean, torch.zeros(J).double(), rtol=0, atol=1e-11)
    torch.testing.assert_close(covariance, torch.eye(J).double(), rtol=1e-11, atol=1e-11)


# ------------------------------------------------------------------------------------- auto-encoders


def test_the_linear_autoencoder_finds_the_subspace_of_pca(model):
    twin = train_autoencoder(_linear_twin(model, 0), DATA.train, epochs=60, batch_size=100, lr=0.03)
    assert not list(twin.likelihood_head.parameters())  # squared error, of weight 1
    best = vae.pca(DATA.train.images().flatten(1), J)
    assert np.degrees(subspace_angles(twin.decoder.weight.detach().double().numpy(), best.W.numpy())).max() < 3
    x = DATA.train.images(dtype=torch.float64).flatten(1)
    left = (x - best.reconstruct(x)).square().sum(1).mean().item()
    own = (x - twin.reconstruct(x).double().flatten(1)).square().sum(1).mean().item()
    assert left < own < 1.01 * left


def test_the_autoencoder_has_no_noise_and_no_kl(model):
    """It ascends log p(x|z) at the posterior mean alone: what the network gives for the variances is never moved."""
    twin = _plain_twin(model, 0)
    start = twin.encoder.layers[-1].weight[J:].clone()  # of the log-variances
    before = twin.log_likelihood(TRAIN.images(), twin.posterior(TRAIN.images()).mean[None]).mean()
    trained = train_autoencoder(twin, TRAIN, epochs=5, batch_size=50, lr=0.01)
    assert torch.equal(trained.encoder.layers[-1].weight[J:], start)
    after = trained.log_likelihood(TRAIN.images(), trained.posterior(TRAIN.images()).mean[None]).mean()
    assert after > before + 5
    assert not trained.training


def test_the_twin_starts_anew_and_the_same_each_time(model):
    first, again, other = _plain_twin(model, 0), _plain_twin(model, 0), _plain_twin(model, 1)
    for name, p in model.encoder.named_parameters():
        if p.ndim == 2:
            assert not torch.equal(first.encoder.get_parameter(name), p)
            assert torch.equal(first.encoder.get_parameter(name), again.encoder.get_parameter(name))
            assert not torch.equal(first.encoder.get_parameter(name), other.encoder.get_parameter(name))


def test_networks_that_cannot_start_anew_are_named(model):
    class Scale(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.scale * x

    own = vae.VAE(torch.nn.Sequential(Scale(), model.encoder), model.decoder, vae.GreyCrossEntropy(SHAPE))
    with pytest.raises(UsageError, match=r"Scale has parameters and no reset_parameters.*leave the row out"):
        evaluate_representation(own, TRAIN, TEST, rows=["autoencoder"])
    assert evaluate_representation(own, TRAIN, TEST, rows=["pca"])["accuracies"].keys() == {"pca"}


# ------------------------------------------------------------------------------------- all of it


def test_rows_are_scikit_learns_pipelines(model):
    record = evaluate_representation(model, TRAIN, TEST, epochs=1, limit=250)
    x, others = (
        TRAIN.images(dtype=torch.float64).flatten(1).numpy(),
        TEST.images(dtype=torch.float64).flatten(1).numpy(),
    )
    y, answers = TRAIN.y.numpy()[:250], TEST.y.numpy()
    components = PCA(J, svd_solver="full").fit(x)  # without labels, of all training data
    codes = {
        "pixels": (x, others),
        "pca": (components.transform(x), components.transform(others)),
        "posterior_means": tuple(model.encode(s.images()).numpy() for s in (TRAIN, TEST)),
    }
    for row, (a, b) in codes.items():
        probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(a[:250], y)
        neighbours = KNeighborsClassifier(5).fit(a[:250], y)
        got = record["accuracies"][row]
        assert got["size"] == a.shape[1]
        assert got["linear_probe"]["accuracy"] == pytest.approx(probe.score(b, answers))
        assert got["nearest_neighbours"]["accuracy"] == pytest.approx(neighbours.score(b, answers))
    assert record["accuracies"]["pixels"]["linear_probe"]["accuracy"] > 0.85


def test_record_and_table(model):
    record = evaluate_representation(model, TRAIN, TEST, epochs=1, limit=250)
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert record == evaluate_representation(model, TRAIN, TEST, epochs=1, limit=250)  # deterministic
    assert record["accuracies"].keys() == REPRESENTATIONS.keys()
    assert {row["size"] for name, row in record["accuracies"].items() if name != "pixels"} == {J}
    assert (record["train"], record["labelled"], record["test"]) == (300, 250, 101)
    bound = vae.evaluate_bound(model, TEST, name="test")
    assert record["kl_per_dimension"] == bound.kl_per_dimension.tolist()
    assert record["active_units"] == bound.active_units
    assert record["aggregate_mean"] == pytest.approx(model.encode(TEST.images()).double().mean(0).tolist())
    assert np.array(record["aggregate_covariance"]).shape == (J, J)
    table = representation_table(record)
    assert "250 of 300 training data, scored on 101 test data" in table
    probe = record["accuracies"]["autoencoder"]["linear_probe"]
    line = next(line for line in table.splitlines() if line.startswith("autoencoder"))
    assert f"{100 * probe['accuracy']:.2f} ± {100 * probe['stderr']:.2f}" in line
    other = evaluate_representation(model, TRAIN, TEST, epochs=1, limit=250, seed=1)["accuracies"]
    assert other["pca"] == record["accuracies"]["pca"]
    assert other["autoencoder"] != record["accuracies"]["autoencoder"]


@pytest.mark.parametrize("row", REPRESENTATIONS)
def test_nothing_is_learned_from_the_test_split_or_from_labels(model, row):
    codes, others = REPRESENTATIONS[row](model, TRAIN, TEST, 1, 0)
    assert len(codes) == len(TRAIN)
    blank = Split(1 - TRAIN.images(), None, TRAIN.index)  # other data to test on
    same, _ = REPRESENTATIONS[row](model, Split(TRAIN.x, None, TRAIN.index, TRAIN.scale), blank, 1, 0)
    torch.testing.assert_close(same, codes, rtol=0, atol=0)
    _, few = REPRESENTATIONS[row](model, TRAIN, TEST.first(7), 1, 0)
    torch.testing.assert_close(few, others[:7], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_what_is_said_of_a_datum_does_not_depend_on_the_other_test_data(name):
    x, others = (s.images().flatten(1) for s in (TRAIN, TEST))
    whole = CLASSIFIERS[name](x, TRAIN.y, others)
    assert torch.equal(CLASSIFIERS[name](x, TRAIN.y, others[:7]), whole[:7])
    shifted = CLASSIFIERS[name](x, (TRAIN.y + 1) % 10, others)  # the labels come from training
    assert accuracy(shifted, TEST.y)["accuracy"] < 0.1


def test_the_model_is_left_as_it_was(model):
    model.train()
    before = state(model)
    evaluate_representation(model, TRAIN, TEST, epochs=1)
    assert_untouched(model, before)


def test_misuse_is_named(model):
    with pytest.raises(UsageError, match="these data have none"):
        evaluate_representation(model, Split(TRAIN.x, None, TRAIN.index), TEST)
    with pytest.raises(UsageError, match="no 'pixel'; there are posterior_means, pixels"):
        evaluate_representation(model, TRAIN, TEST, rows=["pixel"])
    with pytest.raises(UsageError, match="all of one class"):
        evaluate_representation(model, TRAIN, TEST, limit=1, rows=["pixels"])
