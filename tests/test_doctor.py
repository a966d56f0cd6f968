"""What is said of a config before training, of an evaluation after it, and of samples."""

import csv
import json
import math

import numpy as np
import pytest
import torch
import yaml

import vae
from tests.problems import LinearGaussian
from vae.commands import encode, evaluate, plot, score
from vae.commands import train as command
from vae.data import Data, Split
from vae.evaluation import evaluate_bound
from vae.evaluation.aggregate import aggregate_posterior
from vae.evaluation.remarks import on_collapse, on_fit
from vae.training import read_settings
from vae.training.build import build_for, with_likelihood
from vae.training.doctor import diagnosis, principal_variances, used_latents, variance_advice

RNG = np.random.default_rng(0)


def said(x, y=None, **settings):
    """The sentences on arrays."""
    data = Data.from_arrays(x, y, test_size=20)
    raw = {"data": {"name": "digits"}, "model": {"latent_dim": 2, **settings}, "train": {"batch_size": 16}}
    chosen = with_likelihood(read_settings(raw), data.kind, data.shape, data.doubt)
    return "\n".join(diagnosis(chosen, data, build_for(chosen, data)))


def test_it_names_constants_copies_blanks_labels_and_likelihoods():
    x = RNG.random((120, 1, 6, 6)).astype(np.float32)
    x[:, 0, 0, :2] = 0.5
    x[7] = x[3]
    x[9] = 0.5
    text = said(x, np.arange(120) % 3)
    assert vae.diagnose.__module__ == "vae.training.doctor"
    assert "2 of 36 elements are the same in all training data" in text
    assert "1 training data are blank" in text
    assert "likelihoods that fit grey values: grey_cross_entropy, gaussian" in text
    assert "; chosen: grey_cross_entropy" in text
    assert "3 labels, on " in text
    copies = [line for line in text.splitlines() if "repeat an earlier" in line or "also among the training" in line]
    assert len(copies) == 1  # 3 and 7, in the same split or in two
    assert copies[0].startswith("1 ")
    assert "an epoch of 7 steps takes about" in text
    assert said(RNG.random((60, 1, 4, 4)).astype(np.float32)).count("\n") == 3  # nothing more to say


def test_rows_far_out_are_among_the_sentences(recwarn):
    x = np.random.default_rng(1).standard_normal((120, 3))
    x[5, 1] = 1e4
    x[6, 1] = -1e4
    assert "rows far out, beyond 20 interquartile ranges of a column: " in said(x)
    assert not recwarn.list


@pytest.mark.parametrize(("rows", "columns"), [(400, 6), (5, 9)])
def test_principal_variances_are_those_of_probabilistic_pca(rows, columns):
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.diag(
        torch.linspace(2, 0.3, columns, dtype=torch.float64)
    )
    torch.testing.assert_close(principal_variances(x, 3), vae.pca(x, 3).variances)


@pytest.mark.parametrize(("std", "beta"), [(0.3, 1.0), (0.9, 1.0), (1.3, 1.0), (0.9, 2.0), (2.5, 1.0)])
def test_a_linear_vae_uses_as_many_latents_as_was_said(std, beta):
    """The optimum of its bound, found by Newton-like steps in float64, beside the count of eigenvalues."""
    g = torch.Generator().manual_seed(1)
    scale = torch.tensor([2.0, 1.5, 1.1, 0.6, 0.5], dtype=torch.float64)
    x = torch.randn(300, 5, generator=g, dtype=torch.float64) * scale
    x = (x - x.mean(0)) @ torch.linalg.qr(torch.randn(5, 5, generator=g, dtype=torch.float64)).Q
    covariance, s2 = x.T @ x / len(x), std**2
    W = (0.3 * torch.randn(5, 4, generator=g, dtype=torch.float64)).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [W], max_iter=2000, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def bound():
        """-E[log p(x|z)] + beta KL at the best q, N(S W' x / s2, beta S), S = (beta I + W'W / s2)^-1 up to constants."""
        optimizer.zero_grad()
        C = W @ W.T + beta * s2 * torch.eye(5, dtype=torch.float64)  # the marginal of a linear VAE of variance beta s2
        value = 0.5 * (torch.logdet(C) + torch.trace(torch.linalg.solve(C, covariance)))
        value.backward()
        return value

    optimizer.step(bound)
    used = int((torch.linalg.svdvals(W.detach()) > 1e-3).sum())
    assert used == used_latents(principal_variances(x, 4), s2, beta)


def test_the_advice_on_the_variance_names_what_to_do():
    variances = torch.tensor([3.0, 0.5])
    assert "every latent has something to say" in variance_advice(variances, 0.1, 1.0, learned=False)
    fixed = variance_advice(variances, 1.0, 1.0, learned=False)
    assert "has a variance of 1;" in fixed
    assert "would use 1 of 2 latents, however long it is trained" in fixed
    assert "begins with a variance of 1, times beta 4" in variance_advice(variances, 1.0, 4.0, learned=True)
    assert "would use 0 of 2 latents at first" in variance_advice(variances, 1.0, 4.0, learned=True)
    assert "would use 1 of 2 latents, however" in said(
        RNG.standard_normal((200, 5)) * [1.5, 0.5, 0.1, 0.1, 0.1], likelihood={"name": "gaussian", "variance": "fixed"}
    )


# ------------------------------------------------------------------------------------- after training


def test_collapsed_latents_are_named():
    assert list(on_collapse([1.0, 0.5])) == []
    assert list(on_collapse([0.0, 0.001])) == []  # all: PosteriorCollapse says it
    (sentence,) = on_collapse([1.0, 0.002, 0.7, 0.0])
    assert sentence.startswith("latents 2, 4 have collapsed (KL below 0.01 nats), so a model of 2 latents would do")
    assert next(on_collapse([0.0, 3.0])).startswith("latent 1 has collapsed")


def curve(*values):
    return [{"split": "train", "elbo": value} for value in values]


def test_over_and_underfitting_are_told_with_an_interval():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(400, generator=g) - 100 for _ in range(2))
    (over,) = on_fit(a, b + 3, "test", curve(*range(10)))
    gap, reach = (b + 3).mean() - a.mean(), 1.96 * math.hypot(a.std() / 20, b.std() / 20)
    assert over.startswith(
        f"overfitting: the first 400 training data have an ELBO {gap:.2f} nats above that of the test"
    )
    assert f"(95 % interval of the difference {gap - reach:.2f} to {gap + reach:.2f})" in over
    neither = list(on_fit(a, b, "validation", curve(*[-100.0] * 10)))
    assert len(neither) == 1
    assert neither[0].startswith("no overfitting to be seen")
    under = list(on_fit(a, b, "test", curve(*(-110.0 + i for i in range(10)))))[1]
    assert under == "underfitting: the training ELBO still rose by 2.00 nats over the last 2 of 10 epochs; train longer"
    assert list(on_fit(a[:1], b, "test", [])) == []


def test_a_false_alarm_of_overfitting_is_as_rare_as_the_interval_says():
    """2.5 % of 2,000 pairs of equal laws: 50, within 5 standard deviations of 7."""
    g = torch.Generator().manual_seed(3)
    alarms = sum(
        next(on_fit(torch.randn(50, generator=g), torch.randn(50, generator=g), "test", [])).startswith("overfitting")
        for _ in range(2000)
    )
    assert 15 < alarms < 90


def test_the_mixture_knows_how_far_the_codes_are_from_the_prior():
    """Of a model whose q is its exact posterior on its own data, the aggregate is the prior; of a shifted q, N(m, .)."""
    problem = LinearGaussian.scalar().at_posterior()
    model = problem.model()
    g = torch.Generator().manual_seed(0)
    sd = math.sqrt(problem.W.item() ** 2 + problem.s2)
    x = problem.b + sd * torch.randn(6000, 1, generator=g, dtype=torch.float64)
    train, test = Split(x[:4000], None, torch.arange(4000)), Split(x[4000:], None, torch.arange(2000))
    found = aggregate_posterior(model, train, test)
    assert abs(found.kl["mean"]) < 0.01 + 4 * found.kl["stderr"]
    assert "it is not for the prior's sake" in found.verdict
    draws = found.sample(20_000, 1)
    assert draws.mean().abs() < 0.1
    assert draws.std().item() == pytest.approx(1, abs=0.06)
    with torch.no_grad():
        model.encoder.bias[0] += 2.0  # N(2, 1): a KL of 2 nats
    shifted = aggregate_posterior(model, train, test)
    assert shifted.kl["mean"] == pytest.approx(2.0, abs=0.02 + 4 * shifted.kl["stderr"])
    assert "draws from the prior fall where few codes are" in shifted.verdict
    assert torch.equal(shifted.sample(7, 3), shifted.sample(7, 3))


# ------------------------------------------------------------------------------------- tables


def test_a_standardised_gaussian_is_the_density_of_x_as_given():
    """Its log p(x) is that of the standardised x less the sum of log scale, the Jacobian."""
    torch.manual_seed(0)
    x = (RNG.standard_normal((300, 3)) * [1.0, 50.0, 1e-3] + [0.0, 1000.0, -2.0]).astype(np.float32)
    data = Data.from_arrays(x, x_test=x[:20])
    settings = read_settings({"data": {"name": "digits"}, "model": {"latent_dim": 2}})
    model = build_for(with_likelihood(settings, data.kind, data.shape), data)
    given = vae.fit(model, data, epochs=3, seed=0, verbose=False).model.double().eval()
    head = given.likelihood_head
    torch.testing.assert_close(head.location, torch.from_numpy(x).double().mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.scale, torch.from_numpy(x).double().std(0, correction=0), rtol=1e-4, atol=0)
    other = vae.VAE(given.encoder, given.decoder, vae.Gaussian((3,))).double()  # of what is inside
    x = torch.from_numpy(x).double()
    inside = (x - head.location) / head.scale
    torch.testing.assert_close(given.elbo(x), other.elbo(inside) - head.scale.log().sum())
    torch.testing.assert_close(given.reconstruct(x), head.location + head.scale * other.reconstruct(inside))


def test_a_table_without_a_likelihood_is_standardised():
    data = Data.from_arrays(RNG.standard_normal((60, 4)) * 1000)
    settings = read_settings({"data": {"name": "digits"}, "model": {"latent_dim": 1}})
    assert with_likelihood(settings, data.kind, data.shape).model.likelihood.options["standardise"] is True
    assert with_likelihood(settings, "real", (1, 4, 4)).model.likelihood.options["standardise"] is False


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A csv file of three columns, a config and a run on it."""
    folder = tmp_path_factory.mktemp("table")
    x = np.random.default_rng(0).standard_normal((400, 3)) @ [[1, 0.9, 0], [0, 0.3, 0], [0, 0, 5]] + [0, 100, 0]
    rows = [["height", "mass", "flat", "age"], *([*row[:2], 1.5, row[2]] for row in x.tolist())]
    with open(folder / "t.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    raw = {"data": {"name": "csv", "path": str(folder / "t.csv"), "validation_size": 60}, "model": {"latent_dim": 1}}
    (folder / "t.yaml").write_text(yaml.safe_dump({**raw, "train": {"epochs": 4}}))
    assert command.main(["--config", str(folder / "t.yaml"), "--out", str(folder / "run"), "--no-figures"]) == 0
    return folder


def test_columns_keep_their_names(table, capsys, tmp_path):
    assert command.main(["--config", str(table / "t.yaml"), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "1 of 4 elements are the same in all training data (flat)" in out
    assert yaml.safe_load(out)["model"]["likelihood"]["standardise"] is True
    strange = [["age", "flat", "height", "mass"], [0.0, 1.5, 0.0, 100.0], [0.0, 1.5, 0.0, 140.0]]
    with open(tmp_path / "strange.csv", "w", newline="") as file:  # in another order
        csv.writer(file).writerows(strange)
    arguments = [str(table / "run"), "--data", str(tmp_path / "strange.csv"), "--no-figures"]
    assert score.main([*arguments, "--out", str(tmp_path / "scores.csv")]) == 0
    assert "least likely" in capsys.readouterr().out
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[1]["least_likely"] == "mass"
    assert float(rows[1]["elbo"]) < float(rows[0]["elbo"]) - 10
    assert score.main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["strangest"][0]["least_likely"] == "mass"
    assert encode.main([str(table / "run"), "--out", str(tmp_path / "codes.csv")]) == 0
    with open(tmp_path / "codes.csv", newline="") as file:
        codes = list(csv.DictReader(file))
    assert list(codes[0]) == ["index", "z1"]
    assert len(codes) == 40


def test_a_file_without_a_column_is_refused(table, capsys, tmp_path):
    (tmp_path / "other.csv").write_text("height,mass,flat,years\n1,2,3,4\n")
    assert evaluate.main([str(table / "run"), "--data", str(tmp_path / "other.csv")]) == 2
    assert "has no column age, which the training data have" in capsys.readouterr().err


def test_evaluate_and_samples_say_what_they_found(table, capsys):
    capsys.readouterr()
    assert evaluate.main([str(table / "run")]) == 0
    out = capsys.readouterr().out
    assert "that of the test data (95 % interval of the difference" in out
    assert evaluate.main([str(table / "run"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["remarks"]
    assert plot.main_samples([str(table / "run"), "--prior", "aggregate", "--count", "9"]) == 0
    out = capsys.readouterr().out
    assert "the aggregate posterior is " in out
    assert "samples_aggregate.png" in out
    assert evaluate_bound(vae.load(table / "run"), vae.load_data("csv", path=str(table / "t.csv")).test, name="t")
