"""Named random streams, all derived from one seed. Nothing else in the package draws random numbers.

Training draws in sequence from generators whose states are part of a checkpoint (`Streams`). Evaluation and static
binarization draw by index (`datum_noise`): the numbers of datum i depend only on (seed, name, i, block), not on
order, batch size, limit or device.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vae.errors import UsageError

NoiseKind = Literal["normal", "uniform"]


class Noise(NamedTuple):
    """The distribution of eps, the shape of a draw, and its axis over the data of a minibatch, if it has one."""

    kind: NoiseKind
    shape: tuple[int, ...]
    data_axis: int | None = None

    def part(self, draw: Tensor, rows: slice) -> Tensor:
        """A draw for these rows of the minibatch; the whole if it is not of data."""
        return draw if self.data_axis is None else draw.narrow(self.data_axis, rows.start, rows.stop - rows.start)


Draws = Mapping[str, Tensor]  # the noise of a step, by name

_DRAW = {"normal": torch.randn, "uniform": torch.rand}


def derive(seed: int, *names: str | int) -> int:
    """A seed of 63 bits for the stream of these names, independent between names. UsageError if it is no number."""
    if not isinstance(seed, int):
        raise UsageError(f"seed: expected a whole number, not {seed!r}")
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


@contextlib.contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Seed torch's default generators with a derived seed, and restore them at the end.

    Module constructors and a user's own modules (dropout) draw from the default generators.
    """
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(derive(seed, *names))
        yield


class Streams:
    """The generators of a training run: `noise` (of its steps), `pixels` (dynamic binarization), `modules` (torch's
    default generators, from which a user's own modules draw)."""

    def __init__(self, seed: int, device: torch.device) -> None:
        self.seed, self.device = seed, device
        self.noise = torch.Generator(device).manual_seed(derive(seed, "noise"))
        self.pixels = torch.Generator(device).manual_seed(derive(seed, "pixels"))

    def draw(self, noises: Mapping[str, Noise], dtype: torch.dtype) -> dict[str, Tensor]:
        """The next noise of a training step, by name."""
        how: dict[str, Any] = {"generator": self.noise, "dtype": dtype, "device": self.device}
        return {name: _DRAW[noise.kind](noise.shape, **how) for name, noise in noises.items()}

    def state(self) -> dict[str, Tensor]:
        """The states of all generators, as tensors."""
        states = {
            "noise": self.noise.get_state(),
            "pixels": self.pixels.get_state(),
            "modules": torch.get_rng_state(),
        }
        if self.device.type == "cuda":
            states["modules_cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def restore(self, states: dict[str, Tensor], step: int) -> None:
        """Continue from saved states.

        A state that was saved on another kind of device cannot be used: that stream gets a new seed, derived from the
        step, so that no noise is used twice.
        """
        for name, generator in (("noise", self.noise), ("pixels", self.pixels)):
            if states[name].shape == generator.get_state().shape:
                generator.set_state(states[name])
            else:
                generator.manual_seed(derive(self.seed, name, step))
        torch.set_rng_state(states["modules"])
        if self.device.type == "cuda" and "modules_cuda" in states:
            torch.cuda.set_rng_state(states["modules_cuda"], self.device)


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order of n data in an epoch: a pure function of seed and epoch."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(derive(seed, "order", epoch)))


def datum_noise(
    kind: NoiseKind,
    seed: int,
    name: str,
    index: Tensor | Sequence[int],  # (M,) indices of the data in their source
    shape: Sequence[int],
    block: int = 0,
) -> Tensor:
    """Noise of shape (M, *shape), float64 on the CPU; row m depends only on (seed, name, index[m], block).

    Philox is a counter-based generator (Salmon et al. 2011): the index of a datum is its counter, so that any row can
    be drawn without those before it.
    """
    shape = tuple(shape)
    out = np.empty((len(index), *shape))
    philox = np.random.Philox(key=derive(seed, name))
    generator = np.random.Generator(philox)
    fill = generator.standard_normal if kind == "normal" else generator.random
    state = philox.state
    counter = np.zeros(4, dtype=np.uint64)
    state["state"]["counter"] = counter
    for row, i in zip(out, torch.as_tensor(index).tolist(), strict=True):
        counter[2], counter[3] = block, i
        philox.state = state  # also clears what the last row left in the buffer
        row[...] = fill(shape)
    return torch.from_numpy(out)
