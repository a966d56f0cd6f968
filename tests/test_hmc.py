"""HMC against what is known of Gaussians: order, reversal, volume, invariance, and what must not poison a chain."""

import math

import pytest
import torch

from tests.oracles import numbers
from tests.problems import LinearGaussian
from vae import hmc

pytestmark = pytest.mark.usefixtures("float64")


def standard(z):  # (C, M, J) -> (C, M)
    return -0.5 * z.square().sum(-1)


def quartic(z):
    return -(0.25 * z.pow(4) + 0.5 * z.square()).sum(-1)


def energies(density, C, M, J, step_size, num_steps, seed=0):
    """The energy errors of trajectories from standard normal places and momenta."""
    state, momentum = hmc.init(density, numbers(C, M, J, seed=seed)), numbers(C, M, J, seed=seed + 1)
    end, last = hmc.leapfrog(hmc.target(density), state, momentum, torch.tensor(step_size), torch.ones(M, J), num_steps)
    before = -state.log_density + 0.5 * momentum.square().sum(-1)
    return (-end.log_density + 0.5 * last.square().sum(-1)) - before, end, last, momentum, state


def slope(sizes, errors):
    x, y = torch.tensor(sizes).log(), torch.stack(errors).log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


@pytest.mark.parametrize(("fixed_time", "order"), [(True, 2), (False, 3)], ids=["global", "one step"])
def test_energy_error_falls_with_the_declared_order(fixed_time, order):
    sizes = [0.1, 0.05, 0.025, 0.0125] if fixed_time else [0.008, 0.004, 0.002, 0.001]
    errors = []
    for size in sizes:
        steps = round(1 / size) if fixed_time else 1
        errors.append(energies(quartic, 400, 1, 3, size, steps)[0].square().mean().sqrt())
    assert slope(sizes, errors) == pytest.approx(order, abs=0.05)


def test_leapfrog_is_reversible():
    _, end, last, momentum, start = energies(quartic, 7, 2, 3, 0.1, 9)
    back, again = hmc.leapfrog(hmc.target(quartic), end, -last, torch.tensor(0.1), torch.ones(2, 3), 9)
    assert (back.z - start.z).abs().max() < 1e-12
    assert (again + momentum).abs().max() < 1e-12


def test_leapfrog_preserves_volume():
    scale = torch.tensor([[0.7, 1.9]])

    def flow(both):  # (4,) -> (4,)
        z, momentum = both[:2].view(1, 1, 2), both[2:].view(1, 1, 2)
        for _ in range(5):  # the same scheme, differentiable
            momentum = momentum + 0.05 * scale * gradient(z)
            z = z + 0.1 * scale * momentum
            momentum = momentum + 0.05 * scale * gradient(z)
        return torch.cat([z.flatten(), momentum.flatten()])

    def gradient(z):
        return -(z.pow(3) + z)

    start = numbers(4)
    state = hmc.init(quartic, start[:2].view(1, 1, 2))
    end, momentum = hmc.leapfrog(hmc.target(quartic), state, start[2:].view(1, 1, 2), torch.tensor(0.1), scale, 5)
    torch.testing.assert_close(torch.cat([end.z.flatten(), momentum.flatten()]), flow(start))
    assert torch.linalg.det(torch.autograd.functional.jacobian(flow, start)).item() == pytest.approx(1, abs=1e-8)


def test_a_step_size_beyond_2_deviations_diverges():
    end = energies(standard, 1, 1, 1, 2.01, 100)[1]
    assert end.z.abs().item() > 1e7
    assert energies(standard, 1, 1, 1, 1.9, 100)[1].z.abs().item() < 20


def run(density, z, steps, step_size, num_leapfrog, seed, scale=None):
    """Chains from z, their last places and the mean acceptance."""
    C, M, J = z.shape
    state, acceptance = hmc.init(density, z), []
    for t in range(steps):
        noise = numbers(C, M, J + 2, seed=seed * 1000 + t)
        state, info = hmc.step(
            hmc.target(density), state, noise, torch.full((M,), step_size), scale or torch.ones(M, J), num_leapfrog
        )
        acceptance.append(info.acceptance.mean())
    return state.z, torch.stack(acceptance).mean().item()


def test_the_density_is_left_invariant_at_a_coarse_step():
    """20,000 chains that start in equilibrium: mean square 1 within 4.5 standard errors; at ε = 1.5 many proposals fail."""
    z, acceptance = run(standard, numbers(20_000, 1, 1, seed=5), 10, 1.5, 3, seed=6)
    assert 0.5 < acceptance < 0.95
    assert z.square().mean().item() == pytest.approx(1, abs=4.5 * math.sqrt(2 / 20_000))


def test_without_acceptance_the_variance_would_be_wrong():
    """1 / (1 - ε² / 4) = 2.2857: the test above can fail."""
    z = numbers(20_000, 1, 1, seed=7)
    for t in range(40):
        momentum = numbers(20_000, 1, 1, seed=100 + t)
        z = hmc.leapfrog(hmc.target(standard), hmc.init(standard, z), momentum, torch.tensor(1.5), torch.ones(1, 1), 3)[
            0
        ].z
    assert z.square().mean().item() == pytest.approx(2.2857, rel=4.5 * math.sqrt(2 / 20_000))


def test_the_mean_of_exp_minus_energy_error_is_one():
    """In equilibrium, E[exp(-ΔH)] = 1; 4.5 standard errors."""
    weights = (-energies(standard, 40_000, 1, 2, 1.1, 3, seed=8)[0]).exp()
    assert (weights.mean() - 1).abs() < 4.5 * weights.std() / 200


def test_joint_distribution_of_latents_and_data_stays():
    """Geweke 2004: z ~ prior, x|z exact, HMC on z|x: z must stay N(0, 1). 4.5 standard errors of 20,000 chains."""
    problem = LinearGaussian.random(D=4, J=1, seed=2)
    model, n = problem.model(), 20_000
    z = numbers(1, n, 1, seed=9)
    x = z[0] @ problem.W.T + problem.b + math.sqrt(problem.s2) * numbers(n, 4, seed=10)
    state = hmc.init(lambda z: model.log_joint(x, z), z)
    for t in range(5):
        noise = numbers(1, n, 3, seed=20 + t)
        state, _ = hmc.step(
            hmc.target(lambda z: model.log_joint(x, z)), state, noise, torch.full((n,), 0.6), torch.ones(n, 1), 2
        )
    assert state.z.square().mean().item() == pytest.approx(1, abs=4.5 * math.sqrt(2 / n))
    assert (state.z - z).abs().mean() > 0.1


def test_the_mean_score_over_the_posterior_is_the_gradient_of_log_p_x():
    """Fisher's identity, E[d log p(x, z)] = d log p(x), with posterior samples by HMC; 4.5 standard errors."""
    problem = LinearGaussian.random(D=4, J=2, seed=4)
    x, model, C = problem.data(1), problem.model(), 4000
    density = lambda z: model.log_joint(x, z)  # noqa: E731
    z, _ = run(density, problem.posterior_samples(x, numbers(C, 1, 2, seed=11)), 3, 0.3, 5, seed=12)
    b = problem.b.clone().requires_grad_()
    problem.b = b
    exact = torch.autograd.grad(problem.log_p_x(x).sum(), b)[0]
    scores = (x - z @ problem.W.T - problem.b.detach())[:, 0] / problem.s2  # (C, D): d log p(x, z) / d b
    assert ((scores.mean(0) - exact).abs() < 4.5 * scores.std(0) / math.sqrt(C)).all()


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_proposal_that_is_not_finite_is_rejected_and_changes_nothing(poison):
    def density(z):
        inside = -0.5 * z.square().sum(-1)
        return torch.where(z[..., 0] > 1.0, poison, inside)

    start = hmc.init(density, torch.full((3, 2, 2), 0.5))
    momentum = torch.zeros(3, 2, 4)
    momentum[1, 0, 0] = 50.0  # one chain of one datum leaves
    momentum[..., 2] = -3.0
    end, info = hmc.step(hmc.target(density), start, momentum, torch.full((2,), 0.5), torch.ones(2, 2), 3)
    assert torch.equal(end.z[1, 0], start.z[1, 0])
    assert torch.equal(end.gradient[1, 0], start.gradient[1, 0])
    assert info.acceptance[1, 0] == 0
    assert info.diverged[1, 0]
    assert torch.isfinite(end.z).all()
    others = torch.ones(3, 2, dtype=torch.bool)
    others[1, 0] = False
    assert not info.diverged[others].any()
    assert not torch.equal(end.z[others], start.z[others])


def test_the_step_size_varies_lest_a_period_is_hit():
    """A trajectory of half a period turns z into -z: with ε = 1 and 3 steps nothing would ever mix."""
    z, _ = run(standard, torch.full((2000, 1, 1), 2.0), 30, 1.0, 3, seed=13)
    assert z.square().mean().item() == pytest.approx(1, abs=4.5 * math.sqrt(2 / 2000))


@pytest.mark.parametrize("J", [2, 10, 50])
@pytest.mark.parametrize("num_leapfrog", [5, 10])
def test_chains_move_whatever_their_number_of_steps(J, num_leapfrog):
    """Tuned to an acceptance of 0.8 on N(0, I): correlations from step to step of z, and of |z|^2 (0.5 at best)."""
    noises = [numbers(64, 1, J + 2, seed=700 + t) for t in range(120)]
    ones = torch.ones(1, J)
    state = hmc.init(standard, numbers(64, 1, J, seed=15))
    state, size = hmc.tune(hmc.target(standard), state, noises, torch.full((1,), 0.3), ones, num_leapfrog)
    draws = []
    for t in range(60):
        state, _ = hmc.step(hmc.target(standard), state, numbers(64, 1, J + 2, seed=900 + t), size, ones, num_leapfrog)
        draws.append(state.z)
    z = torch.stack(draws)
    for value, most in ((z, 0.5), (z.square().sum(-1, keepdim=True), 0.8)):
        centred = value - value.mean()
        correlation = (centred[1:] * centred[:-1]).mean() / centred.square().mean()
        assert correlation.abs() < most


def test_tuning_reaches_its_target_for_each_datum_alone():
    """Three Gaussians of widths 0.05, 1 and 20: the acceptance of each comes near 0.8, and none sees the others."""
    width = torch.tensor([0.05, 1.0, 20.0])

    def density(z, w=width):
        return -0.5 * (z / w[:, None]).square().sum(-1)

    def tuned(w, columns):
        noises = [numbers(16, 3, 6, seed=200 + t)[:, columns] for t in range(150)]
        start = hmc.init(lambda z: density(z, w), torch.zeros(16, len(w), 4))
        return hmc.tune(
            hmc.target(lambda z: density(z, w)), start, noises, torch.full((len(w),), 0.3), torch.ones(len(w), 4), 5
        )

    state, sizes = tuned(width, slice(None))
    acceptance = []
    for t in range(200):
        state, info = hmc.step(hmc.target(density), state, numbers(16, 3, 6, seed=500 + t), sizes, torch.ones(3, 4), 5)
        acceptance.append(info.acceptance.mean(0))
    assert ((torch.stack(acceptance).mean(0) - 0.8).abs() < 0.12).all()
    _alone, size = tuned(width[1:2], slice(1, 2))
    torch.testing.assert_close(size[0], sizes[1])


def test_split_r_hat_tells_mixed_chains_from_stuck_ones():
    draws = numbers(40, 6, 2, 3, seed=14)
    assert (hmc.split_r_hat(draws) < 1.05).all()
    stuck = draws.clone()
    stuck[:, 3:, 1, 2] += 3.0  # one coordinate of one datum
    assert hmc.split_r_hat(stuck)[0] < 1.05
    assert hmc.split_r_hat(stuck)[1] > 1.5
