#!/usr/bin/env python3
"""What training costs on a GPU, as one JSON object: the steps of three configs, and five seeds as five processes.

`gpu.sh` runs it after the tests. The steps are timed in a process of their own, from which a result comes as soon as
it is there: if the device fails, or a measurement hangs, that one is an error and the rest goes on in a new process.
"""

import argparse
import contextlib
import gc
import itertools
import json
import os
import platform
import queue
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import torch
from loops import begun, next_step
from timing import peak_memory_mb, quartiles, seconds_per_call
from torch._dynamo.utils import counters

from vae.precision import matmul_precision
from vae.ranks import Stop
from vae.training.build import choose_device
from vae.training.gradients import ENOUGH_STEPS
from vae.training.run import plan_of, with_gradient

ROOT = Path(__file__).parent.parent
CONFIGS = ("laird_mnist_d2", "mnist_d20", "cifar10_conv_d256")
LARGEST = 16_384  # data in a minibatch; two of them are the data of every config
ROUNDS, ROUND_SECONDS, WARM_UP = 7, 0.15, 10
PATIENCE = 120  # seconds for one measurement, compilation and all
SEEDS = 5
TRAIN = """
import sys
from vae.training import read_settings
from vae.training.run import train
train(read_settings(sys.argv[1], sys.argv[3:]), sys.argv[2], verbose=False)
"""

Case = dict[str, Any]
Skipped = list[dict[str, str]]


def main() -> None:
    """Measure all that fits into the time, and print it."""
    parser = argparse.ArgumentParser(description="Measure training on a GPU; one JSON object on stdout.")
    parser.add_argument("--tests", metavar="LOG", help="what `pytest -v` has printed, to be counted")
    parser.add_argument("--began", type=float, default=time.time(), help="when the clock started, in Unix seconds")
    parser.add_argument("--seconds", type=float, default=420, help="what begins later than this is left out")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        work()
        return
    on_cuda = torch.cuda.is_available()
    skipped: Skipped = []
    deadline = args.began + args.seconds
    record = {"device": "cuda" if on_cuda else "cpu", **machine(), "tests": outcome(args.tests, skipped)}
    first, rest = cases(on_cuda, skipped)
    with tempfile.TemporaryDirectory() as folder:
        steps = measured(first, deadline, skipped)
        record["seeds"] = seeds(Path(folder), on_cuda, deadline, skipped)
        record["steps"] = steps + measured(rest, deadline, skipped)
    record["skipped"] = skipped
    record["seconds"] = round(time.time() - args.began, 1)
    print(json.dumps(record))


def machine() -> dict[str, Any]:
    """What the numbers depend on besides the config."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    gpus = [[part.strip() for part in line.split(",")] for line in _output(query).splitlines()]
    names = _output(["sh", "-c", "grep -m1 'model name' /proc/cpuinfo"]).partition(":")[2].strip()
    triton = None
    with contextlib.suppress(ImportError):
        triton = __import__("triton").__version__
    return {
        "gpu": gpus[0][0] if gpus else None,
        "gpus": len(gpus),
        "gpu_memory": gpus[0][2] if gpus else None,
        "driver": gpus[0][1] if gpus else None,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "triton": triton,
        "python": platform.python_version(),
        "processor": names or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "commit": _output(["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=40"]) or None,
    }


def _output(command: Sequence[str]) -> str:
    """What a command prints; nothing if it fails, or is not there."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def outcome(log: str | None, skipped: Skipped) -> dict[str, Any] | None:
    """The tests that passed, failed and were skipped, by what pytest has printed, be it cut short or not."""
    if log is None:
        skipped.append({"what": "tests", "why": "not asked for: gpu.sh runs them"})
        return None
    text = Path(log).read_text(errors="replace")
    found = re.findall(r"^(tests/.+?) (PASSED|FAILED|ERROR|SKIPPED)\b.*\[ *\d+%\]$", text, re.MULTILINE)
    by_kind = {kind: [name for name, of in found if of == kind] for kind in ("PASSED", "FAILED", "ERROR", "SKIPPED")}
    collected = re.search(r"collected (\d+) items?(?: / (\d+) deselected)?", text)
    chosen = int(collected[1]) - int(collected[2] or 0) if collected else None
    reasons = dict(re.findall(r"^(?:FAILED|ERROR) (.+?) - (.*)$", text, re.MULTILINE))
    record = {
        "passed": len(by_kind["PASSED"]),
        "failed": len(by_kind["FAILED"]) + len(by_kind["ERROR"]),
        "skipped": len(by_kind["SKIPPED"]),
        "names_of_failed": [{"name": n, "reason": reasons.get(n)} for n in by_kind["FAILED"] + by_kind["ERROR"]],
        "warnings": re.findall(r"UserWarning: (.*in other bits)", text),
    }
    if chosen is None:
        skipped.append({"what": "tests", "why": f"pytest did not start: {text.strip()[-300:]}"})
    elif chosen > len(found):
        skipped.append({"what": f"{chosen - len(found)} of {chosen} tests", "why": "the time for the tests was up"})
    if collected and collected[2] and not torch.cuda.is_available():
        why = "a CPU takes minutes to compile them"
        skipped.append({"what": f"{collected[2]} tests of compiled steps", "why": why})
    return record


# ------------------------------------------------------------------------------------- the steps


def cases(on_cuda: bool, skipped: Skipped) -> tuple[list[Case], list[Case]]:
    """What is measured, the most important first; the five seeds come between the two lists."""

    def of(precision: str, batch_size: int) -> list[Case]:
        return [
            {"config": config, "form": form, "precision": precision, "batch_size": batch_size}
            for config, form in itertools.product(CONFIGS, ("plain", "compiled"))
        ]

    first = of("float32", 128)
    rest = [*of("float32", 1024), *of("float32", 4096), *of("float32", LARGEST)]
    rest += [*of("tf32", 128), *of("tf32", 4096), *of("tf32", LARGEST), *of("tf32", 1024)]
    if on_cuda:
        return first, rest
    plain, compiled = ([case for case in first if case["form"] == form] for form in ("plain", "compiled"))
    small = [case for case in compiled if case["config"] == "mnist_d20"]
    skipped += [{"what": name(case), "why": "a CPU takes long to compile"} for case in compiled if case not in small]
    skipped.append({"what": "batch sizes above 128, and tf32", "why": "there is no CUDA device"})
    return plain, small


def name(case: Case) -> str:
    """A case in words."""
    return f"{case['config']}, {case['form']}, {case['precision']}, minibatches of {case['batch_size']}"


def measured(todo: list[Case], deadline: float, skipped: Skipped) -> list[Case]:
    """The cases with what was measured, or with an `error`; those that the time is too short for are skipped."""
    results: list[Case] = []
    while todo:
        if time.time() > deadline:
            break
        lines: queue.Queue[str | None] = queue.Queue()
        with _worker(todo, lines) as process:
            while todo:
                left = deadline - time.time()
                try:
                    line = lines.get(timeout=max(0.1, min(PATIENCE, left)))
                except queue.Empty:
                    if left > PATIENCE:  # it hangs
                        results.append({**todo.pop(0), "error": f"took longer than {PATIENCE} s"})
                    break
                if line is None:
                    status = process.wait()
                    results.append({**todo.pop(0), "error": f"the process ended with status {status}"})
                    break
                results.append({**todo.pop(0), **json.loads(line)})
                print(results[-1], file=sys.stderr, flush=True)
                if results[-1].get("device_failed"):
                    break
    skipped += [{"what": name(case), "why": "the time was up"} for case in todo]
    return results


@contextlib.contextmanager
def _worker(todo: list[Case], lines: "queue.Queue[str | None]") -> Iterator[subprocess.Popen[str]]:
    """A process that measures the cases, each a line of its output; it is ended on the way out."""
    command = [sys.executable, __file__, "--worker"]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    output = process.stdout

    def read() -> None:
        for line in output:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    try:
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(todo))
            process.stdin.close()
        yield process
    finally:
        _end([process])


def _end(processes: Sequence["subprocess.Popen[Any]"]) -> None:
    """End processes that this one has started, with those that they have started."""
    for process in processes:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def work() -> None:
    """Measure the cases that stdin names, and print each result as a line; all else that is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    todo = json.loads(sys.stdin.read())
    for case in todo:
        began = time.perf_counter()
        try:
            result = measure(case)
        except Exception as error:  # whatever it is, the other measurements go on
            result = {"error": f"{type(error).__name__}: {str(error).strip()[:400]}"}
        result["seconds"] = round(time.perf_counter() - began, 2)
        result |= {} if _cleaned() else {"device_failed": True}
        print(json.dumps(result), file=out, flush=True)
        if "device_failed" in result:  # a kernel has failed, and no other can run in this process
            os._exit(1)


def _cleaned() -> bool:
    """Give all memory back, CUDA graphs and their pools with it; False if the device has failed."""
    try:
        torch._dynamo.reset()
        gc.collect()
        if torch.cuda.is_available():
            from torch._inductor.cudagraph_trees import reset_cudagraph_trees

            torch.cuda.synchronize()
            reset_cudagraph_trees()
            gc.collect()
            torch.cuda.empty_cache()
    except Exception as error:
        print(error, file=sys.stderr)
        return False
    return True


def measure(case: Case) -> dict[str, Any]:
    """Milliseconds per step, seconds to compile, and memory; the step is what training makes, gathering and all."""
    counters.clear()
    on_cuda = torch.cuda.is_available()
    inputs.STAND_IN_SIZE = 2 * LARGEST if on_cuda else 2_048
    overrides = ["data.train_size=null", "data.validation_size=0", f"train.batch_size={case['batch_size']}"]
    overrides += [f"train.precision={case['precision']}", "train.epochs=1000000"]
    overrides.append(f"train.compile={'always' if case['form'] == 'compiled' else 'never'}")
    settings, data, _ = inputs.prepare(str(ROOT / "configs" / f"{case['config']}.yaml"), overrides, random=True)
    device = choose_device("auto", case["precision"])
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
    with matmul_precision(settings.train.precision, device), warnings.catch_warnings():
        warnings.filterwarnings("error", message="the step is not compiled")
        run, algorithm = begun(settings, data)
        began = time.perf_counter()
        algorithm = with_gradient(algorithm, run, settings, plan_of(settings), Stop())
        _wait(on_cuda)
        compile_seconds = time.perf_counter() - began
        step = next_step(algorithm, run, settings)
        seconds_per_call(step, WARM_UP if on_cuda else 2, device)
        count = max(1, round(ROUND_SECONDS / seconds_per_call(step, 5 if on_cuda else 1, device)))
        seconds = [seconds_per_call(step, count, device) for _ in range(ROUNDS if on_cuda else 5)]
    low, median, high = quartiles(seconds)
    return {
        "step_ms": median,
        "step_ms_quartiles": [low, high],
        "images_per_second": 1000 * settings.train.batch_size / median,
        "rounds": len(seconds),
        "steps_per_round": count,
        "compile_s": round(compile_seconds, 2) if case["form"] == "compiled" else None,
        "cuda_graphs": _cuda_graphs() if on_cuda and case["form"] == "compiled" else None,
        "peak_memory_mb": peak_memory_mb(device),
        "reserved_mb": torch.cuda.max_memory_reserved() / 1e6 if on_cuda else None,
    }


def _wait(on_cuda: bool) -> None:
    if on_cuda:
        torch.cuda.synchronize()


def _cuda_graphs() -> bool:
    """Whether the compiler has made a CUDA graph of the program, and of all of it."""
    found = counters["inductor"]
    return found["cudagraph_recorded_non_static_inputs"] > 0 and found["cudagraph_skips"] == 0


# ------------------------------------------------------------------------------------- five seeds


def seeds(folder: Path, on_cuda: bool, deadline: float, skipped: Skipped) -> dict[str, Any] | None:
    """Wall time of five trainings at once, each a process of its own with its own seed, beside that of one alone."""
    what = f"{SEEDS} seeds as {SEEDS} processes"
    if on_cuda:
        generator = np.random.default_rng(0)
        x = generator.integers(0, 256, (51_000, 28, 28), dtype=np.uint8)
        np.savez(folder / "random.npz", x_train=x[:50_000], x_test=x[50_000:])
        epochs = -(-ENOUGH_STEPS // (50_000 // 128))  # long enough that `auto` compiles
        config = "mnist_d20"
        overrides = [f"data={{name: npz, path: {folder}/random.npz}}", f"train.epochs={epochs}"]
    else:
        config, overrides = "digits_d2", ["train.epochs=3", "train.device=cpu"]
    record: dict[str, Any] = {"config": config, "overrides": overrides}
    for count in (1, SEEDS):
        left = deadline - time.time()
        if left < 5:
            skipped.append({"what": what if count == SEEDS else f"{what}, and one alone", "why": "the time was up"})
            break
        found = _trained(folder / str(count), config, overrides, count, left)
        record["one" if count == 1 else "five"] = found
        print(found, file=sys.stderr, flush=True)
        if "error" in found:
            break
    if "wall_s" in record.get("five", {}):
        record["five_over_one"] = record["five"]["wall_s"] / record["one"]["wall_s"]
    return record


def _trained(folder: Path, config: str, overrides: Sequence[str], count: int, limit: float) -> dict[str, Any]:
    """Train several seeds at once; from the start of the first process to the end of the last, compilation and all."""
    folder.mkdir()
    began, processes = time.perf_counter(), []
    for seed in range(count):
        command = [sys.executable, "-c", TRAIN, f"configs/{config}.yaml", f"{folder}/{seed}", *overrides]
        with (folder / f"{seed}.log").open("w") as log:
            processes.append(
                subprocess.Popen(
                    [*command, f"train.seed={seed}"],
                    cwd=ROOT,
                    env={**os.environ, "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"},
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            )
    try:
        for process in processes:
            process.wait(max(0.1, limit - (time.perf_counter() - began)))
    except subprocess.TimeoutExpired:
        return {"error": f"not done within the {limit:.0f} s that were left"}
    finally:
        _end(processes)
    wall = time.perf_counter() - began
    failed = [seed for seed, process in enumerate(processes) if process.returncode]
    if failed:
        return {"error": f"seed {failed[0]}: {(folder / f'{failed[0]}.log').read_text()[-400:]}"}
    training, forms = [], set()
    for seed in range(count):
        training.append(json.loads((folder / str(seed) / "metrics.jsonl").read_text().splitlines()[-1])["seconds"])
        forms.add(json.loads((folder / str(seed) / "environment.json").read_text())["steps"])
    return {"wall_s": wall, "training_s": statistics.median(training), "steps": sorted(forms)}


if __name__ == "__main__":
    main()
