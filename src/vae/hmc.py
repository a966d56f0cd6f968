"""Hamiltonian Monte Carlo on any log density, many chains of many data at once (Duane et al. 1987; Neal 2011).

Functions of the state of the chains and of noise, which is an argument: `noise(J)` describes that of one step.
Acceptance is per chain and step sizes are per datum, so that no chain depends on another datum.
"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from vae.randomness import Noise

LogDensity = Callable[[Tensor], Tensor]  # z (C, M, J) -> (C, M), nats, up to a constant
Target = Callable[[Tensor], "Chains"]  # z (C, M, J) -> chains there: `target(log_density)`, or what computes more

DIVERGED = 1000.0  # nats of energy error beyond which a trajectory is counted as divergent
SHORTEST = 0.3  # a trajectory's step size is drawn between this share of the tuned one and all of it: with a fixed one,
# trajectories of some densities would always return to where they began


class Chains(NamedTuple):
    """The state of C chains for each of M data."""

    z: Tensor  # (C, M, J)
    log_density: Tensor  # (C, M)
    gradient: Tensor  # (C, M, J)
    parts: tuple[Tensor, ...] = ()  # (C, M, ...) each: what else was computed at z


class Transition(NamedTuple):
    """The outcome of a step."""

    acceptance: Tensor  # (C, M), the probability with which the proposal was accepted
    diverged: Tensor  # (C, M), whether the energy error exceeded DIVERGED


def noise(latent_dim: int) -> Noise:
    """Normal numbers for one step of one chain: J for the momentum, one to accept, one to vary the step size."""
    return Noise("normal", (latent_dim + 2,))


def init(log_density: LogDensity, z: Tensor) -> Chains:
    """Chains that start at z (C, M, J)."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = log_density(z)
        (gradient,) = torch.autograd.grad(value.sum(), z)
    return Chains(z.detach(), value.detach(), gradient)


def target(log_density: LogDensity) -> Target:
    """The target of a log density: what `step` moves chains towards."""
    return functools.partial(init, log_density)


def leapfrog(
    target: Target,
    state: Chains,
    momentum: Tensor,  # (C, M, J), in units of 1 / scale
    step_size: Tensor,  # broadcasts with (C, M)
    scale: Tensor,  # (M, J), about the density's standard deviations
    num_steps: int,
) -> tuple[Chains, Tensor]:
    """Follow the energy -log density + |momentum|^2 / 2 for a time of num_steps * step_size.

    Reversible and volume-preserving; its energy error falls with the square of the step size (Neal 2011, section 2.3).
    """
    step = step_size[..., None] * scale  # (C, M, J)
    for _ in range(num_steps):
        momentum = momentum + 0.5 * step * state.gradient
        state = target(state.z + step * momentum)
        momentum = momentum + 0.5 * step * state.gradient
    return state, momentum


def step(
    target: Target,
    state: Chains,
    noise: Tensor,  # (C, M, J + 2), standard normal
    step_size: Tensor,  # (M,)
    scale: Tensor,  # (M, J)
    num_steps: int,
) -> tuple[Chains, Transition]:
    """One trajectory and its acceptance (Neal 2011, figure 2), which leaves the density invariant.

    A proposal whose energy is not finite is rejected, and its chain stays as it was, bit for bit.
    """
    momentum, accept, vary = noise[..., :-2], noise[..., -2], noise[..., -1]
    varied = step_size * (SHORTEST + (1 - SHORTEST) * torch.special.ndtr(vary))  # (C, M)
    proposal, end = leapfrog(target, state, momentum, varied, scale, num_steps)
    gain = (
        proposal.log_density - state.log_density - 0.5 * (end.square() - momentum.square()).sum(-1)
    )  # -(energy error)
    accepted = torch.special.log_ndtr(accept) < gain  # False if the gain is NaN
    accepted &= torch.isfinite(proposal.log_density) & torch.isfinite(proposal.gradient).all(-1)

    def chosen(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(accepted.view(*accepted.shape, *(1,) * (new.ndim - 2)), new, old)

    kept = Chains(
        chosen(proposal.z, state.z),
        chosen(proposal.log_density, state.log_density),
        chosen(proposal.gradient, state.gradient),
        tuple(chosen(new, old) for new, old in zip(proposal.parts, state.parts, strict=True)),
    )
    usable = torch.isfinite(proposal.log_density) & ~gain.isnan()
    probability = torch.where(usable, gain, -torch.inf).clamp(max=0).exp()
    return kept, Transition(probability, ~(usable & (gain > -DIVERGED)))


class Tuning(NamedTuple):
    """Dual averaging of a step size towards an acceptance (Hoffman & Gelman 2014, section 3.2), per datum."""

    log_step: Tensor  # (M,), to be tried next
    averaged: Tensor  # (M,), what is kept in the end
    error: Tensor  # (M,), the running mean of target - acceptance
    steps: int = 0


def tuning(step_size: Tensor) -> Tuning:
    """The start of a tuning at a step size (M,)."""
    return Tuning(step_size.log(), step_size.log(), torch.zeros_like(step_size))


def tuned(now: Tuning, start: Tensor, acceptance: Tensor, target: float) -> Tuning:
    """The tuning after a step that began from `start` (M,) and was accepted with probabilities (C, M)."""
    count = now.steps + 1
    weight = 1 / (count + 10)
    error = (1 - weight) * now.error + weight * (target - acceptance.mean(0))
    log_step = _on_grid((10 * start).log() - count**0.5 / 0.05 * error)
    share = count**-0.75
    return Tuning(log_step, share * log_step + (1 - share) * now.averaged, error, count)


def _on_grid(log_step: Tensor) -> Tensor:
    """Rounded to a multiple of 1/16: otherwise the feedback between chain and step size would amplify the rounding
    differences between minibatch sizes until the estimates differed."""
    return (16 * log_step).round() / 16


def tune(
    target: Target,
    state: Chains,
    noises: Iterable[Tensor],  # (C, M, J + 2) each, one per step
    start: Tensor,  # (M,)
    scale: Tensor,  # (M, J)
    num_steps: int,
    acceptance: float = 0.8,
) -> tuple[Chains, Tensor]:
    """Run chains while tuning their step size; returns the warmed-up chains and the step size (M,) to use from then."""
    now = tuning(start)
    for eps in noises:
        state, info = step(target, state, eps, now.log_step.exp(), scale, num_steps)
        now = tuned(now, start, info.acceptance, acceptance)
    return state, _on_grid(now.averaged).exp()


def split_r_hat(draws: Tensor) -> Tensor:  # (T, C, M, J) -> (M,)
    """The potential scale reduction of the worst coordinate, each chain split in two (Gelman et al. 2013, eq. 11.4).

    1 if the chains agree; more than about 1.1 if they have not mixed.
    """
    half = len(draws) // 2
    chains = torch.cat([draws[:half], draws[half : 2 * half]], 1)  # (T/2, 2C, M, J)
    within = chains.var(0).mean(0)
    between = chains.mean(0).var(0)
    return ((half - 1) / half + between / within).sqrt().amax(-1)
