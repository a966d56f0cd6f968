"""The estimators of log p(x) against models whose log p(x) is known, and against the mistakes that others made.

Statistical tests have a fixed seed and allow 4.5 standard errors (7e-6 of false alarms each) unless they say otherwise.
"""

import copy
import math

import numpy as np
import pytest
import scipy.integrate
import torch
from torch import nn

import vae
from tests.oracles import numbers
from tests.problems import LinearGaussian, two_modes
from vae import hmc
from vae.commands.evaluate import METHODS
from vae.data import Split
from vae.distributions import Normal
from vae.errors import TrainingFailed, UsageError, VaeError
from vae.evaluation import (
    LOG_LIKELIHOODS,
    Annealed,
    DatumNoise,
    FittedDensity,
    Gaps,
    ImportanceSampling,
    Quadrature,
    SandwichedAnnealing,
    measure,
    pareto,
    simulated,
)
from vae.evaluation.annealed import Path, anneal, schedule, tuned_kernel
from vae.evaluation.base import rows_at_once
from vae.evaluation.density import fit_log_ratio, fitted_gaussian
from vae.evaluation.gaps import SAMPLES, best_in_family
from vae.evaluation.importance import Stream, stream_weights

pytestmark = pytest.mark.usefixtures("float64")


def split_of(x):
    return Split(x, None, torch.arange(len(x)))


def near_posterior(J=2, D=5, seed=0):
    """A linear-Gaussian model whose encoder is off the best diagonal one by a little."""
    problem = LinearGaussian.random(D, J, seed)
    inverse = torch.linalg.inv(problem.precision)
    problem.A = inverse @ problem.W.T / problem.s2
    problem.c = -problem.A @ problem.b + 0.1
    problem.S = 1.2 / problem.precision.diagonal()
    return problem


SMALL = {
    "is": ImportanceSampling(num_samples=2000),
    "hmc": FittedDensity(num_samples=300, chains=8, num_leapfrog=5),
    "ais": Annealed(num_samples=40, chains=8, num_leapfrog=3),
    "quadrature": Quadrature(num_samples=64),
}


def test_every_estimator_is_here():
    assert SMALL.keys() == LOG_LIKELIHOODS.keys() == set(METHODS)
    assert all(type(SMALL[name]) is row and row.method == name for name, row in LOG_LIKELIHOODS.items())


@pytest.mark.parametrize("method", SMALL)
class TestEveryEstimator:
    def test_meets_the_closed_form(self, method):
        """Each datum within 6 of its own errors (they are estimates themselves), the mean within 4.5."""
        problem = near_posterior()
        x = problem.data(11)
        columns = measure(problem.model(), split_of(x), SMALL[method], name="t")
        off = columns["log_p_x"] - problem.log_p_x(x)
        assert (off.abs() < 6 * columns["error"] + 1e-6).all()
        assert abs(off.mean().item()) < 4.5 * columns.monte_carlo_error() + 1e-6
        assert columns.monte_carlo_error() < 0.02

    def test_log_p_x_above_zero_keeps_its_sign(self, method):
        problem = near_posterior()
        problem.s2 = 1e-4
        problem.W = 0.01 * problem.W
        problem.A, problem.c = problem.A * 0, problem.c * 0
        problem.S = 1 / problem.precision.diagonal()
        x = problem.b + 0.01 * numbers(3, 5, seed=4)
        columns = measure(problem.model(), split_of(x), SMALL[method], name="t")
        assert (problem.log_p_x(x) > 10).all()
        torch.testing.assert_close(columns["log_p_x"], problem.log_p_x(x), rtol=0, atol=0.7)

    def test_order_limit_and_batch_change_nothing_but_rounding(self, method, monkeypatch):
        problem = near_posterior()
        split = split_of(problem.data(4))
        model = problem.model()
        whole = measure(model, split, SMALL[method], name="t")["log_p_x"]
        for size in (1, 3):
            monkeypatch.setattr(type(SMALL[method]), "data_at_once", lambda self, model, size=size: size)
            again = measure(model, split, SMALL[method], name="t")["log_p_x"]
            torch.testing.assert_close(again, whole, rtol=1e-8, atol=1e-8)
        order = torch.tensor([3, 0, 2])
        some = Split(split.x[order], None, order)
        torch.testing.assert_close(
            measure(model, some, SMALL[method], name="t")["log_p_x"], whole[order], rtol=1e-8, atol=1e-8
        )

    def test_model_modes_and_generators_stay_as_they_were(self, method):
        torch.manual_seed(0)
        decoder = nn.Sequential(nn.Linear(2, 6), nn.BatchNorm1d(6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, 5))
        model = vae.VAE(nn.Linear(5, 4), decoder, vae.Gaussian((5,), variance="fixed")).double().train()
        model.encoder.eval()
        before = {key: value.clone() for key, value in model.state_dict().items()}
        generator, modes = torch.get_rng_state(), [m.training for m in model.modules()]
        measure(model, split_of(numbers(3, 5)), SMALL[method], name="t")
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
        assert torch.equal(torch.get_rng_state(), generator)
        assert [m.training for m in model.modules()] == modes
        assert all(p.grad is None for p in model.parameters())

    def test_autocast_around_it_changes_nothing(self, method):
        problem = near_posterior()
        model, split = problem.model().float(), split_of(problem.data(2).float())
        plain = measure(model, split, SMALL[method], name="t")["log_p_x"]
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(measure(model, split, SMALL[method], name="t")["log_p_x"], plain)

    def test_a_value_that_is_not_finite_is_an_error_and_names_the_datum(self, method):
        problem = near_posterior()
        x = problem.data(3)
        x[1, 2] = 1e200
        with pytest.raises(TrainingFailed, match=r"log p\(x\) of datum 1 of t is not finite"):
            measure(problem.model(), split_of(x), SMALL[method], name="t")

    def test_the_verdict_is_a_sentence(self, method):
        problem = near_posterior()
        columns = measure(problem.model(), split_of(problem.data(3)), SMALL[method], name="t")
        enough, words = SMALL[method].verdict(columns.values, 2)
        assert isinstance(enough, bool)
        assert len(words) > 20


@pytest.mark.parametrize("method", ["is", "ais", "gaps"])
def test_a_q_that_cannot_cover_the_posterior_is_refused(method):
    """Its weights are bounded, so that every diagnosis looks well, and log p(x) is half a nat too low."""
    head = vae.UniformPosterior(2)
    model = vae.VAE(nn.Linear(5, 4), nn.Linear(2, 5), vae.Gaussian((5,), variance="fixed"), posterior=head).double()
    estimator = Gaps() if method == "gaps" else LOG_LIKELIHOODS[method]()
    with pytest.raises(UsageError, match="bounded support does not cover"):
        measure(model, numbers(3, 5), estimator)
    exact = measure(model, numbers(3, 5), Quadrature())["log_p_x"]
    annealed = measure(model, numbers(3, 5), Annealed(num_samples=100, start="prior"))
    assert ((annealed["log_p_x"] - exact).abs() < 5 * annealed["error"] + 0.02).all()


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: ImportanceSampling(num_samples=0), "num_samples: must be at least 1, not 0"),
        (lambda: ImportanceSampling(num_samples=2.5), "num_samples: expected a whole number, not 2.5"),
        (lambda: Annealed(num_samples=0), "num_samples: must be at least 1, not 0"),
        (lambda: Annealed(chains=0), "chains: must be at least 1, not 0"),
        (lambda: Annealed(start="foo"), "'foo' is not one of posterior, prior"),
        (lambda: Annealed(num_leapfrog=0), "num_leapfrog: must be at least 1, not 0"),
        (lambda: FittedDensity(chains=5), "hmc needs an even number of chains, at least 4, not 5"),
        (lambda: Quadrature(num_samples=-1), "num_samples: must be at least 1, not -1"),
        (lambda: Gaps(num_samples=0), "num_samples: must be at least 1, not 0"),
    ],
)
def test_options_are_held_to_their_ranges(make, sentence):
    with pytest.raises(VaeError) as error:
        make()
    assert sentence in str(error.value)


def test_what_is_measured_is_checked_as_data_and_as_an_estimator():
    problem = near_posterior()
    model, x = problem.model(), problem.data(3)
    with pytest.raises(UsageError, match=r"x must have shape \(M, 5\)"):
        measure(model, x[:, :4], Quadrature())
    with pytest.raises(UsageError, match="estimator must be one such as"):
        measure(model, x, Quadrature)
    bernoulli = vae.VAE(nn.Linear(5, 4), nn.Linear(2, 5), vae.Bernoulli((5,)))
    with pytest.raises(UsageError, match="of values 0 or 1"):
        measure(bernoulli, x, Quadrature())
    torch.testing.assert_close(
        measure(model, x.numpy(), Quadrature())["log_p_x"], measure(model, split_of(x), Quadrature())["log_p_x"]
    )
    with pytest.raises(UsageError, match="num_samples must be at least 8, not 7"):
        measure(model, x, FittedDensity(num_samples=7))
    with pytest.raises(UsageError, match="at most 5477 points an axis, not 9000"):
        measure(model, x, Quadrature(num_samples=9000))


# ------------------------------------------------------------------------------------- importance sampling


def test_streamed_sum_equals_the_sum_in_one():
    """97 chunks of weights that differ by e^30, the first of them all zero."""
    log_w = 30 * numbers(970, 3, seed=1)
    log_w[:10] = -math.inf
    log_w[:, 2] -= 4000  # underflows unless scaled
    stream = Stream.empty(log_w[0])
    for chunk in log_w.split(10):
        stream = stream.add(chunk, 96)
    expected = torch.logsumexp(log_w, 0) - math.log(970)
    torch.testing.assert_close(stream.log_mean, expected, rtol=1e-12, atol=1e-12)
    w = (log_w - log_w.amax(0)).exp()
    torch.testing.assert_close(stream.ess, w.sum(0).square() / w.square().sum(0), rtol=1e-12, atol=1e-12)
    top = torch.topk(log_w, 96, dim=0).values
    torch.testing.assert_close(stream.tail.sort(0, descending=True).values, top)
    assert stream.samples == 970


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 99, 100, 101, 250])
def test_samples_used_are_samples_asked_for(n):
    """Counted at the decoder, and in the estimate: the mean of the first n weights, whatever the chunks."""
    problem = near_posterior()
    x, model, rows = problem.data(3), problem.model(), []
    model.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    noise = DatumNoise(0, "t", torch.arange(3), x)
    with torch.no_grad():
        stream = stream_weights(model, x, model.posterior(x), noise, n)
    assert stream.samples == n
    assert sum(rows) == 3 * n
    eps = torch.cat([noise("is", model.noise, min(100, n - 100 * b), b) for b in range(math.ceil(n / 100))])
    assert len(eps) == n
    with torch.no_grad():
        q = model.posterior(x)
        z, log_q = q.transform_and_log_prob(eps)
        log_w = model.log_joint(x, z) - log_q.sum(-1)
    torch.testing.assert_close(stream.log_mean, torch.logsumexp(log_w, 0) - math.log(n), rtol=1e-12, atol=1e-12)


def test_chunks_do_not_matter(monkeypatch):
    problem = near_posterior()
    model, split = problem.model(), split_of(problem.data(3))
    values = []
    for rows in (100, 150, 450, 10_000):
        monkeypatch.setattr("vae.evaluation.importance.PAIRS", rows)
        monkeypatch.setattr("vae.evaluation.base.rows_at_once", lambda model, rows=rows: rows // 3)
        values.append(measure(model, split, ImportanceSampling(num_samples=730), name="t"))
    for other in values[1:]:
        for key in other.values:
            torch.testing.assert_close(other[key], values[0][key], rtol=1e-9, atol=1e-9)


def test_memory_does_not_grow_with_the_number_of_samples():
    """No more than suits the decoder is decoded at once, and only the tail is kept, for K = 100,000."""
    problem = near_posterior()
    x, model, rows = problem.data(2), problem.model(), []
    model.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    with torch.no_grad():
        stream = stream_weights(model, x, model.posterior(x), DatumNoise(0, "t", torch.arange(2), x), 100_000)
    assert max(rows) <= rows_at_once(model)
    assert len(stream.tail) == pareto.tail_length(100_000) + 1 == 950
    assert (stream.log_mean - problem.log_p_x(x)).abs().max() < 0.02


def test_a_single_sample_knows_no_error():
    problem = near_posterior()
    columns = measure(problem.model(), split_of(problem.data(2)), ImportanceSampling(num_samples=1), name="t")
    assert columns["error"].isnan().all()
    assert not ImportanceSampling(num_samples=1).verdict(columns.values, 2)[0]


def scalar_weights(precision_times_variance, shift, n, repetitions, seed):
    """log(w / p(x)) of a scalar Gaussian posterior under a q of other width and place, by its closed form."""
    a, k0 = precision_times_variance - 1, 0.5 * math.log(precision_times_variance)
    d = shift  # (mean - posterior mean) in posterior deviations
    eps = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, repetitions)))
    sigma = math.sqrt(precision_times_variance)
    return k0 + 0.5 * eps.square() - 0.5 * (d + sigma * eps).square() + 0 * a


def test_the_bias_is_half_the_squared_error_downwards():
    """Weights 1, 1, 2: sum w^2 / (sum w)^2 - 1 / 3 = 6 / 16 - 1 / 3 = 1 / 24 is the squared error."""
    log_w = torch.tensor([[1.0], [1.0], [2.0]]).log()
    stream = Stream.empty(log_w[0]).add(log_w, 3)
    assert stream.error.item() == pytest.approx(math.sqrt(1 / 24), rel=1e-12)
    assert stream.bias.item() == pytest.approx(-1 / 48, rel=1e-12)


def test_the_standard_error_covers_where_weights_are_light():
    """q of the reference case (variance 1.47 posterior variances): within 2 errors in 92 to 98 % of 2000 repetitions."""
    log_w = scalar_weights(3 * 0.49, (0.4 - 2 / 3) * math.sqrt(3), 5000, 2000, seed=1)
    stream = Stream.empty(log_w[0]).add(log_w, 214)
    covered = (stream.log_mean.abs() < 2 * stream.error).double().mean().item()
    assert 0.92 <= covered <= 0.98
    assert stream.log_mean.std().item() == pytest.approx(0.0059, rel=0.05)


def test_the_standard_error_fails_under_heavy_weights_and_k_hat_tells():
    """q of 0.3 posterior variances (tail index 0.7): coverage falls below 90 % and k-hat lies above 0.5."""
    log_w = scalar_weights(0.3, 0.0, 10_000, 300, seed=2)
    stream = Stream.empty(log_w[0]).add(log_w, pareto.tail_length(10_000) + 1)
    assert (stream.log_mean.abs() < 2 * stream.error).double().mean() < 0.9
    assert pareto.k_hat(stream.tail, 10_000).mean() > 0.5


# ------------------------------------------------------------------------------------- Pareto k-hat


def test_tail_lengths():
    assert [pareto.tail_length(n) for n in (100, 1000, 5000, 10_000)] == [20, 95, 213, 300]


def test_k_hat_of_pareto_tails():
    """Pure generalized Pareto weights, tail of 300: mean within 4.5 standard errors of the fit's own bias and spread."""
    generator = np.random.default_rng(3)
    for k, mean, spread in ((0.2, 0.209, 0.071), (0.5, 0.491, 0.079), (0.7, 0.695, 0.101), (1.0, 0.987, 0.105)):
        u = torch.from_numpy(generator.random((300, 400)))
        exceedances = ((1 - u) ** -k - 1) / k
        log_w = torch.cat([torch.full((1, 400), -40.0).exp(), exceedances]).log()  # the largest below the tail: about 0
        found = pareto.k_hat(log_w, 10_000)
        assert found.mean().item() == pytest.approx(mean, abs=4.5 * spread * math.sqrt(1 / 400 + 1 / 100))
        assert found.std().item() == pytest.approx(spread, rel=0.35)


def test_k_hat_of_a_short_tail_is_drawn_to_one_half():
    """Five exceedances over a threshold of 1, by Zhang & Stephens' formulas as sums; the prior is as good as 10 data."""
    x, m = [1.0, 2.0, 4.0, 8.0, 16.0], 30 + 2
    thetas = [1 / x[-1] + (1 - math.sqrt(m / (j - 0.5))) / (3 * x[0]) for j in range(1, m + 1)]  # x[0]: the quartile
    shapes = [sum(math.log1p(-theta * value) for value in x) / 5 for theta in thetas]
    likelihoods = [(-t / k * math.exp(-k - 1)) ** 5 for t, k in zip(thetas, shapes, strict=True)]
    theta = sum(t * p for t, p in zip(thetas, likelihoods, strict=True)) / sum(likelihoods)
    k = sum(math.log1p(-theta * value) for value in x) / 5
    log_w = torch.tensor([[1 + value] for value in (0.0, *x)]).log()
    assert pareto.tail_length(25) == 5
    assert pareto.k_hat(log_w, 25).item() == pytest.approx((5 * k + 10 * 0.5) / 15, rel=1e-12)
    assert abs(k - 0.5) > 0.1  # without the prior it would be another number


def test_k_hat_orders_tails_ignores_scale_and_is_negative_for_bounded_weights():
    k = [pareto.k_hat(scalar_weights(r, 0.0, 10_000, 60, seed=4), 10_000).mean() for r in (1.5, 0.9, 0.5, 0.2)]
    assert k[0] < 0 < k[1] < k[2] < k[3]
    log_w = scalar_weights(0.5, 0.2, 1000, 5, seed=5)
    torch.testing.assert_close(pareto.k_hat(log_w - 700, 1000), pareto.k_hat(log_w, 1000))


def test_k_hat_without_a_tail_is_infinite():
    assert pareto.k_hat(torch.zeros(21, 2), 100).isinf().all()
    assert pareto.k_hat(numbers(20, 2), 20).isinf().all()  # a tail of 4
    assert pareto.usable(20) == -math.inf
    assert [round(pareto.usable(n), 2) for n in (100, 1000, 5000)] == [0.5, 0.67, 0.7]


# ------------------------------------------------------------------------------------- appendix D


def fit_and_plug(J, L, repetitions, seed, same=False):
    """log p-hat - log p where the posterior is a standard Gaussian and its samples are exact."""
    fit, plug = numbers(L, repetitions, J, seed=seed), numbers(L, repetitions, J, seed=seed + 1)
    plug = fit if same else plug
    log_joint = (-0.5 * plug.square() - 0.5 * math.log(2 * math.pi)).sum(-1)
    return -(torch.logsumexp(fit_log_ratio(fit, plug, log_joint), 0) - math.log(L))


def test_fitted_density_with_exact_samples():
    """500 + 500 samples: root mean square error about 0.009 in 5 dimensions, 0.017 in 10."""
    assert fit_and_plug(5, 500, 200, 6).square().mean().sqrt() < 0.015
    assert fit_and_plug(10, 500, 200, 8).square().mean().sqrt() < 0.025


def test_plugging_the_fitted_samples_in_again_would_be_biased():
    """-P / L with P = J (J + 3) / 2: the halves of the library are disjoint, and this is what it would look like."""
    biased = fit_and_plug(5, 50, 600, 10, same=True)
    assert biased.mean().item() == pytest.approx(-0.43, abs=0.08)  # shrinkage takes some of it away
    assert abs(fit_and_plug(5, 50, 600, 12).mean().item()) < 0.05


def test_harmonic_ratios_of_a_narrow_density_have_the_known_variance():
    """E[r^2] = 1 / sqrt(tau (2 - tau)) = 1.1547 for a density of half the posterior's variance."""
    z = numbers(1_000_000, seed=14)
    ratio = math.sqrt(2) * (-0.5 * z.square()).exp()
    assert ratio.square().mean().item() == pytest.approx(1.1547, abs=4.5 * ratio.square().std().item() / 1000)


def test_shrinkage_keeps_the_fit_positive_definite_with_few_samples():
    fitted = fitted_gaussian(numbers(3, 2, 8))
    assert fitted.shape == (2, 8)
    assert torch.isfinite(fitted.scale_tril).all()
    assert torch.isfinite(fitted.log_diagonal).all()  # its diagonal is positive


def test_appendix_d_meets_the_closed_form_in_five_dimensions():
    problem = near_posterior(J=5, D=9)
    x = problem.data(4)
    estimator = FittedDensity(num_samples=2000, num_leapfrog=8)
    columns = measure(problem.model(), split_of(x), estimator, name="t")
    assert (columns["log_p_x"] - problem.log_p_x(x)).abs().max() < 0.1
    assert (columns["r_hat"] < 1.1).all()


@pytest.mark.slow
def test_appendix_d_against_the_number_of_latents(capsys):
    """Where does it fail? Posterior samples exact, and drawn by HMC, of linear-Gaussian models; prints a table."""
    rows = []
    for J in (1, 2, 3, 4, 5, 7, 10, 15, 20):
        for L in (50, 500):
            exact = fit_and_plug(J, L // 2, 300, seed=70)
            problem = near_posterior(J=J, D=J + 4, seed=J)
            x = problem.data(50)
            columns = measure(problem.model(), split_of(x), FittedDensity(num_samples=L, num_leapfrog=8), name="t")
            drawn = columns["log_p_x"] - problem.log_p_x(x)
            figures = [(off.mean().item(), off.square().mean().sqrt().item()) for off in (exact, drawn)]
            rows.append(
                (J, L, figures, columns["error"].mean().item(), (columns["k_hat"] > 0.7).double().mean().item())
            )
    with capsys.disabled():
        print("\nJ    L   exact samples: bias  rmse    by HMC: bias  rmse   error said   k-hat > 0.7")
        for J, L, ((b, r), (c, s)), e, k in rows:
            print(f"{J:2} {L:5} {b:19.3f} {r:6.3f} {c:14.3f} {s:6.3f} {e:10.3f} {k:12.0%}")
    errors = {(J, L): figures[1][1] for J, L, figures, *_ in rows}
    assert all(errors[J, 500] < 0.05 for J in (1, 2, 3, 4))
    assert errors[20, 50] > 0.3


# ------------------------------------------------------------------------------------- annealed importance sampling


def annealing(chains, num_steps, seed, start="posterior"):
    """Path, kernel and draws of f_0 for one datum of a model with D = 12, J = 4."""
    problem = LinearGaussian.random(D=12, J=4, seed=5)
    problem.s2 = 0.2
    inverse = torch.linalg.inv(problem.precision)
    problem.A = inverse @ problem.W.T / problem.s2
    problem.c = -problem.A @ problem.b + 0.05
    problem.S = 1.3 / problem.precision.diagonal()
    x, model = problem.data(1), problem.model()
    with torch.no_grad():
        q = model.posterior(x)
    first = q if start == "posterior" else model.prior
    path = Path(
        lambda z: first.log_prob(z).sum(-1),
        lambda z: model.log_joint(x, z).detach() if not z.requires_grad else model.log_joint(x, z),
        schedule(num_steps, "sigmoid"),
    )
    draw = lambda t, salt=0: numbers(16, 1, 6, seed=seed + 7919 * salt + t)  # noqa: E731
    z = first.transform(numbers(16, 1, 4, seed=seed))
    kernel = tuned_kernel(path, z, lambda t: draw(t, 1), q.std, 3)
    z0 = first.transform(numbers(chains, 1, 4, seed=seed + 1))
    return problem, x, path, kernel, z0, lambda t: numbers(chains, 1, 6, seed=seed + 31 * t)


def mean_weight(log_w, log_p):
    """The mean of w / p(x) and its standard error."""
    w = (log_w[:, 0] - log_p).exp()
    return w.mean().item(), w.std().item() / math.sqrt(len(w))


def test_annealed_weights_are_unbiased():
    """E[w] = p(x), 40,000 chains, 10 distributions; and the three bugs that others shipped fail the same check."""
    problem, x, path, kernel, z, noise = annealing(40_000, 10, seed=30)
    log_p = problem.log_p_x(x)
    mean, error = mean_weight(anneal(path, kernel, z, noise)[0], log_p)
    assert abs(mean - 1) < 4.5 * error
    assert error < 0.01

    def variant(move_first, accept):
        log_w, at = torch.zeros(len(z), 1), path.at(0)(z)
        for t in range(1, 11):

            def move(place, t=t):
                if t == 10:
                    return place
                if accept:
                    return kernel.move(path, t, place, noise(t))[0]
                size = 1.15 * kernel.step_sizes[t - 1]
                return hmc.leapfrog(path.at(t), path.at(t)(place.z), noise(t)[..., :4], size, kernel.scale, 3)[0]

            at = move(at) if move_first else at
            log_w = log_w + (path.betas[t] - path.betas[t - 1]) * path.difference(at)
            at = at if move_first else move(at)
        return mean_weight(log_w, log_p)

    assert variant(move_first=False, accept=True) == (mean, error)
    for bug in ({"move_first": True, "accept": True}, {"move_first": False, "accept": False}):
        wrong, error = variant(**bug)
        assert abs(wrong - 1) > 4.5 * error, bug


@pytest.mark.parametrize(("factor", "unbiased"), [(1.0, True), (2.5, False)], ids=["fixed", "adapted"])
def test_a_step_size_that_adapts_within_the_weighted_run_would_bias_it(factor, unbiased):
    """Why kernels are tuned in a run before: 200,000 chains of one latent, each multiplying its step size by the factor
    after an accepted proposal and dividing after a rejected one, miss E[w] = p(x) by more than 4.5 standard errors."""
    one = torch.ones(1, 1)
    problem = LinearGaussian(5 * one, torch.zeros(1), 1.0, 0 * one, torch.tensor([0.3]), torch.tensor([0.16]))
    x, chains = torch.tensor([[0.5]]), 200_000
    q, prior, pixels = (
        Normal(torch.tensor([m]), torch.tensor([s]).log()) for m, s in ((0.3, 0.4), (0.0, 1.0), (0.0, 1.0))
    )
    path = Path(
        lambda z: q.log_prob(z).sum(-1),
        lambda z: (prior.log_prob(z) + pixels.log_prob(x - 5 * z)).sum(-1),
        schedule(30, "linear"),
    )
    z, log_w, size = q.transform(numbers(chains, 1, 1, seed=80)), torch.zeros(chains, 1), torch.ones(chains, 1)
    for t in range(1, 31):
        log_w = log_w + (path.betas[t] - path.betas[t - 1]) * path.difference(path.at(0)(z))
        noise = numbers(chains, 1, 3, seed=80 + 31 * t)
        state, _ = hmc.step(path.at(t), path.at(t)(z), noise, size, 0.4 * one, 1)
        size = size * torch.where((state.z != z)[..., 0], factor, 1 / factor)
        z = state.z
    mean, error = mean_weight(log_w, problem.log_p_x(x))
    assert (abs(mean - 1) < 4.5 * error) == unbiased


def test_annealing_is_a_lower_bound_and_its_reverse_an_upper_one():
    """E[log w] <= log p <= reverse; the gap shrinks with the number of distributions, from the prior and from q."""
    gaps = []
    for num_steps in (8, 60):
        problem, x, path, kernel, z, noise = annealing(500, num_steps, seed=40, start="prior")
        forward, _ = anneal(path, kernel, z, noise)
        exact = problem.posterior_samples(x, numbers(500, 1, 4, seed=41))
        backward, _ = anneal(path, kernel, exact, lambda t, noise=noise: noise(t + 1000), backwards=True)
        log_p = problem.log_p_x(x).item()
        slack = 4.5 * math.sqrt(forward.var() / 500)
        assert forward.mean().item() < log_p + slack
        assert backward.mean().item() > log_p - 4.5 * math.sqrt(backward.var() / 500)
        gaps.append((backward.mean() - forward.mean()).item())
    assert gaps[1] < 0.5 * gaps[0]


def test_equal_ends_give_weight_zero_exactly():
    _problem, _x, path, kernel, z, noise = annealing(3, 5, seed=50)
    same = Path(path.log_joint, path.log_joint, path.betas)
    assert torch.equal(anneal(same, kernel, z, noise)[0], torch.zeros(3, 1))


def test_one_distribution_is_importance_sampling():
    _problem, _x, path, kernel, z, noise = annealing(7, 5, seed=60)
    once = Path(path.log_start, path.log_joint, schedule(1, "linear"))
    log_w, _ = anneal(once, kernel, z, noise)
    torch.testing.assert_close(log_w, path.difference(path.at(0)(z)), rtol=0, atol=0)


@pytest.mark.parametrize("kind", ["linear", "sigmoid"])
def test_schedules_rise_from_zero_to_one(kind):
    betas = schedule(17, kind)
    assert len(betas) == 18
    assert betas[0] == 0
    assert betas[-1] == pytest.approx(1, abs=1e-15)
    assert (betas.diff() > 0).all()


def test_the_sandwich_closes_on_simulated_data():
    """Within 0.05 nats at 200 distributions, on either side of the exact value."""
    problem = near_posterior()
    model = problem.model()
    split, codes = simulated(model, 5, seed=0)
    exact = problem.log_p_x(split.x).mean().item()
    columns = measure(model, split, SandwichedAnnealing(num_samples=200, codes=codes), name="simulated")
    lower, upper = columns["log_p_x"].mean().item(), columns["upper"].mean().item()
    slack = 4.5 * columns.monte_carlo_error()
    assert lower - slack < exact < upper + slack
    assert abs(upper - lower) < 0.05


@pytest.fixture
def sandwich_of_known_weights(monkeypatch):
    """Columns of two data whose three chains have the weights 1, 1, 2 and 1, 3, 6, run backwards as forwards."""
    log_w = torch.tensor([[1.0, 1.0], [1.0, 3.0], [2.0, 6.0]]).log()
    monkeypatch.setattr("vae.evaluation.annealed.anneal", lambda *args, **how: (log_w, torch.ones(2)))
    problem = near_posterior()
    x, model = problem.data(2), problem.model()
    sandwich = SandwichedAnnealing(num_samples=2, chains=3, num_leapfrog=1, codes=torch.zeros(2, 2))
    return measure(model, split_of(x), sandwich, name="t")


def test_the_upper_bound_is_less_the_log_of_the_mean_inverse_weight(sandwich_of_known_weights):
    """Mean inverses (1 + 1 + 1/2) / 3 = 5/6 and (1 + 1/3 + 1/6) / 3 = 1/2."""
    expected = torch.tensor([6 / 5, 2.0]).log()
    torch.testing.assert_close(sandwich_of_known_weights["upper"], expected, rtol=1e-12, atol=0)


def test_the_error_of_the_upper_bound_is_that_of_the_mean_inverse_weight(sandwich_of_known_weights):
    """Inverses v: sum v^2 / (sum v)^2 - 1/3 = 9/25 - 1/3 = 2/75 and 41/81 - 1/3 = 14/81."""
    expected = torch.tensor([2 / 75, 14 / 81]).sqrt()
    torch.testing.assert_close(sandwich_of_known_weights["upper_error"], expected, rtol=1e-12, atol=0)


def test_simulated_data_come_from_the_model_and_do_not_depend_on_their_number():
    problem = near_posterior()
    model = problem.model()
    split, codes = simulated(model, 4000, seed=1)
    few, few_codes = simulated(model, 7, seed=1)
    assert torch.equal(few.x, split.x[:7])
    assert torch.equal(few_codes, codes[:7])
    C = problem.W @ problem.W.T + problem.s2 * torch.eye(5)
    torch.testing.assert_close(torch.cov(split.x.T), C, rtol=0.15, atol=0.15)
    residual = split.x - codes @ problem.W.T - problem.b
    assert residual.std().item() == pytest.approx(math.sqrt(problem.s2), rel=0.03)


# ------------------------------------------------------------------------------------- quadrature


@pytest.mark.parametrize(("J", "points"), [(1, None), (2, None), (3, None), (1, 40), (2, 30), (3, 20)])
def test_quadrature_is_exact_to_what_it_states(J, points):
    problem = LinearGaussian.random(D=5, J=J, seed=J)
    x = problem.data(4)
    columns = measure(problem.model(), split_of(x), Quadrature(num_samples=points), name="t")
    assert (columns["error"] <= 1e-4).all()
    assert ((columns["log_p_x"] - problem.log_p_x(x)).abs() <= 1e-9).all()


def test_quadrature_takes_the_model_to_double_precision_once(monkeypatch):
    problem = LinearGaussian.random(D=5, J=2, seed=2)
    model, x = problem.model().float(), problem.data(5).float()
    expected = measure(copy.deepcopy(model).double(), split_of(x), Quadrature(num_samples=30), name="t").values
    copies, real = [], copy.deepcopy
    monkeypatch.setattr(copy, "deepcopy", lambda it, *more: (copies.append(type(it)), real(it, *more))[1])
    monkeypatch.setattr(Quadrature, "data_at_once", lambda self, model: 2)
    found = measure(model, split_of(x), Quadrature(num_samples=30), name="t").values
    assert copies.count(vae.VAE) == 1
    assert model.prior.mean.dtype == torch.float32
    for key, values in expected.items():
        torch.testing.assert_close(found[key], values, rtol=1e-12, atol=1e-12)


def test_quadrature_refines_posteriors_far_narrower_than_its_first_lattice():
    """Deviations of about 0.004, first spacing 0.16."""
    problem = LinearGaussian.random(D=5, J=2, seed=7)
    problem.s2 = 1e-4
    x = problem.b + numbers(3, 2, seed=8) @ problem.W.T + 0.01 * numbers(3, 5, seed=9)
    columns = measure(problem.model(), split_of(x), Quadrature(), name="t")
    torch.testing.assert_close(columns["log_p_x"], problem.log_p_x(x), rtol=0, atol=1e-6)
    assert (columns["points"] < 200_000).all()


def test_a_datum_that_reaches_the_limit_of_points_keeps_its_last_value(monkeypatch):
    """Two narrow posteriors and a wide one under a limit that stops some data levels before others."""
    problem = LinearGaussian.random(D=5, J=2, seed=7)
    problem.s2 = 1e-3
    x = problem.b + numbers(6, 2, seed=8) @ problem.W.T + 0.03 * numbers(6, 5, seed=9)
    full = evaluate(problem, x)
    for limit in (50, 500, 5000):
        monkeypatch.setattr("vae.evaluation.quadrature.POINTS", limit)
        columns = evaluate(problem, x)
        assert (columns["points"] <= full["points"]).all()
        off = (columns["log_p_x"] - problem.log_p_x(x)).abs()
        resolved = columns["error"] < 0.1  # elsewhere the first lattice is all there is, and says that it is off
        assert (off[resolved] <= columns["error"][resolved] + 1e-9).all()
        assert (columns["error"][~resolved] > 1).all()


def evaluate(problem, x):
    return measure(problem.model(), split_of(x), Quadrature(num_samples=100), name="t")


def exact_two_modes(model, x):
    def density(z, datum):
        point = torch.tensor([[[z]]])
        return math.exp(model.log_joint(datum[None], point).item() - reference)

    found = []
    for datum in x:
        grid = torch.linspace(-6, 6, 4001)[:, None, None]
        reference = model.log_joint(datum[None], grid).max().item()
        place = grid[model.log_joint(datum[None], grid).argmax()].abs().item()
        value, _ = scipy.integrate.quad(
            density, -8, 8, args=(datum,), points=[-place, place], limit=400, epsabs=0, epsrel=1e-10
        )
        found.append(math.log(value) + reference)
    return torch.tensor(found)


@torch.no_grad()
def test_quadrature_sees_both_modes_where_others_see_one():
    model = two_modes()
    x = model.likelihood(torch.full((1, 3, 1), 1.2)).mean[0] > torch.from_numpy(
        np.random.default_rng(0).random((3, 50))
    )
    x = x.double()
    exact = exact_two_modes(model, x)
    columns = measure(model, split_of(x), Quadrature(), name="t")
    torch.testing.assert_close(columns["log_p_x"], exact, rtol=0, atol=1e-8)
    one_mode = measure(model, split_of(x), ImportanceSampling(num_samples=4000), name="t")
    assert ((one_mode["log_p_x"] - exact) < -0.5).all()  # log 2 = 0.69 is missing: the encoder sees one mode


@torch.no_grad()
def test_annealing_from_q_misses_what_q_misses_from_the_prior_does_not_and_the_self_check_tells():
    """Posteriors of two equal modes, of which the encoder sees one: log 2 is missing, and the chains agree all the same."""
    model = two_modes()
    split, codes = simulated(model, 10, seed=0)
    both_seen = codes[:, 0].abs() > 0.8  # where the modes are far apart
    assert both_seen.sum() >= 2
    exact = exact_two_modes(model, split.x)
    quick = {"num_samples": 150, "chains": 16}
    from_q, from_prior = (
        measure(model, split, Annealed(**quick, start=start), name="t") for start in ("posterior", "prior")
    )
    missed = both_seen & (from_q["log_p_x"] - exact < -0.5)
    assert missed.any()
    assert (from_q["error"][missed] < 0.2).all()
    assert ((from_prior["log_p_x"] - exact)[both_seen].abs() < 0.5).all()
    sandwich = measure(model, split, SandwichedAnnealing(**quick, codes=codes), name="simulated")
    unseen = codes[:, 0] < -0.8  # where the code that made the datum is the mode that q does not see
    assert ((sandwich["upper"] - sandwich["log_p_x"])[unseen] > 0.3).any()


def test_quadrature_is_for_three_latents_at_most():
    problem = LinearGaussian.random(D=5, J=4)
    with pytest.raises(UsageError, match="quadrature is for up to 3 latents, and the model has 4; use is or ais"):
        measure(problem.model(), split_of(problem.data(1)), Quadrature(), name="t")


def test_the_trapezoid_on_a_unit_normal():
    """Spacing 1 leaves a relative error below 6e-9: the rate on which the refinement relies."""
    z = torch.arange(-12.0, 13.0)
    total = (-0.5 * z.square() - 0.5 * math.log(2 * math.pi)).exp().sum()
    assert abs(total.item() - 1) < 6e-9


# ------------------------------------------------------------------------------------- gaps


def test_gaps_of_the_reference_case():
    """Approximation .209573 (the family is diagonal), amortisation .092394 (the encoder is off): EM of both, .301967."""
    W = torch.tensor([[1.0, 0.8], [0.0, 0.6], [0.5, 0.5], [0.0, 0.3]])
    problem = LinearGaussian(W, torch.zeros(4), 0.5, torch.zeros(2, 4), torch.zeros(2), torch.tensor([0.3, 0.4]))
    x = torch.tensor([[1.0, -0.5, 0.7, 0.2]])
    problem.c = (problem.posterior_mean(x)[0] + torch.tensor([0.1, -0.2])).clone()
    columns = measure(problem.model(), split_of(x), Gaps(num_samples=20_000), name="t")
    assert problem.log_p_x(x).item() == pytest.approx(-4.088032, abs=1e-6)
    assert problem.elbo(x).item() == pytest.approx(-4.389999, abs=1e-6)
    assert columns["approximation"].item() == pytest.approx(0.209573, abs=4.5 * columns["best_error"].item())
    assert columns["amortisation"].item() == pytest.approx(0.092394, abs=4.5 * columns["best_error"].item())
    assert columns["best_error"].item() < 0.01


def test_gaps_add_up_and_are_not_negative_and_scored_on_fresh_noise():
    problem = LinearGaussian.random(D=5, J=2)
    x = problem.data(6)
    columns = measure(problem.model(), split_of(x), Gaps(num_samples=4000), name="t")
    total = columns["approximation"] + columns["amortisation"]
    torch.testing.assert_close(total, columns["log_p_x"] - columns["bound"])
    assert (columns["amortisation"] >= 0).all()
    error = (columns["bound_error"].square() + columns["error"].square()).sqrt()
    assert ((total - problem.kl_to_posterior(x)).abs() < 4.5 * error).all()
    best = problem.log_p_x(x) - 0.5 * (
        problem.precision.diagonal().log().sum() - torch.linalg.slogdet(problem.precision)[1]
    )
    off = columns["best"] - best
    assert (
        off.abs() < 4.5 * columns["best_error"] + 0.002
    ).all()  # optimised and scored on one noise: about +0.03 a datum


def test_the_best_of_the_family_is_sought_on_fresh_noise_at_each_step(monkeypatch):
    monkeypatch.setattr("vae.evaluation.gaps.STEPS", 7)
    problem = LinearGaussian.random(D=5, J=2)
    x, model, drawn = problem.data(3), problem.model(), []
    noise = DatumNoise(0, "t", torch.arange(3), x)

    def recorded(*args):
        drawn.append(noise(*args))
        return drawn[-1]

    best_in_family(model, x, model.encoder(x), recorded, "gaps/encoder", lambda share: None)
    assert [eps.shape for eps in drawn] == [(SAMPLES, 3, 2)] * 7
    assert len(torch.stack(drawn).unique()) == 7 * SAMPLES * 3 * 2
