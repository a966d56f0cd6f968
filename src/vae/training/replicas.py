"""Several runs of one config, of different seeds, trained as one program over stacked parameters.

Replica k follows the single run of its seed: the same weights, order, noise and pixels, the same steps up to rounding.
Each run's model, optimizer state and log stay its own, as views of the stacked tensors, so that checkpoints, evaluation
and figures know nothing of it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vae.algorithms import AEVB, Info, State, check_finite
from vae.errors import ConfigError, TrainingFailed
from vae.training.fast import Functional, pure_gradient

_COUNTS = {"step", "mu_product", "eta", "mu"}  # what optimizers keep as one number for a whole tensor


class Replicated(Functional):
    """AEVB on R states at once; `step` takes minibatches (R, M, *data_shape) and noise (R, L, M, J), and sums are (R,).

    The states' parameters, buffers and optimizer states become views of stacked tensors. ConfigError where an optimizer
    looks at a tensor as a whole, which stacking would change.
    """

    def __init__(self, plain: AEVB, states: Sequence[State], compiles: int | None = None) -> None:
        models = [state.model for state in states]
        if any(isinstance(state.optimizer, torch.optim.Adafactor) for state in states):
            raise ConfigError("train.replicas: adafactor scales its steps by whole tensors; train its seeds one by one")
        parameters = [nn.Parameter(_stacked(of)) for of in zip(*(m.parameters() for m in models), strict=True)]
        buffers = [_stacked(of) for of in zip(*(m.buffers() for m in models), strict=True)]
        gradient = torch.vmap(pure_gradient(plain, models[0]), in_dims=(0, 0, 0, 0, 0, None))
        optimizer = plain.init_optimizer(parameters)
        super().__init__(plain, states, parameters, buffers, optimizer, gradient, compiles)
        self.memory = {name: torch.stack([s.memory[name] for s in states]) for name in states[0].memory}  # (R,) each
        self._gather_optimizers()

    def size_of(self, batch: Tensor) -> int:
        """M."""
        return batch.shape[1]

    def check(self, sums: dict[str, Tensor]) -> None:
        """TrainingFailed where what one of them maximised is not finite: which run, and what."""
        if not torch.isfinite(Info.of(sums).objective).all():
            for k, state in enumerate(self.states):
                for own, parameter in zip(state.model.parameters(), self.parameters, strict=True):
                    own.grad = parameter.grad[k]  # type: ignore[index]
                try:
                    check_finite(state, Info.of({name: value[k] for name, value in sums.items()}))
                except TrainingFailed as error:
                    raise TrainingFailed(f"run {k + 1} of {len(self.states)}: {error}") from None

    def clip(self, largest: float) -> None:
        """As torch.nn.utils.clip_grad_norm_, by the norm of each replica's own gradient."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)  # (R,)
        factor = (largest / (norms + 1e-6)).clamp(max=1)
        for g in gradients:
            g.mul_(factor.view(-1, *[1] * (g.ndim - 1)))

    def count(self, steps: int) -> None:
        """Let the states know of steps that were made."""
        for k, state in enumerate(self.states):
            state.memory, state.step = {name: value[k] for name, value in self.memory.items()}, state.step + steps

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

    def before_save(self, k: int) -> None:
        """Give replica k's optimizer its part of the stacked state, so that it is saved as a single run's."""
        super().before_save(k)
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
