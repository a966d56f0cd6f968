"""Who trains the cells of a sweep: worker processes on this machine, or a Ray cluster."""

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

ATTEMPTS = 3  # how often a cell is begun whose worker is killed
STOPPED = (130, 143)  # the exit statuses of a cell that a signal has stopped, after its state was saved
KILLS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP")  # signals from without; by any other a worker ends of itself
LAST_LINES = 10  # of what a worker said that crashed


class Event(NamedTuple):
    """A cell begins (no status), or has ended with an exit status and what its worker said on stderr."""

    cell: Cell
    status: int | None
    words: str


# ------------------------------------------------------------------------------------- here


class _Worker:
    """A cell in a process of its own, in a session of its own: Ctrl-C reaches it through us."""

    def __init__(self, cell: Cell, threads: int, place: int) -> None:
        self.cell, self.place = cell, place
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # open as long as the process
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", worker.__name__, *worker.arguments(cell, threads)],
            stdin=subprocess.PIPE,  # its end tells the worker that we are gone
            stdout=subprocess.DEVNULL,
            stderr=self.stderr,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), **_own_gpu(place)},
            start_new_session=True,
        )

    def words(self) -> str:
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace").strip()


def _own_gpu(place: int) -> dict[str, str]:
    """What lets the worker at a place see one GPU of several alone: each takes the first that it sees."""
    import torch

    count = torch.cuda.device_count()
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return {"CUDA_VISIBLE_DEVICES": seen[place % count]} if count > 1 else {}


def run_locally(cells: Sequence[Cell], processes: int, threads: int) -> Generator[Event, None, None]:
    """Train cells in worker processes, one at a time each; a killed worker's cell goes on from its checkpoint."""
    waiting, running = collections.deque(cells), list[_Worker]()
    attempts: collections.Counter[str] = collections.Counter()
    try:
        while waiting or running:
            while waiting and len(running) < processes:
                cell = waiting.popleft()
                running.append(_Worker(cell, threads, min(set(range(processes)) - {w.place for w in running})))
                attempts[cell.name] += 1
                again = "its worker was killed; taken up again"
                yield Event(cell, None, "training" if attempts[cell.name] == 1 else again)
            time.sleep(0.05)
            for ended in [w for w in running if w.process.poll() is not None]:
                running.remove(ended)
                status = ended.process.returncode
                by = _signal(status)
                if by in KILLS and attempts[ended.cell.name] < ATTEMPTS:
                    waiting.appendleft(ended.cell)
                else:
                    yield Event(ended.cell, status, _last_words(by, ended.words()))
    finally:
        _stop(running)


def _signal(status: int) -> str | None:
    """The signal that has ended a worker, if one has."""
    number = -status if status < 0 else status - 128 if status in STOPPED else 0
    return signal.Signals(number).name if number else None


def _last_words(by: str | None, words: str) -> str:
    """What is told of a worker that is not begun again; the reason comes last."""
    if by in KILLS:
        return f"its worker was killed {ATTEMPTS} times, at last by {by}"
    return "\n".join([*words.splitlines()[-LAST_LINES:], f"its worker crashed with {by}"]) if by else words


def _stop(running: Sequence[_Worker]) -> None:
    """Have the workers save and stop, and wait for them; a second signal kills them."""
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
    """The module, told to send no usage statistics; UsageError where it is not installed."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    try:
        import ray
    except ImportError:
        raise UsageError('sweep.py: --engine ray needs Ray: pip install "vae[sweep]"') from None
    return ray


def check_address() -> None:
    """UsageError where nobody listens at RAY_ADDRESS: Ray itself would try for minutes."""
    address = os.environ.get("RAY_ADDRESS", "")
    host, colon, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not colon or not port.isdigit():
        return  # auto, local, or a name that Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise UsageError(
            f"RAY_ADDRESS={address}: no Ray cluster answers there ({error.strerror or error}); start it, or unset "
            "RAY_ADDRESS to have one on this machine"
        ) from None


class _Stopped(Exception):
    """A signal has stopped a cell that nobody here has cancelled; Ray takes it up again."""


def _on_node(arguments: Sequence[str], folder: str, data_root: str | None) -> tuple[int, str]:
    """Train a cell within a worker of Ray, as in the folder where the sweep was started: status, and words."""
    os.chdir(folder)
    if data_root is not None:
        os.environ["VAE_DATA"] = data_root
    words = io.StringIO()
    with contextlib.redirect_stderr(words):
        status = worker.main(arguments)
    if status in STOPPED:
        raise _Stopped(words.getvalue())
    return status, words.getvalue().strip()


def run_on_ray(cells: Sequence[Cell], processes: int, threads: int) -> Generator[Event, None, None]:
    """Hand cells to a Ray cluster, all at once; it takes up the cell of a killed worker again."""
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
                yield Event(cell, None, "handed to Ray")
            while waiting:
                time.sleep(0.1)  # a signal comes here; within ray.wait, SIGTERM would be taken for Ctrl-C
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
    """The cluster at RAY_ADDRESS, else one of our own on this machine, with nothing on stdout or stderr."""
    address = os.environ.get("RAY_ADDRESS")
    own = {} if address else {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": 2**27}
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "local", logging_level="ERROR", log_to_driver=False, **own)
    except (OSError, RuntimeError, ValueError) as error:
        where = f"RAY_ADDRESS={address}: the cluster cannot be used" if address else "Ray cannot be started here"
        cure = "; where it asks for a token, RAY_AUTH_TOKEN must be its own" if address else ""
        raise UsageError(f"{where}: {str(error).strip().splitlines()[0]}{cure}") from None
    signal.signal(signal.SIGTERM, before)  # Ray has put its own, which would end us on the spot
    try:
        yield
    finally:
        ray.shutdown()


ENGINES = {"local": run_locally, "ray": run_on_ray}
