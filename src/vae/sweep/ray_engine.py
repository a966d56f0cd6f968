"""Cells as tasks of a Ray cluster."""

import importlib.util
import logging
import os
import re
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

from vae.errors import UsageError
from vae.sweep.cell import Cell, Ended, Say, start, stop


def train_by_ray(cells: Sequence[Cell], processes: int | None, threads: int, say: Say) -> Ended:
    """Train cells as `train_here`, on the cluster at RAY_ADDRESS, else on one that is started for so many processes."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # it sends none
    import ray

    address, before = os.environ.get("RAY_ADDRESS"), signal.getsignal(signal.SIGTERM)
    own: Any = {"num_cpus": processes and processes * threads, "include_dashboard": False, "object_store_memory": 2**27}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else own))
    except (OSError, RuntimeError, ValueError) as error:
        where = f"at RAY_ADDRESS={address}" if address else "on this machine"
        raise UsageError(f"Ray cannot be used {where}: {_first_line(error)}") from None
    signal.signal(signal.SIGTERM, before)  # Ray installs a handler that ends the process at once
    data = {name: value for name, value in os.environ.items() if name == "VAE_DATA"}
    has_gpus = ray.cluster_resources().get("GPU", 0) > 0
    task = ray.remote(max_retries=2, num_cpus=threads)(_on_node)  # retries: if its worker or node dies
    tasks = {}
    try:
        for cell in cells:
            say(f"{cell.name}: submitted to Ray")
            num_gpus = int(has_gpus and cell.config["train"]["device"] != "cpu")
            ref = task.options(name=cell.name, num_gpus=num_gpus).remote(cell, threads, data, Path.cwd())
            tasks[ref.future()] = cell, ref
        for future in as_completed(list(tasks)):
            cell, _ = tasks.pop(future)
            failed = future.exception()
            if failed:
                with cell.log.open("a") as log:
                    print(f"Ray: {_first_line(failed)}", file=log)
            yield cell, 1 if failed else future.result()
    finally:
        refs = [ref for _, ref in tasks.values()]
        for ref in refs:
            ray.cancel(ref)
        ray.wait(refs, num_returns=len(refs), timeout=60)
        ray.shutdown()


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0]


def _on_node(cell: Cell, threads: int, environment: Mapping[str, str], folder: Path) -> int:
    """Run the command of a cell in the folder where the sweep was started, and return its exit status."""
    os.chdir(folder)
    process = start(cell, threads, environment)
    try:
        while (status := process.poll()) is None:
            time.sleep(0.1)  # ray.cancel interrupts this, and not a wait
        return status
    finally:
        stop([process])


def check_cluster(processes: int | None) -> None:
    """UsageError if Ray is missing, or if nothing listens at RAY_ADDRESS; Ray itself would try for minutes."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError('sweep.py: --engine ray needs Ray: pip install -e ".[sweep]"')
    address = os.environ.get("RAY_ADDRESS", "")
    if address and processes:
        raise UsageError("sweep.py: --processes is for this machine; the cluster at RAY_ADDRESS has its own size")
    place = re.fullmatch(r"(?:\w+://)?([^/]+):(\d+)(?:/.*)?", address)  # not auto, local, or a name that Ray resolves
    try:
        if place:
            socket.create_connection((place[1], int(place[2])), timeout=5).close()
    except OSError as error:
        raise UsageError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error}); start it, or unset "
            "RAY_ADDRESS to use one on this machine"
        ) from None
