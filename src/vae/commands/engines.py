"""How the cells of a sweep are trained: by worker processes on this machine, or by a Ray cluster."""

from __future__ import annotations

import collections
import contextlib
import io
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

from vae.commands import cell as worker
from vae.commands.grid import Cell
from vae.errors import UsageError

ATTEMPTS = 3  # how often a cell is started if its worker is killed
STOPPED = (130, 143)  # the exit statuses of a cell that saved its state because of a signal
KILLS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")  # sent by others; any other signal is a crash
LAST_LINES = 10  # of the stderr of a worker that crashed


class Event(NamedTuple):
    """A cell starts (status None), or has ended with an exit status; the message holds its stderr, or why it ended."""

    cell: Cell
    status: int | None
    message: str


# ------------------------------------------------------------------------------------- here


class _Worker:
    """A process that trains a cell, in a session of its own, so that Ctrl-C reaches it only through this process."""

    def __init__(self, cell: Cell, threads: int, slot: int) -> None:
        self.cell, self.slot = cell, slot
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # stays open while the process runs
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", worker.__name__, *worker.arguments(cell, threads)],
            stdin=subprocess.PIPE,  # when it closes, the worker stops
            stdout=subprocess.DEVNULL,
            stderr=self.stderr,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **_own_gpu(slot)},
            start_new_session=True,
        )

    def errors(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace").strip()


def _own_gpu(slot: int) -> dict[str, str]:
    """The environment in which a worker sees only one of several GPUs, since each takes the first that it sees."""
    import torch

    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": seen[slot % count]} if count > 1 else {}


def run_locally(cells: Sequence[Cell], processes: int, threads: int) -> Generator[Event, None, None]:
    """Train each cell in a worker process; if a worker is killed, another continues from the cell's checkpoint."""
    waiting, running = collections.deque(cells), list[_Worker]()
    attempts: collections.Counter[str] = collections.Counter()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                cell = waiting.popleft()
                running.append(_Worker(cell, threads, min(set(range(processes)) - {w.slot for w in running})))
                attempts[cell.name] += 1
                again = "its worker was killed; continuing from its checkpoint"
                yield Event(cell, None, "training" if attempts[cell.name] == 1 else again)
            time.sleep(0.05)
            for ended in [w for w in running if w.process.poll() is not None]:
                running.remove(ended)
                status = ended.process.returncode
                by = _signal(status)
                if by in KILLS and attempts[ended.cell.name] < ATTEMPTS:
                    waiting.appendleft(ended.cell)
                else:
                    yield Event(ended.cell, status, _message(by, ended.errors()))
    finally:
        _stop(running)


def _signal(status: int) -> str | None:
    """The signal that ended a worker, if one did."""
    number = -status if status < 0 else status - 128 if status in STOPPED else 0
    return signal.Signals(number).name if number else None


def _message(by: str | None, errors: str) -> str:
    """The message of a worker that is not started again: its stderr, and last why it ended."""
    if by in KILLS:
        return f"its worker was killed {ATTEMPTS} times, the last time by {by}"
    return "\n".join([*errors.splitlines()[-LAST_LINES:], f"its worker crashed with {by}"]) if by else errors


def _stop(running: Sequence[_Worker]) -> None:
    """Tell the workers to save and stop, and wait for them; a second signal kills them."""
    try:
        for stopped in running:
            stopped.process.terminate()
        for stopped in running:
            stopped.process.wait()
    except BaseException:
        for stopped in running:
            stopped.process.kill()
            stopped.process.wait()
        raise


# ------------------------------------------------------------------------------------- Ray


def import_ray() -> Any:
    """The module, set to send no usage statistics; UsageError if it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise UsageError('sweep.py: --engine ray needs Ray: pip install "vae[sweep]"') from None
    return ray


def check_address() -> None:
    """UsageError if nothing listens at RAY_ADDRESS; Ray itself would try for minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
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


class _Stopped(Exception):
    """A signal stopped a cell that was not cancelled here; Ray starts it again."""


def _on_node(arguments: Sequence[str], folder: str, data_root: str | None) -> tuple[int, str]:
    """Train a cell in a Ray worker, in the folder where the sweep was started; return its exit status and stderr."""
    os.chdir(folder)
    if data_root is not None:
        os.environ["VAE_DATA"] = data_root
    errors = io.StringIO()
    with contextlib.redirect_stderr(errors):
        status = worker.main(arguments)
    if status in STOPPED:
        raise _Stopped(errors.getvalue())
    return status, errors.getvalue().strip()


def run_on_ray(cells: Sequence[Cell], processes: int, threads: int) -> Generator[Event, None, None]:
    """Submit all cells to a Ray cluster at once; it starts the cell of a killed worker again."""
    ray = import_ray()
    with _cluster(ray, processes * threads):
        gpus = ray.cluster_resources().get("GPU", 0) > 0
        task = ray.remote(max_retries=ATTEMPTS - 1, retry_exceptions=[_Stopped], num_cpus=threads)(_on_node)
        waiting: dict[Any, Cell] = {}
        try:
            for cell in cells:
                on_gpu = gpus and cell.settings.train.device != "cpu"
                given = task.options(name=cell.name, num_gpus=1 if on_gpu else 0)
                where = str(Path.cwd()), os.environ.get("VAE_DATA")
                waiting[given.remote(worker.arguments(cell, threads), *where)] = cell
                yield Event(cell, None, "submitted to Ray")
            while waiting:
                time.sleep(0.1)  # signals arrive here; ray.wait would turn SIGTERM into a KeyboardInterrupt
                for ref in ray.wait(list(waiting), num_returns=len(waiting), timeout=0)[0]:
                    yield Event(waiting.pop(ref), *_outcome(ray, ref))
        finally:
            for ref in waiting:
                ray.cancel(ref)
            if waiting:
                ray.wait(list(waiting), num_returns=len(waiting), timeout=60)


def _outcome(ray: Any, ref: Any) -> tuple[int, str]:
    try:
        return ray.get(ref)
    except (ray.exceptions.RayError, _Stopped) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return 1, f"its worker was killed {ATTEMPTS} times, or could not run: {lines[0]}"


@contextlib.contextmanager
def _cluster(ray: Any, cpus: int) -> Iterator[None]:
    """The cluster at RAY_ADDRESS, else one started on this machine, with nothing on stdout or stderr."""
    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 2**27}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", logging_level="ERROR", log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}: the cluster cannot be used" if address else "Ray cannot be started here"
        cure = "; if it needs a token, set RAY_AUTH_TOKEN" if address else ""
        raise UsageError(f"{where}: {str(error).strip().splitlines()[0]}{cure}") from None
    signal.signal(signal.SIGTERM, before)  # Ray installs a handler that ends the process at once
    try:
        yield
    finally:
        ray.shutdown()


ENGINES = {"local": run_locally, "ray": run_on_ray}
