"""The processes of `torchrun` that train one model together, and how they act as one.

Only rank 0 reads and writes files and prints; it sends the others what it has read, or its error. torch is imported
only if there are several ranks.
"""

import atexit
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

from vae.errors import VaeError

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# The others wait while rank 0 evaluates, however long it takes; if a process dies, torchrun ends those that wait.
_PATIENCE = timedelta(days=1)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; by default it is alone."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those of this machine

    @classmethod
    def launched(cls) -> "Ranks":
        """The ranks that torchrun has started, from its environment variables."""
        if not all(name in os.environ for name in _VARIABLES):
            return cls()
        rank, world, local_rank = (int(os.environ[name]) for name in _VARIABLES[:3])
        return cls(rank, world, local_rank) if world > 1 else cls()

    @classmethod
    def joined(cls) -> "Ranks":
        """The same, in a process group, which the first call joins and the end of the process leaves."""
        ranks = cls.launched()
        if ranks.several:
            import torch
            import torch.distributed as dist

            if not dist.is_initialized():
                cuda = torch.cuda.is_available() and dist.is_nccl_available()
                dist.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=_PATIENCE)
                atexit.register(dist.destroy_process_group)
        return ranks

    @property
    def several(self) -> bool:
        """Whether there are other ranks."""
        return self.world > 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that reads, writes and prints."""
        return self.rank == 0

    def part(self, size: int) -> slice:
        """This rank's share of `size` rows, as in `torch.tensor_split`: contiguous, with sizes that differ by at most
        one; if there are fewer rows than ranks, the last ranks get none."""
        quotient, rest = divmod(size, self.world)
        start = self.rank * quotient + min(self.rank, rest)
        return slice(start, start + quotient + (self.rank < rest))

    def once(self, function: Callable[[], T]) -> T:
        """The result of a function that only rank 0 calls, or its error, on every rank."""
        if not self.several:
            return function()
        import torch.distributed as dist

        outcome = [_attempt(function) if self.first else None]
        dist.broadcast_object_list(outcome, src=0)
        assert outcome[0] is not None
        result, error = outcome[0]
        if error is not None:
            raise error
        return result

    def together(self, function: Callable[[], T]) -> T:
        """Each rank's own result, or on every rank the error of the first rank that has one."""
        if not self.several:
            return function()
        import torch.distributed as dist

        result, error = _attempt(function)
        errors: list[Exception | None] = [None] * self.world
        dist.all_gather_object(errors, error)
        for error in errors:
            if error is not None:
                raise error
        return result

    def wait_for_rank_0(self, seconds: float = 10.0) -> None:
        """Wait until rank 0 has called this too, after it printed the error: torchrun ends all processes as soon as one
        of them fails."""
        if not self.several:
            return
        import torch.distributed as dist

        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))
            store.set("vae/rank_0_is_done", "") if self.first else store.wait(["vae/rank_0_is_done"])
        except RuntimeError:  # rank 0 ended without calling this, and the store may have ended with it
            pass


def _attempt(function: Callable[[], T]) -> tuple[Any, Exception | None]:
    """A result, or an error that the user can fix; any other error ends this process, and torchrun the others."""
    try:
        return function(), None
    except (VaeError, OSError) as error:
        return None, error


@dataclass
class Stop:
    """The signal that asks a run to stop: `signal`, to be acted on between two steps.

    A single process acts on every signal that it receives. Several processes receive it between different steps, so
    they sum their flags over the ranks and act on the sums, which are the same for all.
    """

    ranks: Ranks = field(default_factory=Ranks)
    signal: int | None = None
    flags: list[float] = field(default_factory=lambda: [0.0 for _ in _SIGNALS])  # 1 for a signal received here

    def record(self, number: int) -> None:
        """Record a signal that this process received."""
        self.flags[_SIGNALS.index(signal.Signals(number))] = 1.0
        if not self.ranks.several:
            self.resolve(self.flags)

    def resolve(self, sums: Sequence[float]) -> None:
        """Set `signal` from the flags, summed over the ranks."""
        self.signal = next((int(number) for number, flag in zip(_SIGNALS, sums, strict=True) if flag), None)

    def sync(self) -> None:
        """Sum the flags over the ranks apart from a step."""
        if self.ranks.several:
            import torch
            import torch.distributed as dist

            sums = torch.tensor(self.flags, dtype=torch.float64)
            dist.all_reduce(sums)
            self.resolve(sums.tolist())
