"""Minibatches, from a tensor in memory, in an order given by seed and epoch, or from a DataLoader."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae.data.pixels import draw, expand
from vae.data.splits import Split
from vae.distributions import support_of
from vae.errors import UsageError
from vae.randomness import Noise, Streams, permutation

SINGLE = (
    "train.batch_size: {} holds a single datum, which batch normalisation cannot take; change batch_size or "
    "data.train_size by one, drop it (DataLoader: drop_last=True), or use networks with batch_norm: false"
)


class Batch(NamedTuple):
    """A minibatch of M data, with their labels or targets if there are any."""

    x: Tensor  # (M, *shape), as stored
    y: Tensor | None = None  # (M, ...)
    rows: Tensor | None = None  # (M,), which data of the split they are; None if a DataLoader gives them

    def part(self, rows: slice) -> "Batch":
        """These rows of it."""
        return Batch(self.x[rows], *(None if column is None else column[rows] for column in self[1:]))


class Resident:
    """A split as one tensor on the device, gathered by a new permutation of all N each epoch.

    Nothing is done image by image, and any minibatch of any epoch can be made without those before it, so a run can
    resume in the middle of an epoch.
    """

    exact_within_epochs = True

    def __init__(self, split: Split, batch_size: int, seed: int, device: torch.device, dtype: torch.dtype) -> None:
        self.x, self.y = split.x.to(device), None if split.y is None else split.y.to(device)
        self.scale, self.dynamic = split.scale, split.dynamic
        self.batch_size, self.seed, self.dtype = batch_size, seed, dtype
        self.num_data = len(split)
        self.num_batches = -(-self.num_data // batch_size)
        self.smallest_batch = self.num_data % batch_size or batch_size

    def epoch(self, epoch: int, start: int, streams: Streams) -> Iterator[Batch]:
        """The minibatches of an epoch from number `start` on, as stored; the last may be smaller.

        If the data are dynamic, their binary pixels are drawn anew.
        """
        order = permutation(self.seed, epoch, self.num_data).to(self.x.device)
        for rows in order.split(self.batch_size)[start:]:
            x = self.x.index_select(0, rows)
            x = draw(expand(x, self.scale, self.dtype), streams.pixels) if self.dynamic else x
            yield Batch(x, None if self.y is None else self.y.index_select(0, rows), rows)

    def example(self, streams: Streams) -> Batch:
        """The first minibatch of the first epoch."""
        return next(self.epoch(0, 0, streams))

    def expand(self, stored: Tensor) -> Tensor:
        """A minibatch as images of the dtype; done within the step, so that a compiled step reads bytes."""
        return stored if self.dynamic else expand(stored, self.scale, self.dtype)

    def state(self) -> dict[str, Tensor]:
        """Nothing: the order is a function of seed and epoch."""
        return {}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Nothing to restore."""


class Loader:
    """Any `torch.utils.data.DataLoader` of images (floats, on [0, 1] if they are grey), or of (images, ...) tuples.

    The loader decides the order, so a run resumes only at the end of an epoch, bit for bit if it has a generator.
    """

    exact_within_epochs = False
    expand = None  # a loader gives images

    def __init__(
        self,
        loader: Any,
        shape: tuple[int, ...],
        support: str,
        device: torch.device,
        dtype: torch.dtype,
        classes: int = 0,
    ) -> None:
        self.support, self.classes = support, classes
        self.loader, self.shape, self.device, self.dtype = loader, shape, device, dtype
        own = getattr(loader, "batch_sampler", None)  # None if the data set gives whole minibatches
        try:
            self.num_batches, self.num_data = len(loader), len(getattr(own, "sampler", loader.dataset))
        except (TypeError, AttributeError):
            raise UsageError("the DataLoader and its data set must have a length") from None
        if self.num_batches == 0:
            raise UsageError("the DataLoader gives no minibatches: too few data for one, with drop_last")
        # None if a batch sampler of the user's own decides; then a minibatch of one datum is looked for in each epoch.
        self.batch_size = size = getattr(own, "batch_size", None)
        self.smallest_batch = size and (self.num_data % size or size)
        self.needs_two = False  # because of batch normalisation
        if size is not None and getattr(own, "drop_last", False):
            self.num_data, self.smallest_batch = self.num_batches * size, size

    def epoch(self, epoch: int, start: int, streams: Streams) -> Iterator[Batch]:
        """The minibatches of an epoch, as images (M, *shape). UsageError if shape or values do not fit."""
        support = support_of(self.support)
        for given in self.loader:
            images, *more = given if isinstance(given, list | tuple) else (given,)
            if not isinstance(images, Tensor) or not images.is_floating_point():
                raise UsageError("the DataLoader must give tensors of floats, alone or first in a tuple")
            if tuple(images.shape[1:]) not in (self.shape, (math.prod(self.shape),)):
                raise UsageError(f"the DataLoader gives {tuple(images.shape)}, and the model is of {self.shape}")
            if not support(images):
                low, high = images.min().item(), images.max().item()
                raise UsageError(
                    f"the DataLoader gives values on [{low:g}, {high:g}]; the likelihood's support is {self.support}: "
                    f"{support.words}"
                )
            if self.needs_two and len(images) == 1:
                raise UsageError(SINGLE.format("a minibatch of the DataLoader"))
            y = more[0].to(self.device) if more and isinstance(more[0], Tensor) else None
            if self.classes and (y is None or y.ndim != 1 or not bool(((y >= 0) & (y < self.classes)).all())):
                raise UsageError(
                    "a conditional model needs a DataLoader that gives (images, labels), labels (M,) from 0 to "
                    f"{self.classes - 1}"
                )
            yield Batch(images.to(self.device, self.dtype).reshape(len(images), *self.shape), y)

    def example(self, streams: Streams) -> Batch:
        """A stand-in for a minibatch, on [0, 1]: taking one from the loader would change its order."""
        size = self.batch_size or 2
        x = streams.draw({"x": Noise("uniform", (size, *self.shape))}, self.dtype)["x"]
        return Batch(x, torch.zeros(size, dtype=torch.long, device=self.device) if self.classes else None)

    def state(self) -> dict[str, Tensor]:
        """The state of the loader's generator, if it has one of its own."""
        generator = self.loader.generator
        return {} if generator is None else {"loader": generator.get_state()}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Give the loader's generator its saved state."""
        if "loader" in state and self.loader.generator is not None:
            self.loader.generator.set_state(state["loader"])
