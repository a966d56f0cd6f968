"""Processes that train cells, so many at a time. Imports no torch, which a worker of Ray has no use for."""

import collections
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from vae.sweep.cell import Cell

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def train(
    cells: Sequence[Cell], at_once: int, begin: Callable[[Cell, int], Any], end: Callable[[Cell, Any, float], None]
) -> None:
    """Train the cells, `at_once` of them at a time; if anything is raised (by a signal), those that run are stopped.

    `begin(cell, slot)` starts a process (or what has its methods) in one of the places 0, ..., at_once - 1, and
    `end(cell, status, seconds)` learns of its end.
    """
    waiting, running = collections.deque(cells), dict[int, tuple[Cell, Any, float]]()
    try:
        while waiting or running:
            while waiting and len(running) < at_once:
                cell, slot = waiting.popleft(), min(set(range(at_once)) - running.keys())
                running[slot] = cell, begin(cell, slot), time.monotonic()
            time.sleep(0.05)
            for slot, (cell, process, began) in list(running.items()):
                status = process.poll()
                if status is not None:
                    del running[slot]
                    end(cell, status, time.monotonic() - began)
    finally:
        stop([process for _, process, _ in running.values()])


def start(cell: Cell, threads: int, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start the command of a cell, in a session of its own, so that Ctrl-C reaches it only through `stop`."""
    with cell.log.open("wb") as log:
        return subprocess.Popen(
            [sys.executable, "-P", *cell.command()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **environment},
            start_new_session=True,
            preexec_fn=end_with_parent if _LIBC else None,
        )


def end_with_parent() -> None:
    """Have Linux send SIGTERM to this process, which then saves its state, once its parent has ended in any way."""
    if _LIBC:
        _LIBC.prctl(1, signal.SIGTERM)  # 1 is PR_SET_PDEATHSIG


def stop(processes: Sequence[Any]) -> None:
    """Tell processes to save and stop, and wait for them; a second signal kills them."""
    try:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait()
    except BaseException:
        for process in processes:
            process.kill()
            process.wait()
        raise


def own_gpu(slot: int, count: int) -> dict[str, str]:
    """The environment in which a process sees one of `count` GPUs, since it takes the first that it sees."""
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": seen[slot % count]} if count > 1 else {}
