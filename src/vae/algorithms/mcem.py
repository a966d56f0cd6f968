"""Monte Carlo EM (Kingma & Welling 2013, appendix E): the latents by HMC, the weights by gradient steps."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vae import hmc
from vae.algorithms.aevb import AEVB
from vae.algorithms.base import State, Sums
from vae.data import Batch
from vae.randomness import Draws, Noise

FIRST_STEP = 0.1  # the step size of HMC before it is tuned
RATE = 0.5  # with which log step size follows acceptance; it never ends, as the posterior moves with the weights


@dataclass(frozen=True)
class MCEM(AEVB):
    """A step: one trajectory of HMC for each datum of the minibatch, then updates of the weights with where it ended.

    Each datum has a chain of its own, which begins at the prior's mean. When its datum comes again it goes on where it
    was (`persistent`), or begins anew. One step size, tuned to an acceptance, serves all.
    """

    num_data: int = 1  # N
    persistent: bool = True
    leapfrog: int = 10
    acceptance: float = 0.9
    updates: int = 5

    def init(self, model: Any) -> State:
        """The state of a VAE before the first step."""
        state, start = super().init(model), model.prior.mean.detach()
        state.memory = {"z": start.repeat(self.num_data, 1), "log_step_size": start.new_full((), math.log(FIRST_STEP))}
        return state

    def noises(self, state: State, batch_size: int) -> dict[str, Noise]:
        """What the updates need besides z, and that of a trajectory for each datum, (1, M, J + 2)."""
        needed, of_hmc = super().noises(state, batch_size), hmc.noise(state.memory["z"].shape[1])
        trajectory = of_hmc._replace(shape=(1, batch_size, *of_hmc.shape), data_axis=1)
        return {"eps": needed["eps"], "trajectory": trajectory}

    def step(self, state: State, batch: Batch, noise: Draws) -> Sums:
        """Move the chains, then the weights; the sums are those before the first update. TrainingFailed as AEVB."""
        given = {"z": self._draws(state, batch, noise), "eps": noise["eps"]}
        before = super().step(state, batch, given)
        for _ in range(self.updates - 1):
            super().step(state, batch, given)
        return before

    def _draws(self, state: State, batch: Batch, noise: Draws) -> Tensor:  # (1, M, J)
        """A state of the chain of each datum, after one trajectory; the memory holds it, and the tuned step size."""
        memory, rows = state.memory, batch.rows
        assert rows is not None, "check refuses a DataLoader, whose data have no chains"
        model: Any
        model, x = state.model.on(Batch(batch.x if self.expand is None else self.expand(batch.x), batch.y))
        z = memory["z"][rows][None] if self.persistent else model.prior.mean.detach().repeat(1, len(x), 1)
        target, ones = hmc.target(lambda z: model.log_joint(x, z)), torch.ones_like(z[0])
        step_size = memory["log_step_size"].exp() * ones[:, 0]
        chains, info = hmc.step(target, target(z), noise["trajectory"], step_size, ones, self.leapfrog)
        moved = memory["log_step_size"] + RATE * (info.acceptance.mean() - self.acceptance)
        state.memory = {"z": memory["z"].index_copy(0, rows, chains.z[0]), "log_step_size": moved}
        return chains.z
