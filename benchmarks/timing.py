"""How long a call takes, and how much memory a process has held."""

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

TIMINGS = 5
SHORTEST = 2e-4  # seconds; what is shorter is repeated within a timing


def seconds_per_call(call: Callable[[], Any], repeats: int, device: torch.device) -> float:
    """Seconds per call, over this many calls in sequence; on CUDA by events, once the device has done them all."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000 / repeats
    began = time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.perf_counter() - began) / repeats


def median_seconds(call: Callable[[], Any], device: torch.device, shortest: float | None = None) -> float:
    """Seconds per call, warm: the median of some timings, each of at least this many seconds."""
    seconds_per_call(call, 2, device)
    repeats = math.ceil((shortest or SHORTEST) / seconds_per_call(call, 1, device))
    return statistics.median(seconds_per_call(call, repeats, device) for _ in range(TIMINGS))


def quartiles(seconds: Sequence[float]) -> list[float]:
    """First quartile, median and third, in milliseconds."""
    return [1000 * value for value in statistics.quantiles(seconds, n=4, method="inclusive")]


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that this process has held so far, in 10^6 bytes; on CUDA, of the device; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone, where ru_maxrss begins with that of the process that started it
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024 / 1e6
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e6
