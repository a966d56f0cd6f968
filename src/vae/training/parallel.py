"""Data-parallel training: several processes take their parts of each minibatch, and make one step together.

Order, pixels and noise are drawn for the whole minibatch on every rank, from generators in equal states, and each rank
takes its rows. So the steps are those of one process up to the rounding of sums, and a run goes on with any number of
ranks.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vae.algorithms import AEVB, Info, State, check_finite
from vae.data import Loader
from vae.errors import UsageError
from vae.models import VAE
from vae.randomness import Streams, seeded
from vae.ranks import Ranks, Stop
from vae.training.build import check_batch_norm
from vae.training.fast import Values, is_our_own
from vae.training.settings import Settings
from vae.training.trainer import Stepper, Steps

K = TypeVar("K")


@dataclass
class DataParallel:
    """AEVB on the parts that the ranks have of a minibatch: DistributedDataParallel around `AEVB.values`."""

    plain: AEVB
    module: DistributedDataParallel  # of the sum over a rank's part
    stop: Stop
    seed: int | None  # of the modules that may draw (dropout): each rank draws otherwise; None where none does

    @classmethod
    def of(cls, algorithm: AEVB, model: VAE, stop: Stop, seed: int) -> "DataParallel":
        """The parallel form of the plain one. The parameters become those of rank 0."""
        own = not is_our_own(model)
        module = DistributedDataParallel(
            Values(replace(algorithm, reduction="sum"), model),
            find_unused_parameters=own,
        )
        return cls(algorithm, module, stop, seed if own else None)

    def step(self, state: State, batch: Tensor, noise: Tensor, size: int) -> tuple[State, Info]:
        """As the plain form's on a minibatch of `size` data, of which this rank has `batch`, maybe none."""
        ranks, part = self.stop.ranks, len(batch) / size
        own = contextlib.nullcontext() if self.seed is None else seeded(self.seed, "modules", state.step, ranks.rank)
        with own:
            maximised, memory, sums = self.module(batch, noise, state.memory, state.step)
        # What estimators remember is linear in means over the minibatch, so the means of the parts are to be weighed.
        weighed = {name: value * part if part else torch.zeros_like(value) for name, value in memory.items()}
        flags = torch.tensor(self.stop.flags, device=batch.device)
        totals = sums_over_ranks({"stop": flags, **_keyed("memory", weighed), **_keyed("sums", sums)})
        state.optimizer.zero_grad(set_to_none=True)
        mean_of_ranks = ranks.world if self.plain.reduction == "sum" else ranks.world / size  # which DDP takes
        (-mean_of_ranks * maximised).backward()
        found = totals()
        self.stop.resolve(found["stop"].tolist())
        info = Info.of({name: found["sums", name] for name in sums})
        check_finite(state, info)  # of the whole minibatch, so that all ranks fail or none
        self.plain.update(state, {name: found["memory", name].to(value.dtype) for name, value in memory.items()})
        return state, info


def _keyed(kind: str, tensors: Mapping[str, Tensor]) -> dict[Any, Tensor]:
    return {(kind, name): tensor for name, tensor in tensors.items()}


def sums_over_ranks(tensors: Mapping[K, Tensor]) -> Callable[[], dict[K, Tensor]]:
    """Begin to add up tensors over the ranks, all in one message, float64; what is returned waits for the sums."""
    flat = torch.cat([tensor.detach().double().reshape(-1) for tensor in tensors.values()])
    work = dist.all_reduce(flat, async_op=True)

    def sums() -> dict[K, Tensor]:
        assert work is not None
        work.wait()
        parts = flat.split([tensor.numel() for tensor in tensors.values()])
        return {name: part.view(tensors[name].shape) for name, part in zip(tensors, parts, strict=True)}

    return sums


def parallel_steps(
    algorithm: AEVB, state: State, source: Any, streams: Streams, dtype: torch.dtype, stop: Stop
) -> Stepper:
    """The way of several ranks through an epoch: as `one_by_one`, each with its rows of pixels and noise."""
    parallel = DataParallel.of(algorithm, state.model, stop, streams.seed)

    def steps(epoch: int, start: int, left: int | None = None) -> Iterator[Steps]:
        for batch in source.epoch(epoch, start, streams):
            kind, shape = algorithm.noise(state, len(batch))
            noise, rows = streams.draw(kind, shape, dtype), stop.ranks.part(len(batch))
            _, info = parallel.step(state, batch[rows], noise[:, rows], len(batch))
            yield Steps(1, len(batch), info.sums)

    return steps


# ------------------------------------------------------------------------------------- before the first step


def own_device(device: torch.device, ranks: Ranks) -> torch.device:
    """The device of this rank: each of a machine's ranks has a CUDA device to itself. UsageError where they are few."""
    if device.type != "cuda" or not ranks.several:
        return device
    count = torch.cuda.device_count()
    if ranks.local_rank >= count:
        raise UsageError(
            f"torchrun has started more processes than the {count} CUDA devices here; give --nproc-per-node {count}, "
            "or train.device=cpu"
        )
    torch.cuda.set_device(ranks.local_rank)
    return torch.device("cuda", ranks.local_rank)


def prepare(model: VAE, source: Any, settings: Settings, device: torch.device, ranks: Ranks) -> None:
    """Make batch normalisation one over all ranks where torch has such (CUDA), and warn of what differs elsewhere.

    UsageError where data come from a DataLoader, ConfigError where a rank would normalise over a single value.
    """
    if isinstance(source, Loader):
        raise UsageError("a DataLoader feeds one process; under torchrun, give data from vae.load_data")
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        everyone = [replace(ranks, rank=rank) for rank in range(ranks.world)]
        sizes = min(source.batch_size, source.num_data), source.smallest_batch
        parts = [each.part(size) for each in everyone for size in sizes]
        alone = any(part.stop - part.start == 1 for part in parts)
        where = "a rank's part of a minibatch"
        check_batch_norm(model, 1 if alone else 2, settings.objective.options["num_samples"], where)
    differences = what_differs(model, settings, device)
    if differences and ranks.first:
        warnings.warn(f"the run differs from one on a single process: {'; '.join(differences)}", stacklevel=2)


def what_differs(model: VAE, settings: Settings, device: torch.device) -> list[str]:
    """What couples or draws for a rank's own part of a minibatch, so that the number of ranks matters."""
    kinds = {
        "batch normalisation on the CPU takes its statistics from each rank's part of a minibatch": (
            device.type == "cpu" and _has(model, nn.modules.batchnorm._BatchNorm)
        ),
        "modifiers.free_bits are counted over each rank's part of a minibatch": settings.modifiers.free_bits > 0,
        "dropout draws by rank": _has(model, nn.modules.dropout._DropoutNd),
    }
    return [words for words, present in kinds.items() if present]


def _has(model: nn.Module, kind: type[nn.Module]) -> bool:
    return any(isinstance(module, kind) for module in model.modules())


def check_same_data(sha256: str | None, ranks: Ranks) -> None:
    """UsageError where the ranks hold different data: each takes its own part of the whole."""
    first = ranks.once(lambda: sha256)

    def check() -> None:
        if sha256 != first:
            raise UsageError("the processes of torchrun hold different data; give each of them all, it takes its part")

    ranks.together(check)
