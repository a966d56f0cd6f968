"""A VAE that is conditional on labels: p(y) p(z) p(x|z, y), and q(z|x, y)."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import vae
from tests.problems import LinearGaussian
from vae.commands import evaluate, plot, score
from vae.data import Data, Split
from vae.errors import ConfigError, DataError, UsageError
from vae.evaluation import evaluate_bound, evaluate_representation, posterior_codes
from vae.evaluation.annealed import simulated
from vae.models import vae as models_vae
from vae.training import read_settings
from vae.training.build import build_for
from vae.training.loading import load_run
from vae.training.run import train

K, D, J = 3, 5, 2
SHIFT = torch.randn(D, K, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
PROBLEM = LinearGaussian.random(D, J, seed=2).at_posterior()  # q has the right mean, and the best variances
X, Y = PROBLEM.data(12), torch.tensor([2, 0, 1, 1, 2, 0, 2, 2, 1, 0, 0, 1])
CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 200, "validation_size": 50},
    "model": {"latent_dim": 2, "condition": "labels", "encoder": {"name": "mlp", "hidden": [16]},
              "decoder": {"name": "mlp", "hidden": [16]}},
    "train": {"epochs": 3, "batch_size": 64, "compile": "never", "seed": 4},
}  # fmt: skip


def of_label(y):
    """The problem of one label: its mean is shifted."""
    return replace(PROBLEM, b=PROBLEM.b + SHIFT[:, y])


class WithLabel(nn.Module):
    """A linear map of an input and a one-hot label."""

    def __init__(self, linear, of_labels):
        super().__init__()
        self.linear, self.of_labels = linear, of_labels

    def forward(self, x, label):
        return self.linear(x) + label @ self.of_labels.T.to(label)


@pytest.fixture
def model():
    """x|z, y ~ N(W z + b + SHIFT y, s^2 I), with an encoder that subtracts the shift from x first."""
    linear = PROBLEM.model()
    through = -linear.encoder.weight.detach() @ SHIFT  # (2 J, K)
    encoder, decoder = WithLabel(linear.encoder, through), WithLabel(linear.decoder, SHIFT)
    return vae.VAE(encoder, decoder, linear.likelihood_head, classes=K).double()


def expected(x, y):
    return torch.stack([of_label(int(label)).log_p_x(row[None])[0] for row, label in zip(x, y, strict=True)])


ESTIMATORS = {
    "is": (vae.ImportanceSampling(num_samples=20_000), 0.02),
    "quadrature": (vae.Quadrature(), 1e-4),
    "ais": (vae.Annealed(num_samples=200), 0.05),
    "hmc": (vae.FittedDensity(num_samples=800), 0.1),
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_estimators_find_log_p_x_given_y(model, name):
    estimator, error = ESTIMATORS[name]
    split = Split(X, Y, torch.arange(len(X)))
    found = vae.measure(model, split, estimator, batch_size=5)["log_p_x"]
    torch.testing.assert_close(found, expected(X, Y), atol=error, rtol=0)
    given = vae.measure(model.given(Y), X, estimator, batch_size=5)["log_p_x"]
    torch.testing.assert_close(given, found, atol=1e-9, rtol=1e-9)


def test_the_bound_and_the_codes_are_those_of_the_datums_label(model):
    split = Split(X, Y, torch.arange(len(X)))
    bound = evaluate_bound(model, split, name="x", num_samples=7, batch_size=5)
    codes = posterior_codes(model, split, name="x")
    for i, (x, y) in enumerate(zip(X, Y, strict=True)):
        alone = of_label(int(y)).model()
        with torch.no_grad():
            alone.encoder.bias += -alone.encoder.weight @ SHIFT[:, y]
        one = Split(x[None], None, torch.tensor([i]))
        torch.testing.assert_close(evaluate_bound(alone, one, name="x", num_samples=7).elbo, bound.elbo[i : i + 1])
        torch.testing.assert_close(posterior_codes(alone, one, name="x"), codes[i : i + 1])


def test_people_give_labels_and_chunks_do_not_mix_them_up(model, monkeypatch):
    whole = model.given(Y)
    found = whole.elbo(X), whole.encode(X), whole.reconstruct(X), whole.sample(len(Y))
    monkeypatch.setattr(models_vae, "CHUNK", 5)
    for ours, theirs in zip(
        found, (whole.elbo(X), whole.encode(X), whole.reconstruct(X), whole.sample(12)), strict=True
    ):
        torch.testing.assert_close(ours, theirs)
    same = model.given(1)  # one label for all
    torch.testing.assert_close(same.reconstruct(X)[Y == 1], found[2][Y == 1])
    assert (same.reconstruct(X)[Y != 1] != found[2][Y != 1]).all()
    z = same.sample(4, seed=3) - SHIFT[:, 1]
    torch.testing.assert_close(z, model.given(torch.tensor(2)).sample(4, seed=3) - SHIFT[:, 2])  # the same z
    assert model.label is None
    assert same.encoder is model.encoder


def test_without_a_label_samples_have_labels_by_their_shares(model):
    model.class_shares.copy_(torch.tensor([0.0, 0.25, 0.75]))
    labels = model.drawn_labels(4000, 1)
    assert torch.equal(labels, model.drawn_labels(5000, 1)[:4000])
    # a false alarm of 1e-6: 4.9 standard deviations, sqrt(.25 * .75 / 4000) = .00685 each
    assert (labels == 1).double().mean().item() == pytest.approx(0.25, abs=0.034)
    assert not (labels == 0).any()
    torch.testing.assert_close(model.sample(9, seed=1), model.given(labels[:9]).sample(9, seed=1))


def test_simulated_data_have_labels_of_their_own(model):
    split, codes = simulated(model, 4000, 0)
    with torch.no_grad():
        left = split.x - codes @ PROBLEM.W.T - PROBLEM.b - SHIFT[:, split.y].T
    assert left.var().item() == pytest.approx(PROBLEM.s2, rel=0.05)  # 20,000 draws: 5 standard deviations


@pytest.mark.parametrize(
    ("algorithm", "form"),
    [("aevb", "never"), ("aevb", "always"), ("wake_sleep", "never"), ("full_vb", "never"), ("mcem", "never")],
)
def test_a_run_trains_resumes_and_is_the_same_compiled(algorithm, form, tmp_path):
    change = [f"train.compile={form}", f"train.algorithm={algorithm}"]
    whole = train(read_settings(CONFIG, change), tmp_path / "whole", verbose=False)
    train(read_settings(CONFIG, [*change, "train.epochs=2"]), tmp_path / "part", verbose=False)
    part = train(read_settings(CONFIG, change), tmp_path / "part", resume=True, verbose=False)
    plain = train(read_settings(CONFIG, [*change, "train.compile=never"]), None, verbose=False)
    for ours, other, eager in zip(*(run.model.parameters() for run in (whole, part, plain)), strict=True):
        assert torch.equal(ours, other)
        torch.testing.assert_close(ours, eager, rtol=1e-4, atol=1e-5)
    loaded = vae.load(tmp_path / "whole")
    data = whole.data.test
    torch.testing.assert_close(
        loaded.class_shares, torch.bincount(whole.data.train.y, minlength=10) / 200, rtol=0, atol=0
    )
    torch.testing.assert_close(
        loaded.given(data.y).elbo(data.images()), whole.model.eval().given(data.y).elbo(data.images())
    )


def test_training_uses_the_label_of_each_datum():
    """Pictures that are their labels: told the label, the model has little left to say by z."""
    y = torch.arange(400) % 4
    x = (torch.arange(8)[None] // 2 == y[:, None]).float()
    data = Data.from_arrays(x, y, test_size=100)
    nats = {}
    for condition in ("labels", None):
        block = {"latent_dim": 1, "condition": condition, "likelihood": "bernoulli"}
        model = build_for(read_settings({"data": {"name": "digits"}, "model": block}), data)
        run = vae.fit(model, data, epochs=30, seed=0, optimizer={"name": "adam", "lr": 0.01}, verbose=False)
        bound = evaluate_bound(run.model, data.test, name="test")
        nats[condition] = bound.elbo.mean().item(), bound.kl.mean().item()
    assert nats["labels"][0] > -0.1
    assert nats["labels"][1] < 0.1
    assert nats[None][0] < -1  # log 4 = 1.39 nats for which of four it is


@pytest.mark.parametrize("network", ["mlp", "conv"])
def test_networks_see_the_label_and_count_the_same(network):
    torch.manual_seed(0)
    shape = (1, 8, 8)
    encoder = {"mlp": vae.mlp_encoder, "conv": vae.conv_encoder}[network](shape, 4, 10)
    decoder = {"mlp": vae.mlp_decoder, "conv": vae.conv_decoder}[network](2, shape, 10)
    model = vae.VAE(encoder, decoder, vae.Bernoulli(shape), classes=10)
    x = torch.rand(3, *shape).round()
    assert (model.given(3).encode(x) != model.given(4).encode(x)).any()
    assert (model.given(3).decode(torch.zeros(1, 2)) != model.given(4).decode(torch.zeros(1, 2))).any()
    run = vae.fit(model, vae.load_data("digits", pixels="static", train_size=64), epochs=1, seed=0, verbose=False)
    assert run.steps == 1


def test_a_data_loader_gives_labels(model):
    data = TensorDataset(X.float(), Y)
    trained = vae.fit(model.float(), DataLoader(data, batch_size=4), epochs=1, seed=0, verbose=False)
    assert trained.steps == 3
    for bad in (TensorDataset(X.float()), TensorDataset(X.float(), Y + 1)):
        with pytest.raises(UsageError, match="images, labels"):
            vae.fit(model, DataLoader(bad, batch_size=4), epochs=1, seed=0, verbose=False)


def test_what_does_not_fit_is_one_sentence(model):
    plain = PROBLEM.model()
    for call, sentence in {
        (lambda: model.elbo(X)): "use model.given",
        (lambda: model.decode(torch.zeros(1, J))): "use model.given",
        (lambda: model.given(Y[:5]).elbo(X)): "5 labels for 12 data",
        (lambda: model.given(3)): "whole numbers from 0 to 2",
        (lambda: model.given(-1)): "whole numbers from 0 to 2",
        (lambda: model.given(0.5)): "whole numbers from 0 to 2",
        (lambda: model.given(Y + 1)): r"not \(12,\) from 1 to 3",
        (lambda: evaluate_bound(model, Split(X, Y + 1, Y), name="x")): "whole numbers from 0 to 2",
        (lambda: plain.given(0)): "not conditional",
        (lambda: vae.measure(model, X, vae.Quadrature())): "these data have none",
        (lambda: evaluate_representation(model, Split(X, Y, Y), Split(X, Y, Y))): "given the labels",
    }.items():
        with pytest.raises(UsageError, match=sentence):
            call()
    with pytest.raises(ConfigError, match="needs a label for each datum"):
        build_for(read_settings(CONFIG, ["model.likelihood=bernoulli"]), Data.from_arrays((X > 0).numpy()))
    with pytest.raises(DataError, match="labels from 0 to 2"):
        network = {"encoder": vae.mlp_encoder((D,), 4, 2), "decoder": vae.mlp_decoder(2, (D,), 2)}
        two = vae.VAE(**network, likelihood=vae.Gaussian((D,), variance="fixed"), classes=2)
        vae.fit(two, Data.from_arrays(X.numpy(), Y.numpy()), epochs=1, verbose=False)


def test_files_of_other_labels_or_none_are_refused(tmp_path, capsys):
    x, y = torch.rand(30, D, generator=torch.Generator().manual_seed(0)).numpy(), (torch.arange(30) % 3).numpy()
    np.savez(tmp_path / "all.npz", x=x, y=y)
    data = {"name": "npz", "path": str(tmp_path / "all.npz"), "validation_size": 5}
    train(read_settings({**CONFIG, "data": data}), tmp_path / "run", verbose=False)
    for name, labels, sentence in (
        ("more", {"y": y + 1}, "has labels from 1 to 3, and the model those from 0 to 2"),
        ("none", {}, "a conditional model needs a label for each datum, and there are none"),
        ("words", {"y": np.array(["a", "b", "c"])[y]}, "the training data have no label a, only numbers"),
    ):
        np.savez(tmp_path / f"{name}.npz", x=x, **labels)
        for command in (evaluate, score):
            assert command.main([str(tmp_path / "run"), "--data", str(tmp_path / f"{name}.npz")]) == 2
            assert capsys.readouterr().err.splitlines()[-1] == f"{tmp_path / name}.npz: {sentence}"
    free = {**CONFIG, "data": data, "model": {**CONFIG["model"], "condition": None}}
    train(read_settings(free, ["train.epochs=1"]), tmp_path / "free", verbose=False)
    for name in ("more", "none", "words"):  # of no account without a condition
        assert score.main([str(tmp_path / "free"), "--data", str(tmp_path / f"{name}.npz"), "--no-figures"]) == 0


def test_a_column_of_a_table_can_be_the_labels(tmp_path, capsys):
    generator = np.random.default_rng(0)
    x, kinds = generator.standard_normal((90, 2)), np.array(["ant", "bee", "cow"])
    y = generator.integers(0, 3, 90)

    def table(name, labels, order=("a", "kind", "b")):
        columns = {"a": x[:, 0], "b": x[:, 1] + 5 * y, "kind": labels}
        rows = [[str(columns[key][i]) for key in order if labels is not None or key != "kind"] for i in range(90)]
        head = [key for key in order if labels is not None or key != "kind"]
        (tmp_path / name).write_text("\n".join(",".join(row) for row in [head, *rows]))
        return str(tmp_path / name)

    path = table("t.csv", kinds[y])
    data = vae.load_data("csv", path=path, labels="kind", validation_size=20)
    assert (data.columns, data.classes, data.shape) == (("a", "b"), ("ant", "bee", "cow"), (2,))
    assert torch.equal(data.train.labels, torch.from_numpy(y)[data.train.index])
    assert vae.load_data("csv", path=table("n.csv", y), labels="kind").classes == ()
    raw = {**CONFIG, "data": {"name": "csv", "path": path, "labels": "kind", "validation_size": 20}}
    train(read_settings(raw, ["train.epochs=30"]), tmp_path / "run", verbose=False)
    arguments = [str(tmp_path / "run"), "--json", "--data"]

    def elbo(path):
        assert evaluate.main([*arguments, path]) == 0
        return json.loads(capsys.readouterr().out)["elbo"]["mean"]

    whole = elbo(path)
    assert plot.main_samples([str(tmp_path / "run"), "--label", "bee", "--count", "4"]) == 0
    assert torch.equal(load_run(tmp_path / "run").given("bee").label, load_run(tmp_path / "run").given("1").label)
    capsys.readouterr()
    assert plot.main_samples([str(tmp_path / "run"), "--label", "dog"]) == 2
    assert capsys.readouterr().err.endswith("has no label dog; give ant, bee, cow, or a number from 0\n")
    assert elbo(table("other.csv", kinds[y], ("kind", "b", "a"))) == pytest.approx(whole, abs=1e-4)
    without_ants = [line for line in (tmp_path / "t.csv").read_text().splitlines() if ",ant," not in line]
    (tmp_path / "two.csv").write_text("\n".join(without_ants))
    assert elbo(str(tmp_path / "two.csv")) == pytest.approx(whole, abs=0.5)  # bees are still class 1
    for path, sentence in (
        (table("none.csv", None), "a conditional model needs a label for each datum, and there are none"),
        (table("dogs.csv", np.array(["ant", "bee", "dog"])[y]), "the training data have no label dog, only ant, bee, "),
    ):
        assert evaluate.main([*arguments, path]) == 2
        assert sentence in capsys.readouterr().err
    (tmp_path / "alone.csv").write_text("kind\nant\nbee\n")
    for name, options, sentence in (
        ("n.csv", {"labels": "kin"}, "data.labels: .* has no column kin; did you mean kind"),
        ("n.csv", {"labels": ""}, "data.labels: .* has no column"),
        ("n.csv", {"labels": "a"}, "has fractions"),
        ("alone.csv", {"labels": "kind"}, "has no other column than the labels, so there is nothing to learn"),
        ("t.csv", {"labels": "kind", "target": "a"}, "leave one of them out"),
        ("t.csv", {}, r"column kind, row 1: is .*\(a column of classes can be data.labels\)"),
    ):
        with pytest.raises(DataError, match=sentence):
            vae.load_data("csv", path=str(tmp_path / name), **options)
