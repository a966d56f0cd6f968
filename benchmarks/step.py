#!/usr/bin/env python3
"""What a training step costs, beside a lower bound of its time on this machine and a loop as tutorials write it."""

import functools
import json
import math
import platform
import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from growth import growth, growth_table
from inputs import prepare
from loops import Step, library_step, plain_step, true_float32, tutorial_step
from lower_bound import lower_bound
from timing import peak_memory_mb, quartiles, seconds_per_call

from vae.commands.base import Parser, add_set, command, positive
from vae.data import Data
from vae.precision import matmul_precision
from vae.training import Settings
from vae.training.build import choose_device

ROUNDS, ROUND_SECONDS = 9, 0.4  # rounds of loops and lower bound in turn, and how long each loop runs in one


def _parser() -> Parser:
    arguments = "--config configs/mnist_d2.yaml"
    parser = Parser(
        "step",
        "Time the training step of a config, beside a lower bound (its matrix products and convolutions, each alone,\n"
        "and one pass over what the optimizer updates) and beside a loop as tutorials write it.",
        arguments,
    )
    parser.epilog = f"example:\n  python benchmarks/step.py {arguments}"
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML config, as train.py takes it")
    add_set(parser)
    parser.add_argument("--batch-size", type=positive, metavar="M", help="short for --set train.batch_size=M")
    parser.add_argument(
        "--growth",
        action="store_true",
        help="instead: how the cost grows with latents, widths, samples, batch size and data",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, alone")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Benchmark a config."""
    args = _parser().parse_args(argv)
    overrides = [*args.set, *([] if args.batch_size is None else [f"train.batch_size={args.batch_size}"])]
    settings, data, stands_in = prepare(args.config, overrides)
    if stands_in:
        print(f"{args.config}: {data.name} is not at hand; {data.rule} stand in for it", file=sys.stderr)
    record = {"config": args.config, **machine(settings)}
    if args.growth:
        with matmul_precision(settings.train.precision, choose_device(settings.train.device)):
            record["growth"] = growth(settings, data)
    else:
        record |= measure(settings, data)
    if args.json:
        print(json.dumps(record, allow_nan=False))
    else:
        print(heading(record) + "\n" + (growth_table(record["growth"]) if args.growth else table(record)))


def machine(settings: Settings) -> dict[str, Any]:
    """What the numbers depend on besides the code."""
    train = settings.train
    device = choose_device(train.device, train.precision)
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": device.type,
        "precision": train.precision,
        "batch_size": train.batch_size,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


# ------------------------------------------------------------------------------------- measuring


class Loop(NamedTuple):
    """The next step of a loop, and the setting of PyTorch's products in which it is made."""

    step: Step
    setting: Callable[[], AbstractContextManager[None]]


def alternate(
    loops: Sequence[Loop], least: Callable[[], tuple[float, ...]], device: torch.device
) -> tuple[list[list[float]], list[int]]:
    """Seconds per step of each loop and what `least` gives, one value per round, in turn; and the steps of a round.

    In turn, since whatever else the machine does then slows all of them alike.
    """

    def seconds(loop: Loop, count: int) -> float:
        with loop.setting():
            return seconds_per_call(loop.step, count, device)

    counts = []
    for loop in loops:
        seconds(loop, 2)  # warm
        counts.append(max(1, math.ceil(ROUND_SECONDS / seconds(loop, 3))))
    rounds = [[*map(seconds, loops, counts), *least()] for _ in range(ROUNDS)]
    return [list(column) for column in zip(*rounds, strict=True)], counts


def measure(settings: Settings, data: Data) -> dict[str, Any]:
    """The step, the tutorial's step and the lower bound."""
    device, size = choose_device(settings.train.device), settings.train.batch_size
    setting = functools.partial(matmul_precision, settings.train.precision, device)
    with setting():
        step, run = library_step(settings, data)
        for _ in range(3):
            step()
    memory = peak_memory_mb(device)  # before anything but the training is made
    tutorial, images = tutorial_step(settings, data)
    with setting():
        specification, state = plain_step(settings, data)
        bound = lower_bound(specification, state.optimizer)

    def least() -> tuple[float, float]:
        with setting():
            return bound.seconds(device)

    (ours, theirs, *floors), counts = alternate([Loop(step, setting), Loop(tutorial, true_float32)], least, device)
    (low, median, high), (their_low, their_median, their_high) = quartiles(ours), quartiles(theirs)
    products, moved = (1000 * statistics.median(column) for column in floors)
    return {
        "steps": run.form,
        "floor_ms": products + moved,
        "floor_products_ms": products,
        "floor_memory_ms": moved,
        "products_gflop": bound.flops / 1e9,
        "update_mb": bound.bytes / 1e6,
        "step_ms": median,
        "step_ms_quartiles": [low, high],
        "floor_over_step": (products + moved) / median,
        "images_per_second": 1000 * size / median,
        "tutorial_step_ms": their_median,
        "tutorial_step_ms_quartiles": [their_low, their_high],
        "tutorial_images_per_second": 1000 * size / their_median,
        "tutorial_images": images,
        "times_the_tutorial": their_median / median,
        "peak_memory_mb": memory,
        "rounds": ROUNDS,
        "steps_per_round": counts,
    }


# ------------------------------------------------------------------------------------- printing


def heading(record: dict[str, Any]) -> str:
    """The machine, and what of the config matters."""
    where = f"{record['processor']}, {record['device']}, {record['threads']} threads, torch {record['torch']}"
    return f"{where}\n{record['config']}, {record['precision']}, minibatches of {record['batch_size']}"


def table(r: dict[str, Any]) -> str:
    """A measurement for people."""
    products, memory = r["floor_products_ms"], r["floor_memory_ms"]
    gflop, megabytes, peak = r["products_gflop"], r["update_mb"], r["peak_memory_mb"]
    ours, theirs = r["steps_per_round"]
    quartile = "quartiles {:.2f} to {:.2f} ms".format
    rows = [
        ("lower bound", f"{r['floor_ms']:.2f} ms", "the least that a step can take here"),
        ("  products", f"{products:.2f} ms", f"{gflop:.3g} Gflop, {1000 * gflop / products:.3g} Gflop/s"),
        ("  memory", f"{memory:.2f} ms", f"{megabytes:.3g} MB, {megabytes / memory:.3g} GB/s"),
        ("step", f"{r['step_ms']:.2f} ms", f"{r['steps']}; {quartile(*r['step_ms_quartiles'])}"),
        ("lower bound / step", f"{100 * r['floor_over_step']:.0f} %", ""),
        ("images per second", f"{r['images_per_second']:,.0f}", ""),
        ("tutorial's step", f"{r['tutorial_step_ms']:.2f} ms", quartile(*r["tutorial_step_ms_quartiles"])),
        (
            "its images per second",
            f"{r['tutorial_images_per_second']:,.0f}",
            f"DataLoader over {r['tutorial_images']}",
        ),
        ("times the tutorial", f"{r['times_the_tutorial']:.2f}", "which is eager, float32, its optimizer as it comes"),
        ("peak memory", "-" if peak is None else f"{peak:,.0f} MB", "of the process when it trains, before the rest"),
    ]
    lines = [f"{name:22}{value:>10}   {words}".rstrip() for name, value, words in rows]
    return "\n".join([*lines, f"medians of {r['rounds']} rounds in turn: {ours} steps, {theirs} of the tutorial's"])


if __name__ == "__main__":
    sys.exit(main())
