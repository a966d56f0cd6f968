"""The processes of `torchrun` that train one model together, and how they come to do the same.

Rank 0 alone reads and writes files and speaks; what it has read, or found wrong, it tells the others. torch is imported
only where there are several.
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
# Others wait while rank 0 evaluates, however long; those who wait for a process that died are ended by torchrun.
_PATIENCE = timedelta(days=1)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Ranks:
    """The place of this process among those that train together; mostly it is alone."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0  # among those of this machine

    @classmethod
    def launched(cls) -> "Ranks":
        """The ranks that torchrun has started, by its environment variables."""
        if not all(name in os.environ for name in _VARIABLES):
            return cls()
        rank, world, local_rank = (int(os.environ[name]) for name in _VARIABLES[:3])
        return cls(rank, world, local_rank) if world > 1 else cls()

    @classmethod
    def joined(cls) -> "Ranks":
        """The same, able to talk: the first call joins the process group, which is left when the process ends."""
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
        """Whether there are others."""
        return self.world > 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that reads, writes and speaks."""
        return self.rank == 0

    def part(self, size: int) -> slice:
        """This rank's share of so many rows, as `torch.tensor_split` gives it: contiguous, of sizes that differ by one
        at most; the later ranks get none where rows are fewer than ranks."""
        quotient, rest = divmod(size, self.world)
        start = self.rank * quotient + min(self.rank, rest)
        return slice(start, start + quotient + (self.rank < rest))

    def once(self, function: Callable[[], T]) -> T:
        """The result of a function that rank 0 calls, or its error, on every rank."""
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
        """Wait until rank 0 has called this too: torchrun ends all processes once one of them ends with an error, and
        rank 0 has to say it first."""
        if not self.several:
            return
        import torch.distributed as dist

        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(address, port, is_master=False, timeout=timedelta(seconds=seconds))
            store.set("vae/rank_0_is_done", "") if self.first else store.wait(["vae/rank_0_is_done"])
        except RuntimeError:  # rank 0 has gone without a word, and the store may have gone with it
            pass


def _attempt(function: Callable[[], T]) -> tuple[Any, Exception | None]:
    """A result, or the error that a user can mend; any other error ends this process, and torchrun the others."""
    try:
        return function(), None
    except (VaeError, OSError) as error:
        return None, error


@dataclass
class Stop:
    """The signal that asks a run to stop: `signal`, to be acted on between two steps.

    A process alone acts on what it hears. Signals reach several processes between different steps, so they act on one
    when all of them know: they add up their flags, and settle it by the sums.
    """

    ranks: Ranks = field(default_factory=Ranks)
    signal: int | None = None
    flags: list[float] = field(default_factory=lambda: [0.0 for _ in _SIGNALS])  # of what this process has heard

    def record(self, number: int) -> None:
        """Note a signal."""
        self.flags[_SIGNALS.index(signal.Signals(number))] = 1.0
        if not self.ranks.several:
            self.resolve(self.flags)

    def resolve(self, sums: Sequence[float]) -> None:
        """Act on the signals that some rank has heard."""
        self.signal = next((int(number) for number, heard in zip(_SIGNALS, sums, strict=True) if heard), None)

    def sync(self) -> None:
        """Settle it apart from a step."""
        if self.ranks.several:
            import torch
            import torch.distributed as dist

            sums = torch.tensor(self.flags, dtype=torch.float64)
            dist.all_reduce(sums)
            self.resolve(sums.tolist())
