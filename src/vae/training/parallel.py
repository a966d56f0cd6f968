"""Data-parallel training: each process takes its part of every minibatch, and all make one step together.

Order, pixels and noise are drawn for the whole minibatch on every rank, from generators in equal states, and each rank
takes its rows. So the steps are those of one process up to the rounding of sums, and a run goes on with any number of
ranks.
"""

import contextlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vae.algorithms import AEVB, Gradient, State, Sums, Values, check_finite
from vae.data import SINGLE, Batch, Loader
from vae.errors import ConfigError, UsageError
from vae.models import Model
from vae.objectives import Memory
from vae.randomness import Draws, seeded
from vae.ranks import Ranks, Stop
from vae.training.build import uses_library_networks
from vae.training.checks import single_datum_fails
from vae.training.settings import Settings

K = TypeVar("K")


def data_parallel(algorithm: AEVB, state: State, stop: Stop, seed: int) -> Gradient:
    """The eager gradient on all ranks: each gives the whole minibatch, and differentiates its own part.

    The parameters become those of rank 0. The ranks also add up their signals here, so that they stop at the same step.
    """
    ranks, draws = stop.ranks, not uses_library_networks(state.model)
    values = Values(replace(algorithm, reduction="sum"), state.model)
    module = DistributedDataParallel(values, find_unused_parameters=draws)

    def gradient(algorithm: AEVB, state: State, batch: Batch, noise: Draws) -> tuple[Memory, Sums]:
        rows, size = ranks.part(len(batch.x)), len(batch.x)
        part = (rows.stop - rows.start) / size  # 0 if there are more ranks than data
        # Dropout in a user's own module draws differently on each rank.
        with seeded(seed, "modules", state.step, ranks.rank) if draws else contextlib.nullcontext():
            own = {name: needed.part(noise[name], rows) for name, needed in algorithm.noises(state, size).items()}
            maximised, memory, sums = module(batch.part(rows), own, state.memory, state.step)
        # What estimators remember is linear in means over the minibatch, so the means of the parts are weighted.
        weighted = {name: value * part if part else torch.zeros_like(value) for name, value in memory.items()}
        flags = torch.tensor(stop.flags, device=batch.x.device)
        totals = sums_over_ranks({"stop": flags, **_keyed("memory", weighted), **_keyed("sums", sums)})
        state.optimizer.zero_grad(set_to_none=True)
        mean_of_ranks = ranks.world if algorithm.reduction == "sum" else ranks.world / size  # DDP takes the mean
        (-mean_of_ranks * maximised).backward()
        found = totals()
        stop.resolve(found["stop"].tolist())
        whole = {name: found["sums", name] for name in sums}
        check_finite(whole, state.model, f"at step {state.step + 1}")  # the same on all ranks
        return {name: found["memory", name].to(value.dtype) for name, value in memory.items()}, whole

    return gradient


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


# ------------------------------------------------------------------------------------- before the first step


def device_of_rank(device: torch.device, ranks: Ranks) -> torch.device:
    """The device of this rank: each has a CUDA device of its machine to itself. UsageError if there are too few."""
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


def prepare(model: Model, batches: Any, settings: Settings, device: torch.device, ranks: Ranks) -> None:
    """Synchronise batch normalisation over the ranks if torch can (on CUDA), and warn of what differs otherwise.

    UsageError if data come from a DataLoader, ConfigError if a rank would normalise over a single value.
    """
    if isinstance(batches, Loader):
        raise UsageError("a DataLoader feeds one process; under torchrun, give data from vae.load_data")
    if settings.train.algorithm.name == "mcem":
        raise ConfigError("train.algorithm: mcem keeps the chains of all data in one process; leave torchrun out")
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(model)
    else:
        everyone = [replace(ranks, rank=rank) for rank in range(ranks.world)]
        sizes = min(batches.batch_size, batches.num_data), batches.smallest_batch
        parts = [each.part(size) for each in everyone for size in sizes]
        alone = any(part.stop - part.start == 1 for part in parts)
        if alone and single_datum_fails(model, settings.objective.options["num_samples"]):
            raise ConfigError(SINGLE.format("a rank's part of a minibatch"))
    differences = what_differs(model, settings, device)
    if differences and ranks.first:
        warnings.warn(f"the run differs from one on a single process: {'; '.join(differences)}", stacklevel=2)


def what_differs(model: Model, settings: Settings, device: torch.device) -> list[str]:
    """What couples, or draws for, a rank's own part of a minibatch, so that the number of ranks matters."""
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
    """UsageError if the ranks hold different data: each takes its own part of the whole."""
    first = ranks.once(lambda: sha256)

    def check() -> None:
        if sha256 != first:
            raise UsageError("the processes of torchrun hold different data; give each of them all, it takes its part")

    ranks.together(check)
