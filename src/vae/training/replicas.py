"""Several runs of one config, of different seeds, trained as one program over stacked parameters.

Replica k follows the single run of its seed: the same weights, order, noise and pixels, the same steps up to rounding.
Each run's model, optimizer state and log stay its own, as views of the stacked tensors, so that checkpoints, evaluation
and figures know nothing of it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vae.algorithms import AEVB, Info, State, check_finite
from vae.distributions import Noise
from vae.errors import ConfigError
from vae.randomness import Streams
from vae.training.fast import Gradient, Program, pure_gradient
from vae.training.trainer import Stepper, Steps

_COUNTS = {"step", "mu_product", "eta", "mu"}  # what optimizers keep as one number for a whole tensor


class Replicated:
    """AEVB on R states at once; `step` takes minibatches (R, M, *data_shape) and noise (R, L, M, J).

    The states' parameters, buffers and optimizer states become views of stacked tensors. ConfigError where an optimizer
    looks at a tensor as a whole, which stacking would change.
    """

    def __init__(self, plain: AEVB, states: Sequence[State], compiles: int | None = None) -> None:
        self.plain, self.states = plain, list(states)
        models = [state.model for state in states]
        if any(isinstance(state.optimizer, torch.optim.Adafactor) for state in states):
            raise ConfigError("train.replicas: adafactor scales its steps by whole tensors; train its seeds one by one")
        self.parameters = [
            nn.Parameter(_stacked(tensors)) for tensors in zip(*(m.parameters() for m in models), strict=True)
        ]
        self.buffers = [_stacked(tensors) for tensors in zip(*(m.buffers() for m in models), strict=True)]
        self.optimizer = plain.init_optimizer(self.parameters)
        self._gather_optimizers()
        self.memory = {
            name: torch.stack([state.memory[name] for state in states]) for name in states[0].memory
        }  # (R,) each
        gradient = torch.vmap(pure_gradient(plain, models[0]), in_dims=(0, 0, 0, 0, 0, None))
        self.program: Program = Program(gradient, compiles)

    @property
    def form(self) -> str:
        """What the steps are."""
        return self.program.form

    def noise(self, batch_size: int) -> Noise:
        """What one replica needs as noise."""
        return self.plain.noise(self.states[0], batch_size)

    def step(self, batch: Tensor, noise: Tensor) -> Info:
        """Ascend every replica's objective on its own minibatch; sums are (R,). TrainingFailed as for one run."""
        parameters = [p.detach() for p in self.parameters]
        step = torch.tensor(self.states[0].step)
        gradient: Gradient = self.program(batch.shape[1], parameters, self.buffers, batch, noise, self.memory, step)
        with torch.no_grad():
            for buffer, after in zip(self.buffers, gradient.buffers, strict=True):
                buffer.copy_(after)
        for parameter, derivative in zip(self.parameters, gradient.parameters, strict=True):
            parameter.grad = derivative
        self._check(gradient.sums)
        if self.plain.clip_grad_norm is not None:
            self._clip(self.plain.clip_grad_norm)
        self.plain.schedule_rate(self.optimizer, self.states[0].step)
        self.optimizer.step()
        self.memory = gradient.memory
        for k, state in enumerate(self.states):
            state.memory, state.step = {name: value[k] for name, value in self.memory.items()}, state.step + 1
        return Info.of(gradient.sums)

    def _check(self, sums: dict[str, Tensor]) -> None:
        info = Info.of(sums)
        if not torch.isfinite(info.objective).all():
            for k, state in enumerate(self.states):
                for own, parameter in zip(state.model.parameters(), self.parameters, strict=True):
                    own.grad = parameter.grad[k]  # type: ignore[index]
                check_finite(state, Info.of({name: value[k] for name, value in sums.items()}))

    def _clip(self, largest: float) -> None:
        """As torch.nn.utils.clip_grad_norm_, by the norm of each replica's own gradient."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # (R,)
        factor = (largest / (norms + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))

    def _gather_optimizers(self) -> None:
        """Stack the optimizer states of the single runs, where there are any (a resumed run)."""
        groups = [state.optimizer.param_groups[0] for state in self.states]
        self.optimizer.param_groups[0].update({key: v for key, v in groups[0].items() if key != "params"})
        for parameter, owners in zip(self.parameters, zip(*(g["params"] for g in groups), strict=True), strict=True):
            states = [s.optimizer.state.get(owner, {}) for s, owner in zip(self.states, owners, strict=True)]
            self.optimizer.state[parameter] = {
                name: value
                if name in _COUNTS or not isinstance(value, Tensor)
                else torch.stack([s[name] for s in states])
                for name, value in states[0].items()
            }

    def deal(self, k: int) -> None:
        """Give replica k's optimizer its part of the stacked state, so that it can be saved as a single run's."""
        optimizer = self.states[k].optimizer
        group = self.optimizer.param_groups[0]
        optimizer.param_groups[0].update({key: value for key, value in group.items() if key != "params"})
        for parameter, own in zip(self.parameters, optimizer.param_groups[0]["params"], strict=True):
            optimizer.state[own] = {
                name: value if name in _COUNTS or not isinstance(value, Tensor) else value[k]
                for name, value in self.optimizer.state[parameter].items()
            }


def _stacked(tensors: Sequence[Tensor]) -> Tensor:
    """The tensors as one (R, ...), of which each becomes a view."""
    whole = torch.stack([tensor.detach() for tensor in tensors])
    for tensor, part in zip(tensors, whole, strict=True):
        tensor.data = part
    return whole


def side_by_side(
    algorithm: Replicated, sources: Sequence[Any], streams: Sequence[Streams], dtype: torch.dtype
) -> Stepper:
    """The way of R runs through an epoch: each has its own order, noise and pixels."""

    def steps(epoch: int, start: int) -> Iterator[Steps]:
        for batches in zip(*(s.epoch(epoch, start, own) for s, own in zip(sources, streams, strict=True)), strict=True):
            batch = torch.stack(batches)  # (R, M, *data_shape)
            kind, shape = algorithm.noise(batch.shape[1])
            noise = torch.stack([own.draw(kind, shape, dtype) for own in streams])
            yield Steps(1, batch.shape[1], algorithm.step(batch, noise).sums)

    return steps
