"""The VAE for people: images in, images out, deterministic, and nothing of the model moved."""

import numpy as np
import pytest
import torch

import vae
from tests.oracles import numbers
from tests.problems import LinearGaussian
from vae.errors import UsageError

SHAPE = (1, 8, 8)


def state(model):
    """All that an evaluation must leave alone: parameters, buffers, modes, the default generator."""
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    return tensors, modes, torch.get_rng_state()


def assert_untouched(model, before):
    tensors, modes, generator = before
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(generator, torch.get_rng_state())


@pytest.fixture
def model():
    torch.manual_seed(0)
    encoder = torch.nn.Sequential(vae.mlp_encoder(SHAPE, 6, batch_norm=True), torch.nn.Dropout(0.5))
    return vae.VAE(encoder, vae.mlp_decoder(3, SHAPE, batch_norm=True), vae.Bernoulli(SHAPE)).train()


X = (numbers(11, *SHAPE) > 0).float()


def test_shapes_and_that_evaluation_touches_nothing(model):
    model.encoder[0].eval()  # a part that the user froze stays frozen
    before = state(model)
    assert model.elbo(X).shape == (11,)
    assert model.encode(X).shape == (11, 3)
    assert model.decode(torch.randn(4, 3, generator=torch.Generator())).shape == (4, *SHAPE)
    assert model.reconstruct(X).shape == X.shape
    assert model.sample(5).shape == (5, *SHAPE)
    assert_untouched(model, before)
    assert model.sample(5).min() >= 0
    assert model.sample(5).max() <= 1


def test_calls_are_deterministic_and_seeded(model):
    assert torch.equal(model.elbo(X), model.elbo(X))
    assert not torch.equal(model.elbo(X, seed=1), model.elbo(X))
    assert torch.equal(model.encode(X), model.encode(X))
    assert torch.equal(model.sample(5), model.sample(7)[:5])  # draw i depends on (seed, i)
    assert not torch.equal(model.sample(5, seed=1), model.sample(5))


def test_any_layout_of_the_right_size_is_taken(model):
    expected = model.elbo(X)
    for x in (X.flatten(1), X[:, 0], X.numpy(), X.double(), X.tolist()):
        torch.testing.assert_close(model.elbo(x), expected)


def test_what_a_person_gives_is_moved_to_the_model_s_device(model, monkeypatch):
    """A device that holds no values refuses what lies elsewhere, as every other does; looks at values are left out."""
    model.to("meta")
    monkeypatch.setattr(torch, "isfinite", lambda x: torch.ones(()))
    monkeypatch.setattr("vae.models.vae.support_of", lambda name: lambda x: True)
    found = model.elbo(X), model.encode(X), model.decode(torch.zeros(4, 3)), model.reconstruct(X), model.sample(5)
    assert [x.shape for x in found] == [(11,), (11, 3), (4, *SHAPE), (11, *SHAPE), (5, *SHAPE)]
    assert {x.device.type for x in found} == {"meta"}
    monkeypatch.setattr(vae.VAE, "_like_parameters", lambda self, values: values)
    with pytest.raises(RuntimeError, match="device"):
        model.encode(X)


def test_large_inputs_pass_in_chunks(model, monkeypatch):
    whole = model.elbo(X)
    monkeypatch.setattr("vae.models.vae.CHUNK", 4)
    torch.testing.assert_close(model.elbo(X), whole)


def test_the_elbo_is_a_lower_bound_of_the_exact_log_p_x():
    """Mean over 4,000 seeds-and-data of the linear-Gaussian model: within 4.5 standard errors of its closed form."""
    problem = LinearGaussian.random(5, 3)
    x = problem.data(4000)
    model = problem.model()
    difference = model.elbo(x) - problem.elbo(x)
    assert abs(difference.mean() / (difference.std() / 4000**0.5)) < 4.5
    assert (problem.log_p_x(x) >= problem.elbo(x)).all()


def test_log_p_x_can_be_positive():
    """A sharp density has a positive logarithm: the sign is part of the name."""
    problem = LinearGaussian.random(5, 3)
    problem.W, problem.s2 = torch.linalg.qr(problem.W)[0], 1e-5  # orthogonal columns: the posterior is diagonal
    problem.A = torch.linalg.inv(problem.precision) @ problem.W.T / problem.s2
    problem.c, problem.S = -problem.A @ problem.b, 1 / problem.precision.diagonal()
    x = problem.b + numbers(6, 3) @ problem.W.T
    elbo = problem.model().elbo(x)
    torch.testing.assert_close(elbo.mean(), problem.log_p_x(x).mean(), atol=3.0, rtol=0)  # one sample of z a datum
    assert (problem.log_p_x(x) > 0).all()
    assert elbo.mean() > 0


def test_log_joint_is_prior_plus_likelihood(model):
    z = torch.randn(2, 11, 3)
    expected = model.prior.log_prob(z).sum(2) + model.eval().likelihood(z).log_prob(X).sum((2, 3, 4))
    torch.testing.assert_close(model.log_joint(X, z), expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.elbo(torch.rand(3, 5)), r"x must have shape \(M, 1, 8, 8\) with at least one datum, not \(3, 5\)"),
        (lambda m: m.elbo(torch.rand(64)), "x must have shape"),
        (lambda m: m.encode(torch.zeros(3, 8, 8, dtype=torch.uint8)), "divide bytes by 255"),
        (lambda m: m.decode(torch.rand(4, 2)), r"z must have shape \(M, 3\) with at least one row, not \(4, 2\)"),
        (lambda m: m.decode(torch.rand(3)), "z must have shape"),
        (lambda m: m.sample(0), "at least 1"),
        (lambda m: m.sample(2.5), "whole number"),
        (lambda m: m.elbo("images"), "expected a tensor or an array, not str"),
        (lambda m: m.elbo(torch.zeros(2, 64, dtype=torch.int64)), "expected floats"),
        (lambda m: m.elbo(torch.zeros(2, 8, 8, 1)), "x must have shape"),
        (lambda m: m.encode(torch.rand(0, 1, 8, 8)), "at least one"),
        (lambda m: m.elbo(np.full((2, 64), np.nan)), "not finite"),
        (lambda m: m.elbo(torch.full((2, 64), 0.5)), "the Bernoulli likelihood is of values 0 or 1"),
    ],
)
def test_misuse_is_an_error_at_once(model, call, message):
    with pytest.raises(UsageError, match=message):
        call(model)


def test_parts_that_do_not_fit_are_named():
    encoder, decoder, likelihood = vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE)
    with pytest.raises(UsageError, match=r"the decoder does not take input of shape \(M, 3\)"):
        vae.VAE(vae.mlp_encoder(SHAPE, 6), decoder, likelihood)
    with pytest.raises(UsageError, match=r"the encoder gives shape \(5,\) per datum"):
        vae.VAE(vae.mlp_encoder(SHAPE, 5), decoder, likelihood)
    with pytest.raises(
        UsageError, match="the encoder gives 4 numbers per datum, and the posterior of 3 latents needs 6"
    ):
        vae.VAE(encoder, vae.mlp_decoder(3, SHAPE), likelihood, posterior=vae.DiagonalGaussian(3))
    with pytest.raises(
        UsageError, match=r"the decoder gives shape \(1, 8, 8\) per datum, and the likelihood needs \(2, 8, 8\)"
    ):
        vae.VAE(encoder, decoder, vae.Gaussian(SHAPE))
    with pytest.raises(UsageError, match="the encoder does not take input"):
        vae.VAE(torch.nn.Linear(7, 4), decoder, likelihood)


def test_any_module_stands_in_for_a_network_and_the_run_opens_again(tmp_path):
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.LazyLinear(4)

        def forward(self, x):
            return self.layer(x.flatten(1)).tanh()

    data = vae.load_data("digits", pixels="static", train_size=200)
    model = vae.VAE(Mine(), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
    vae.fit(model, data, out=tmp_path / "x", epochs=2, verbose=False)
    again = vae.load(tmp_path / "x", encoder=Mine())
    torch.testing.assert_close(again.elbo(data.test.images()), model.elbo(data.test.images()), rtol=0, atol=0)
    with pytest.raises(UsageError, match=r"the user's own module, .*Mine; open it from Python.*vae\.load"):
        vae.load(tmp_path / "x")


def test_a_run_without_a_directory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = vae.load_data("digits", pixels="static", train_size=200)
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE))
    run = vae.fit(model, data, epochs=2, verbose=False)
    assert len(run.history) == 2
    assert run.model is model
    assert list(tmp_path.iterdir()) == []


def test_a_built_model_is_a_function_of_its_seed(in_root):
    one, two = (vae.build("configs/digits_d2.yaml", ["train.seed=3"]) for _ in range(2))
    other = vae.build("configs/digits_d2.yaml", ["train.seed=4"])
    a, b, c = (torch.cat([p.flatten() for p in m.parameters()]) for m in (one, two, other))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_a_model_of_double_precision_stays_so(tmp_path):
    data = vae.load_data("digits", pixels="static", train_size=200)
    model = vae.VAE(vae.mlp_encoder(SHAPE, 4), vae.mlp_decoder(2, SHAPE), vae.Bernoulli(SHAPE)).double()
    vae.fit(model, data, out=tmp_path / "x", epochs=1, verbose=False)
    for made in (model, vae.load(tmp_path / "x")):
        assert next(made.parameters()).dtype == torch.float64


def test_a_loaded_model_is_the_trained_one(tmp_path):
    data = vae.load_data("digits", pixels="static", train_size=200)
    model = vae.build({"data": {"name": "digits", "pixels": "static"}, "model": {"latent_dim": 3}})
    vae.fit(model, data, out=tmp_path / "x", epochs=2, verbose=False, precision="float64")
    again = vae.load(tmp_path / "x")
    x = data.test.images(dtype=torch.float64)
    assert torch.equal(again.elbo(x), model.elbo(x))


def test_counts_may_come_as_whole_numbers_and_images_may_not():
    likelihood = vae.NegativeBinomial((3,))
    (size,) = likelihood.output_shape
    counts = vae.VAE(torch.nn.Linear(3, 4), torch.nn.Linear(2, size), likelihood)
    x = torch.tensor([[0, 5, 2], [1, 0, 7]])
    torch.testing.assert_close(counts.elbo(x), counts.elbo(x.float()))
    with pytest.raises(UsageError, match="divide bytes by 255"):
        vae.VAE(torch.nn.Linear(3, 4), torch.nn.Linear(2, 3), vae.Bernoulli((3,))).elbo(x)
