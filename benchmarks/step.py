"""benchmark.py: what a training step costs, beside the least that it can cost here and a loop as tutorials write it."""

from __future__ import annotations

import itertools
import json
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vae.commands.base import Parser, add_set, command, positive

if TYPE_CHECKING:
    import torch
    from vae.training.session import Session

    from vae.algorithms import State
    from vae.data import Data
    from vae.training import Settings
    from vae.training.trainer import Stepper

Step = Callable[[], None]

ROUNDS, ROUND_SECONDS = 9, 0.4  # rounds of loops and floor in turn, and how long each loop runs in one
STAND_IN_SIZE = 50_000  # random images in the place of data that are not at hand


def _parser() -> Parser:
    parser = Parser(
        "benchmark",
        "Time the training step of a config, beside its floor (its matrix products and convolutions, each alone, and\n"
        "one pass over what the optimizer updates) and beside a loop as tutorials write it.",
        "--config configs/mnist_d2.yaml",
    )
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
    from vae.commands.growth import growth, growth_table
    from vae.training.products import float32_products

    from vae.training.build import choose_device

    settings, data, stand_in = prepare(args)
    if stand_in:
        print(f"{args.config}: {data.name} is not at hand; {data.rule} stand in for it", file=sys.stderr)
    settings, data = in_whole_batches(settings, data)
    record = {"config": args.config, **machine(settings)}
    with float32_products(settings.train.precision, choose_device(settings.train.device)):
        record |= {"growth": growth(settings, data)} if args.growth else measure(settings, data)
    if args.json:
        print(json.dumps(record, allow_nan=False))
    else:
        print(heading(record) + "\n" + (growth_table(record["growth"]) if args.growth else table(record)))


# ------------------------------------------------------------------------------------- settings, data, machine


def prepare(args: Any) -> tuple[Settings, Data, bool]:
    """The settings of the arguments, the data to step on, and whether these are random ones."""
    from vae.data import load_data
    from vae.training import read_settings
    from vae.training.build import build_algorithm, build_model, check_objective, check_support, resolve

    overrides = [*args.set, *([] if args.batch_size is None else [f"train.batch_size={args.batch_size}"])]
    settings, shape, kind = resolve(read_settings(args.config, overrides))
    stand_in = not at_hand(settings)
    data = random_data(settings, shape, kind) if stand_in else load_data(settings.data)
    model = build_model(settings.model, shape, settings.train.seed)
    check_support(data.train, data.name, model)
    check_objective(build_algorithm(settings, 1, 1).objective, model)
    return settings, data, stand_in


def in_whole_batches(settings: Settings, data: Data) -> tuple[Settings, Data]:
    """Minibatches no larger than the data, and so many data that all minibatches are of one size."""
    size = min(settings.train.batch_size, len(data.train))
    settings = replace(settings, train=replace(settings.train, batch_size=size))
    return settings, replace(data, train=data.train.first(len(data.train) // size * size))


def at_hand(settings: Settings) -> bool:
    """Whether the files of the data are there; nothing is downloaded. Data of the user's own have to be."""
    from vae.commands.tutorial import TORCHVISION, torchvision_images

    from vae.data import DATASETS
    from vae.data.sets import data_root
    from vae.errors import DataError

    if settings.data.name in TORCHVISION:
        return torchvision_images(settings.data) is not None
    if settings.data.name != "frey_face":
        return True
    try:
        DATASETS["frey_face"](data_root(settings.data.root), 0)
    except DataError:
        return False
    return True


def random_data(settings: Settings, shape: tuple[int, ...], kind: Any) -> Data:
    """Random bytes in the place of a data set of images."""
    import torch

    from vae.data import Data, Split

    block = settings.data
    count = block.train_size or STAND_IN_SIZE
    x = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    binary = block.pixels in ("threshold", "static")
    if binary:
        x >>= 7
    train = Split(x, None, torch.arange(count), 1.0 if binary else 255.0, dynamic=block.pixels == "dynamic")
    return Data(block, shape, kind, f"{count:,} random images of its shape", train, train.first(1))


def machine(settings: Settings) -> dict[str, Any]:
    """What the numbers depend on beside the code."""
    import torch

    from vae.training.build import choose_device

    train = settings.train
    device = choose_device(train.device, train.precision)
    return {
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "device": device.type,
        "precision": "float32" if train.precision == "auto" else train.precision,
        "batch_size": train.batch_size,
    }


def _processor() -> str:
    import platform

    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def peak_memory_mb(device: torch.device) -> float | None:
    """The most memory that this process has held so far, in 10^6 bytes; on CUDA, of the device; None if unknown."""
    import torch

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


# ------------------------------------------------------------------------------------- the steps


def plain_step(settings: Settings, data: Data) -> tuple[Step, State]:
    """The step that is the specification (gather, noise, AEVB.step), and the state that it updates."""
    from vae.training.trainer import one_by_one

    session = _session(settings, data)
    steps = one_by_one(session.algorithm, session.state, session.source, session.streams, session.dtype)
    return _next_of(steps), session.state


def library_step(settings: Settings, data: Data) -> tuple[Step, Session]:
    """The next step of training as a long run makes it, from stored bytes to updated parameters; and the run.

    With `train.replicas` it is a step of all of them, and the run the first.
    """
    from vae.ranks import Stop
    from vae.training.run import stepper

    train = replace(settings.train, epochs=10**9, samples=None)
    seeds = range(train.seed, train.seed + train.replicas)
    runs = [_session(replace(settings, train=replace(train, seed=seed, replicas=1)), data) for seed in seeds]
    return _next_of(stepper(runs, Stop())), runs[0]


def _session(settings: Settings, data: Data) -> Session:
    from vae.training.session import Session

    from vae.training.build import build_model

    return Session(settings, build_model(settings.model, data.shape, settings.train.seed), data, None)


def _next_of(steps: Stepper) -> Step:
    """A call that makes the next step, epoch after epoch."""
    endless = (done for epoch in itertools.count() for done in steps(epoch, 0))
    return lambda: next(endless) and None


# ------------------------------------------------------------------------------------- measuring


def alternate(
    steps: Sequence[Step], least: Callable[[], tuple[float, ...]], device: torch.device
) -> tuple[list[list[float]], list[int]]:
    """Seconds a step of each loop and what `least` tells, a value a round, all in turn; how many steps make a round.

    In turn, since whatever else the machine does then slows all of them alike.
    """
    from vae.training.roofline import seconds_per_call

    counts = []
    for step in steps:
        seconds_per_call(step, 2, device)  # warm
        counts.append(max(1, math.ceil(ROUND_SECONDS / seconds_per_call(step, 3, device))))
    rounds = [
        [*(seconds_per_call(step, n, device) for step, n in zip(steps, counts, strict=True)), *least()]
        for _ in range(ROUNDS)
    ]
    return [list(column) for column in zip(*rounds, strict=True)], counts


def quartiles(seconds: Sequence[float]) -> list[float]:
    """First quartile, median and third, in milliseconds."""
    return [1000 * value for value in statistics.quantiles(seconds, n=4, method="inclusive")]


def measure(settings: Settings, data: Data) -> dict[str, Any]:
    """The step, the tutorial's step and the floor."""
    from vae.commands.tutorial import tutorial_step
    from vae.training.roofline import floor

    from vae.training.build import choose_device

    device, size = choose_device(settings.train.device), settings.train.batch_size
    step, run = library_step(settings, data)
    for _ in range(3):
        step()
    memory = peak_memory_mb(device)  # before anything but the training is made
    tutorial, images = tutorial_step(settings, data)
    same = replace(settings, train=replace(settings.train, precision=run.precision))
    specification, state = plain_step(same, data)
    least = floor(specification, state.optimizer)
    (ours, theirs, *floors), counts = alternate([step, tutorial], lambda: least.seconds(device), device)
    (low, median, high), (their_low, their_median, their_high) = quartiles(ours), quartiles(theirs)
    runs = settings.train.replicas  # a step is one of each
    products, moved = (1000 * runs * statistics.median(column) for column in floors)
    return {
        "precision": run.precision,
        "steps": run.form(),
        "replicas": runs,
        "floor_ms": products + moved,
        "floor_products_ms": products,
        "floor_memory_ms": moved,
        "products_gflop": runs * least.flops / 1e9,
        "update_mb": runs * least.bytes / 1e6,
        "step_ms": median,
        "step_ms_quartiles": [low, high],
        "floor_over_step": (products + moved) / median,
        "images_per_second": 1000 * runs * size / median,
        "tutorial_step_ms": their_median,
        "tutorial_step_ms_quartiles": [their_low, their_high],
        "tutorial_images_per_second": 1000 * size / their_median,
        "tutorial_images": images,
        "times_the_tutorial": runs * their_median / median,
        "peak_memory_mb": memory,
        "rounds": ROUNDS,
        "steps_per_round": counts,
    }


# ------------------------------------------------------------------------------------- printing


def heading(record: dict[str, Any]) -> str:
    """The machine, and what of the config matters."""
    where = f"{record['processor']}, {record['device']}, {record['threads']} threads, torch {record['torch']}"
    return f"{where}\n{record['config']}, {record['precision']}, minibatches of {record['batch_size']}"


def _form(r: dict[str, Any]) -> str:
    return r["steps"] if r["replicas"] == 1 else f"{r['steps']}, of {r['replicas']} runs as one"


def table(r: dict[str, Any]) -> str:
    """A measurement for people."""
    products, memory = r["floor_products_ms"], r["floor_memory_ms"]
    gflop, megabytes, peak = r["products_gflop"], r["update_mb"], r["peak_memory_mb"]
    ours, theirs = r["steps_per_round"]
    quartile = "quartiles {:.2f} to {:.2f} ms".format
    rows = [
        ("floor", f"{r['floor_ms']:.2f} ms", "the least that a step can take here"),
        ("  products", f"{products:.2f} ms", f"{gflop:.3g} Gflop, {1000 * gflop / products:.3g} Gflop/s"),
        ("  memory", f"{memory:.2f} ms", f"{megabytes:.3g} MB, {megabytes / memory:.3g} GB/s"),
        ("step", f"{r['step_ms']:.2f} ms", f"{_form(r)}; {quartile(*r['step_ms_quartiles'])}"),
        ("floor / step", f"{100 * r['floor_over_step']:.0f} %", ""),
        ("images a second", f"{r['images_per_second']:,.0f}", ""),
        ("tutorial's step", f"{r['tutorial_step_ms']:.2f} ms", quartile(*r["tutorial_step_ms_quartiles"])),
        ("its images a second", f"{r['tutorial_images_per_second']:,.0f}", f"DataLoader over {r['tutorial_images']}"),
        ("times the tutorial", f"{r['times_the_tutorial']:.2f}", "which is eager, float32, its optimizer as it comes"),
        ("peak memory", "-" if peak is None else f"{peak:,.0f} MB", "of the process when it trains, before the rest"),
    ]
    lines = [f"{name:22}{value:>10}   {words}".rstrip() for name, value, words in rows]
    return "\n".join([*lines, f"medians of {r['rounds']} rounds in turn: {ours} steps, {theirs} of the tutorial's"])
