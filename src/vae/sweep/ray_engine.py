"""The process of a cell as a task of a Ray cluster."""

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from vae.errors import UsageError
from vae.sweep.cell import Cell
from vae.sweep.local import start, stop

RETRIES = 2  # of a task whose worker or node died


class _Task:
    """A task with the methods of a process: a status, or why there is none; `wait` waits for a minute at most."""

    def __init__(self, ray: Any, ref: Any) -> None:
        self.ray, self.ref, self.future = ray, ref, ref.future()

    def poll(self) -> int | str | None:
        if not self.future.done():
            return None
        error = self.future.exception()
        return f"Ray: {str(error).strip().splitlines()[0]}" if error else self.future.result()

    def terminate(self) -> None:
        self.ray.cancel(self.ref)

    def kill(self) -> None:
        self.ray.cancel(self.ref, force=True)

    def wait(self) -> None:
        self.ray.wait([self.ref], timeout=60)


def _on_node(cell: Cell, threads: int, folder: str, data_root: str | None) -> int:
    """Run the command of a cell in the folder where the sweep was started, and return its exit status."""
    os.chdir(folder)
    process = start(cell, threads, {} if data_root is None else {"VAE_DATA": data_root})
    try:
        while (status := process.poll()) is None:
            time.sleep(0.1)  # ray.cancel interrupts this, and not a wait
        return status
    finally:
        stop([process])


@contextlib.contextmanager
def cluster(cpus: int, threads: int, say: Callable[[str], None]) -> Iterator[Callable[[Cell, int], _Task]]:
    """A function that submits a cell to the cluster at RAY_ADDRESS, else to one on this machine, of `cpus`."""
    ray, address = import_ray(), os.environ.get("RAY_ADDRESS")
    own = {} if address else {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 2**27}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", logging_level="ERROR", log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}: the cluster cannot be used" if address else "Ray cannot be started here"
        raise UsageError(f"{where}: {str(error).strip().splitlines()[0]}") from None
    signal.signal(signal.SIGTERM, before)  # Ray installs a handler that ends the process at once
    gpus = ray.cluster_resources().get("GPU", 0) > 0
    task = ray.remote(max_retries=RETRIES, num_cpus=threads)(_on_node)

    def submit(cell: Cell, slot: int) -> _Task:
        say(f"{cell.name}: submitted to Ray")
        on_gpu = gpus and cell.config["train"]["device"] != "cpu"
        given = task.options(name=cell.name, num_gpus=1 if on_gpu else 0)
        return _Task(ray, given.remote(cell, threads, str(Path.cwd()), os.environ.get("VAE_DATA")))

    try:
        yield submit
    finally:
        ray.shutdown()


def import_ray() -> Any:
    """The module, set to send no usage statistics; UsageError if it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise UsageError('sweep.py: --engine ray needs Ray: pip install -e ".[sweep]"') from None
    return ray


def check_cluster(processes: int | None) -> None:
    """UsageError if Ray is missing, or if nothing listens at RAY_ADDRESS; Ray itself would try for minutes."""
    import_ray()
    address = os.environ.get("RAY_ADDRESS", "")
    if address and processes:
        raise UsageError("sweep.py: --processes is for this machine; the cluster at RAY_ADDRESS has its own size")
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not colon or not port.isdigit():
        return  # auto, local, or a name that Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UsageError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error}); start it, or unset "
            "RAY_ADDRESS to use one on this machine"
        ) from None
