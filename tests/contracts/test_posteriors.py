"""Every row of POSTERIORS: what its head promises the model, and that a model with it trains."""

import math

import pytest
import torch

import vae
from tests.oracles import numbers
from vae.distributions import (
    Cauchy,
    Gumbel,
    Laplace,
    Logistic,
    MultivariateNormal,
    MultivariateT,
    Normal,
    StudentT,
    Uniform,
    has_exact_kl,
    kl_divergence,
    sum_from,
)
from vae.errors import ConfigError, UsageError
from vae.objectives import EstimatorA, EstimatorB
from vae.posteriors import POSTERIORS
from vae.schema import describe

pytestmark = pytest.mark.usefixtures("float64")
L, M, J, D = 2, 3, 4, 6


def by_hand(outputs):
    """L of the elliptical heads, number by number."""
    factor = torch.zeros(M, J, J)
    for m in range(M):
        rest = iter(outputs[m, 2 * J :])
        for row in range(J):
            for column in range(row):
                factor[m, row, column] = next(rest)
            factor[m, row, row] = outputs[m, J + row].exp()
    return factor


# name -> (options, numbers a datum, kind and shape of the noise, outputs -> the q that is meant)
CASES = {
    "diagonal_gaussian": ({}, 2 * J, ("normal", (J,)), lambda o: Normal(o[:, :J], o[:, J:] / 2)),
    "full_gaussian": ({}, 14, ("normal", (J,)), lambda o: MultivariateNormal(o[:, :J], by_hand(o))),
    "laplace": ({}, 2 * J, ("uniform", (J,)), lambda o: Laplace(o[:, :J], o[:, J:])),
    "logistic": ({}, 2 * J, ("uniform", (J,)), lambda o: Logistic(o[:, :J], o[:, J:])),
    "gumbel": ({}, 2 * J, ("uniform", (J,)), lambda o: Gumbel(o[:, :J], o[:, J:])),
    "student_t": ({"df": 3.5}, 2 * J, ("normal", (J, 2)), lambda o: StudentT(o[:, :J], o[:, J:], 3.5)),
    "multivariate_t": ({"df": 3.5}, 14, ("normal", (J + 1,)), lambda o: MultivariateT(o[:, :J], by_hand(o), 3.5)),
    "uniform": ({}, 2 * J, ("uniform", (J,)), lambda o: Uniform(o[:, :J], o[:, J:])),
    "cauchy": ({}, 2 * J, ("uniform", (J,)), lambda o: Cauchy(o[:, :J], o[:, J:])),
}
each_row = pytest.mark.parametrize("name", POSTERIORS)


def head_of(name):
    return POSTERIORS[name](J, **CASES[name][0])


def noise_of(head, *samples, seed=4):
    draw = torch.randn if head.noise.kind == "normal" else torch.rand
    return draw(*samples, *head.noise.shape, generator=torch.Generator().manual_seed(seed))


def model_of(head):
    torch.manual_seed(0)
    encoder, decoder = torch.nn.Linear(D, head.output_size), torch.nn.Linear(J, D)
    return vae.VAE(encoder, decoder, vae.Gaussian((D,), variance="fixed"), posterior=head)


def test_every_posterior_has_an_oracle():
    assert CASES.keys() == POSTERIORS.keys()


@each_row
class TestPosterior:
    def test_size_and_noise(self, name):
        head, (_, size, noise, _) = head_of(name), CASES[name]
        assert (head.latent_dim, head.output_size, head.noise[:2]) == (J, size, noise)
        q = head(numbers(M, size))
        assert q.noise[:2] == (noise[0], (M, *noise[1]))
        one = POSTERIORS[name](1)
        assert one(numbers(M, one.output_size)).transform(noise_of(one, L, M)).shape == (L, M, 1)

    def test_outputs_mean_what_they_say(self, name):
        head = head_of(name)
        outputs = numbers(M, head.output_size)
        noise = noise_of(head, L, M)
        q, meant = head(outputs), CASES[name][3](outputs)
        assert type(q) is type(meant)
        for ours, theirs in zip(q.transform_and_log_prob(noise), meant.transform_and_log_prob(noise), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)

    def test_zeros_mean_a_unit_scale_near_zero(self, name):
        """Half of the samples lie within 0.3 to 1.5 of 0, whatever the tails."""
        head = head_of(name)
        z = head(torch.zeros(1, head.output_size)).transform(noise_of(head, 20_000, 1))
        assert z.abs().median().item() == pytest.approx(0.9, abs=0.6)
        assert z.median().abs().item() < 0.4  # that of a Gumbel is 0.37

    def test_joint_density_equals_the_direct_one(self, name):
        head = head_of(name)
        q = head(numbers(M, head.output_size))
        z, log_q = q.transform_and_log_prob(noise_of(head, L, M))
        assert z.shape == (L, M, J)
        assert sum_from(log_q, 2).shape == (L, M)
        torch.testing.assert_close(log_q, q.log_prob(z), rtol=1e-10, atol=1e-10)

    def test_any_finite_outputs_make_a_distribution(self, name):
        """In float32, at scales of e^-20 to e^20, no check stops the step and no density is NaN."""
        head = head_of(name)
        for scale in (-20.0, 20.0):
            outputs = torch.full((M, head.output_size), scale, dtype=torch.float32)
            z, log_q = head(outputs).transform_and_log_prob(noise_of(head, L, M).float())
            assert z.isfinite().all()
            assert log_q.isfinite().all()

    def test_a_few_steps_by_estimator_a_raise_the_bound(self, name):
        model = model_of(head_of(name))
        x = numbers(M, D, seed=7)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
        noise = noise_of(model.posterior_head, 16, M)
        bounds = []
        for _ in range(15):
            optimizer.zero_grad()
            estimate, _ = EstimatorA(num_samples=16)(model, x, {"eps": noise}, {}, 0)
            assert estimate.bound.shape == (M,)
            (-estimate.surrogate.mean()).backward()
            for parameter in model.parameters():
                assert parameter.grad.isfinite().all()
            assert (model.encoder.weight.grad != 0).all()
            bounds.append(estimate.bound.mean().item())
            optimizer.step()
        assert bounds[-1] > bounds[0] + 0.1

    def test_kl_to_the_prior_is_exact_and_infinite_where_the_head_says_so(self, name):
        model = model_of(head_of(name))
        x = numbers(M, D, seed=7)
        q = model.posterior(x)
        assert has_exact_kl(q, model.prior)
        kl = sum_from(kl_divergence(q, model.prior), 1)
        assert kl.shape == (M,)
        assert torch.isinf(kl).all().item() == model.posterior_head.kl_is_infinite == (name == "cauchy")
        assert torch.isinf(kl).any().item() == (name == "cauchy")
        if name != "cauchy":
            assert (
                EstimatorB()(model, x, {"eps": noise_of(model.posterior_head, 1, M)}, {}, 0)[0].bound.isfinite().all()
            )

    def test_read_back_and_built_again(self, name):
        head = head_of(name)
        part = describe(head, POSTERIORS)
        assert (part.name, part.options) == (name, CASES[name][0])
        assert vars(part.build(POSTERIORS, J))["output_size"] == head.output_size

    def test_a_config_with_it_builds(self, name):
        posterior = {"name": name, **CASES[name][0]}
        model = vae.build({"data": {"name": "digits"}, "model": {"latent_dim": J, "posterior": posterior}})
        assert describe(model.posterior_head, POSTERIORS).options == CASES[name][0]
        assert model.noise == head_of(name).noise
        x = torch.rand(M, 1, 8, 8)
        assert model.encode(x).shape == (M, J)
        assert model.encode(x).isfinite().all()

    def test_latent_dim_must_be_a_count(self, name):
        with pytest.raises(UsageError, match="latent_dim must be a whole number of at least 1, not 0"):
            POSTERIORS[name](0)


@pytest.mark.parametrize("name", ["student_t", "multivariate_t"])
def test_degrees_of_freedom(name):
    assert POSTERIORS[name](J).df == 5
    assert [POSTERIORS[name](J, df=df).kl_is_infinite for df in (1.0, 2.0, 2.1)] == [True, True, False]
    with pytest.raises(ConfigError, match="df: must be at least 0.1 and at most 1e\\+06, not -1"):
        POSTERIORS[name](J, df=-1)
    with pytest.raises(ConfigError, match="model.posterior.dff: no such setting; did you mean df"):
        vae.build({"data": {"name": "digits"}, "model": {"latent_dim": J, "posterior": {"name": name, "dff": 3}}})


def test_full_gaussian_reaches_the_exact_posterior_that_a_diagonal_one_misses():
    """Of the linear-Gaussian model with the best q of each kind: the KL of the second is that of its correlations."""
    covariance = torch.tensor([[1.0, 0.6], [0.6, 0.8]])
    exact = MultivariateNormal(torch.zeros(1, 2), torch.linalg.cholesky(covariance)[None])
    factor = exact.scale_tril[0]
    outputs = torch.tensor([[0.0, 0.0, *factor.diagonal().log(), factor[1, 0]]])
    assert kl_divergence(POSTERIORS["full_gaussian"](2)(outputs), exact).item() == pytest.approx(0, abs=1e-15)
    precision = torch.linalg.inv(covariance)
    best = torch.tensor([[0.0, 0.0, *(-precision.diagonal().log())]])
    gap = -0.5 * math.log(1 - 0.36 / 0.8)
    assert kl_divergence(POSTERIORS["diagonal_gaussian"](2)(best), exact).item() == pytest.approx(gap, rel=1e-12)
