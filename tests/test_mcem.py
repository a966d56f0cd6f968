"""Monte Carlo EM (appendix E) against exact answers on the linear-Gaussian model, and as a row of the shared trainer."""

import pytest
import torch

import vae
from tests.oracles import numbers
from tests.problems import LinearGaussian
from tests.test_wake_sleep import signs
from vae import hmc
from vae.algorithms import MCEM
from vae.data import Batch
from vae.errors import ConfigError, UsageError
from vae.objectives import CompleteData
from vae.training import read_settings
from vae.training.build import build_algorithm
from vae.training.loading import load_run
from vae.training.run import train

D, J, N = 5, 2, 7
CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 90},
    "model": {"latent_dim": 2, "encoder": {"hidden": [16]}, "decoder": {"hidden": [16]}},
    "train": {"algorithm": "mcem", "epochs": 3, "batch_size": 40},
}


def exact_draws(problem, x):
    """Four z for each datum whose mean and covariance are those of the posterior, (4, N, J)."""
    covariance = torch.linalg.inv(problem.precision)
    mean = (x - problem.b) @ problem.W @ covariance / problem.s2
    return mean + (signs(J) @ torch.linalg.cholesky(covariance).T)[:, None]


def test_the_weight_update_follows_the_gradient_of_log_p_x():
    """Fisher's identity: E_p(z|x)[d log p(x, z)] = d log p(x) in the decoder; and the encoder's optimum by log q has the
    posterior's means and marginal variances, where its gradient is 0. Both exact, being quadratic in z."""
    problem = LinearGaussian.random(D, J)
    covariance = torch.linalg.inv(problem.precision)
    problem.A = covariance @ problem.W.T / problem.s2
    problem.c, problem.S = -problem.A @ problem.b, covariance.diagonal()
    model, x = problem.model(), problem.data(N)
    for z in (draws := exact_draws(problem, x)):
        noise = {"z": z[None], "eps": numbers(1, N, J)}
        estimate, memory = CompleteData()(model, x, noise, {"chains": z}, 0)
        (estimate.surrogate.sum() / len(draws)).backward()
        assert memory["chains"] is z
    W, b = problem.W.clone().requires_grad_(), problem.b.clone().requires_grad_()
    covariance_of_x = W @ W.T + problem.s2 * torch.eye(D, dtype=torch.float64)
    torch.distributions.MultivariateNormal(b, covariance_of_x).log_prob(x).sum().backward()
    torch.testing.assert_close(model.decoder.weight.grad, W.grad, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.decoder.bias.grad, b.grad, rtol=1e-10, atol=1e-10)
    for parameter in model.encoder.parameters():
        assert parameter.grad.abs().max() < 1e-10


def algorithm_for(**given):
    return MCEM(CompleteData(), lambda p: torch.optim.SGD(p, lr=0.0), num_data=N, **given)


def steps(algorithm, state, x, order, count, seed=0):
    """Steps on minibatches that `order` names in turn; yields the chains after each."""
    generator = torch.Generator().manual_seed(seed)
    for t in range(count):
        index = torch.tensor(order[t % len(order)])
        noise = {
            name: torch.randn(of.shape, generator=generator, dtype=torch.float64)
            for name, of in algorithm.noises(state, len(index)).items()
        }
        algorithm.step(state, Batch(x[index], None, index), noise)
        yield state.memory["z"]


def test_chains_belong_to_data_and_reach_their_posteriors():
    """In minibatches of changing order, 1,000 trajectories each: means and covariance are the posterior's. The test
    of 14 means and 3 covariances at 5 standard errors has a false-alarm rate of about 1e-5."""
    problem = LinearGaussian.random(D, J)
    model, x, algorithm = problem.model(), problem.data(N), algorithm_for(updates=1)
    state = algorithm.init(model)
    kept = []
    for t, z in enumerate(steps(algorithm, state, x, [[3, 0, 6, 1], [2, 5, 4], [1, 5, 2, 0], [6, 4, 3]], 1200)):
        if t >= 200 and t % 2:
            kept.append(z.clone())
    draws = torch.stack(kept)  # (T, N, J)
    covariance = torch.linalg.inv(problem.precision)
    exact = (x - problem.b) @ problem.W @ covariance / problem.s2
    size = covariance.diagonal().sqrt()
    z = (draws - exact) / size
    assert z.mean(0).abs().max() < 5 / len(draws) ** 0.5 * 1.5  # chains at 90 % acceptance are nearly independent
    correlation = covariance / size[:, None] / size
    found = torch.einsum("tni,tnj->ij", z, z) / len(draws) / N
    assert (found - correlation).abs().max() < 5 * (2 / len(draws) / N) ** 0.5 * 1.5


def test_the_step_size_is_tuned_to_the_acceptance():
    """At the step sizes of the last 100 steps, from exact draws of the posterior, that share is accepted, to 0.05."""
    problem = LinearGaussian.random(D, J)
    model, x = problem.model(), problem.data(N)
    target, ones = hmc.target(lambda z: model.log_joint(x, z)), torch.ones(N, J, dtype=torch.float64)
    noise, covariance = numbers(40, N, J + 2, seed=5), torch.linalg.inv(problem.precision)
    z = exact_draws(problem, x).mean(0) + numbers(40, N, J, seed=6) @ torch.linalg.cholesky(covariance).T
    for acceptance in (0.7, 0.9):
        algorithm = algorithm_for(updates=1, acceptance=acceptance)
        state, found = algorithm.init(model), []
        for t, _ in enumerate(steps(algorithm, state, x, [list(range(N))], 200)):
            if t >= 100:
                size = state.memory["log_step_size"].exp() * ones[:, 0]
                found.append(hmc.step(target, target(z), noise, size, ones, 10)[1].acceptance.mean())
        assert abs(sum(found) / len(found) - acceptance) < 0.05


def test_fresh_chains_begin_at_the_mean_of_the_prior():
    problem = LinearGaussian.random(D, J)
    model, x, algorithm = problem.model(), problem.data(N), algorithm_for(persistent=False, updates=1)
    state = algorithm.init(model)
    state.memory |= {"z": numbers(N, J), "log_step_size": torch.tensor(-20.0).double()}  # too short to move
    list(steps(algorithm, state, x, [list(range(N))], 1))
    assert state.memory["z"].abs().max() < 1e-5


def test_it_reaches_the_maximum_of_the_likelihood():
    """Probabilistic PCA has the maximum in closed form; 5 updates a sweep with a falling rate end within .02 nats of it
    (Monte Carlo EM ends near, not at it: its draws are noise)."""
    problem = LinearGaussian.random(D, J)
    x = problem.b + numbers(60, J, seed=8) @ problem.W.T + problem.s2**0.5 * numbers(60, D, seed=9)
    torch.manual_seed(0)
    model = LinearGaussian.random(D, J, seed=5).model()
    algorithm = MCEM(CompleteData(), lambda p: torch.optim.Adam(p, lr=0.03), num_data=60)
    state, generator = algorithm.init(model), torch.Generator().manual_seed(1)
    for t in range(800):
        for group in state.optimizer.param_groups:
            group["lr"] = 0.03 * (1 - t / 800)
        noise = {
            name: torch.randn(of.shape, generator=generator, dtype=torch.float64)
            for name, of in algorithm.noises(state, 60).items()
        }
        algorithm.step(state, Batch(x, None, torch.arange(60)), noise)
    W, b = model.decoder.weight.detach(), model.decoder.bias.detach()

    def log_p(W, b, s2=problem.s2):
        return torch.distributions.MultivariateNormal(b, W @ W.T + s2 * torch.eye(D).double()).log_prob(x).mean()

    values, vectors = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)) / len(x))
    best = vectors[:, -J:] * (values[-J:] - problem.s2).clamp(min=0).sqrt()  # s2 is held, so this is the maximum
    assert 0 <= log_p(best, x.mean(0)) - log_p(W, b) < 0.02


@pytest.mark.parametrize("form", ["never", "always"])
def test_a_run_trains_resumes_and_is_the_same_compiled(form, tmp_path):
    settings = read_settings(CONFIG, [f"train.compile={form}"])
    whole = train(settings, tmp_path / "whole", verbose=False)
    first, last = (line["elbo"] for line in (whole.history[0], whole.history[-1]))
    assert last > first
    train(read_settings(CONFIG, [f"train.compile={form}", "train.epochs=2"]), tmp_path / "part", verbose=False)
    train(settings, tmp_path / "part", resume=True, verbose=False)
    states = [vae.load(tmp_path / name).state_dict() for name in ("whole", "part")]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    plain = train(read_settings(CONFIG, ["train.compile=never"]), None, verbose=False)
    assert last == pytest.approx(plain.history[-1]["elbo"], rel=1e-4)
    assert whole.steps == 3 * 3 * 5  # minibatches an epoch, epochs, updates
    assert load_run(tmp_path / "whole").settings.train.algorithm.options["chains"] == "persistent"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("objective=iwae", "mcem trains a VAE, and has an objective of its own"),
        ("modifiers.beta=2", "mcem has no bound whose KL could be weighted"),
        ("modifiers.shared_noise=true", "mcem has no bound"),
        ("model.decoder.batch_norm=true", "mcem draws z by the density of each datum; use networks with batch_norm"),
        ("train.algorithm={name: mcem, acceptance: 2}", "acceptance: must be at least 0.1 and at most 0.99, not 2"),
    ],
)
def test_what_does_not_go_with_mcem_is_one_sentence(change, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(read_settings(CONFIG, [change]), None, verbose=False)


def test_a_data_loader_is_refused():
    model = vae.build(CONFIG)
    loader = torch.utils.data.DataLoader(torch.rand(8, 1, 8, 8).round(), batch_size=4)
    with pytest.raises(UsageError, match="mcem keeps a chain for each datum"):
        vae.fit(model, loader, algorithm="mcem", epochs=1, verbose=False)


def test_the_schedule_counts_updates():
    raw = {**CONFIG, "train": {**CONFIG["train"], "schedule": "cosine", "epochs": 2}}
    assert build_algorithm(read_settings(raw), 90, 3).schedule(15) == pytest.approx(0.5)  # an epoch of 3 x 5 updates
