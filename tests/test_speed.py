"""The cost of a training step beside a bare loop, in one process; and that its memory does not grow."""

import itertools
import os
import statistics
import time
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from vae.training.session import Session

import vae
from vae.data import Resident, Split
from vae.randomness import Streams
from vae.ranks import Stop
from vae.training import read_settings
from vae.training.build import build_algorithm, build_model, resolve, with_likelihood
from vae.training.run import stepper

CPU = torch.device("cpu")


def library_step(settings, shape, split):
    model = build_model(settings.model, shape, 0).train()
    source = Resident(split, settings.train.batch_size, 0, CPU, torch.float32)
    algorithm = replace(build_algorithm(settings, source.num_data, source.num_batches), expand=source.expand)
    state, streams = algorithm.init(model), Streams(0, CPU)
    batches = source.epoch(0, 0, streams)

    def step():
        batch = next(batches)
        kind, noise_shape = algorithm.noise(state, len(batch))
        algorithm.step(state, batch, streams.draw(kind, noise_shape, torch.float32))

    return step


def bare_step(settings, shape, split):
    """Forward, backward and fused Adam on the same tensor, written out."""
    model = build_model(settings.model, shape, 0).train()
    x = split.images()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5, fused=True)
    batches = iter(torch.randperm(len(x)).split(settings.train.batch_size))

    def step():
        batch = x[next(batches)]
        mean, log_variance = model.encoder(batch).chunk(2, 1)
        logits = model.decoder(mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean))
        cross_entropy = F.binary_cross_entropy_with_logits(logits, batch, reduction="sum")
        kl = -0.5 * (1 + log_variance - mean**2 - log_variance.exp()).sum()
        optimizer.zero_grad()
        (cross_entropy + kl).backward()
        optimizer.step()

    return step


@pytest.mark.slow
@pytest.mark.parametrize("config", ["mnist_d2", "laird_mnist_d2"])
def test_a_step_costs_at_most_1_3_of_a_bare_loop(config, in_root, capsys):
    """The median over 7 pairs of 60 alternating steps; data of MNIST's shape and type."""
    settings, shape, _ = resolve(read_settings(f"configs/{config}.yaml", ["train.optimizer={name: adam}"]))
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (12_000, *shape), dtype=torch.uint8, generator=generator)
    split = Split(images, None, torch.arange(12_000), 255.0)
    ratios = []
    for _ in range(7):
        steps = library_step(settings, shape, split), bare_step(settings, shape, split)
        seconds = [0.0, 0.0]
        for i in range(70):
            for which, step in enumerate(steps):
                start = time.perf_counter()
                step()
                seconds[which] += (time.perf_counter() - start) * (i >= 10)  # the first ten warm up
        ratios.append(seconds[0] / seconds[1])
    with capsys.disabled():
        print(f"\n{config}: {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
    assert statistics.median(ratios) < 1.3


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's account of the process")
@pytest.mark.parametrize(
    ("replicas", "form", "precision"),
    [
        *((replicas, form, "float32") for replicas in (1, 3) for form in ("never", "always")),
        *((1, form, "bfloat16") for form in ("never", "always")),
    ],
)
def test_memory_is_steady_over_10_000_steps(replicas, form, precision, in_root):
    """After the first 2,000 steps, in which caches fill, less than 3 MB more; a kept step would add 3 kB each."""
    how = [f"train.compile={form}", f"train.precision={precision}", "train.batch_size=64"]
    settings = read_settings("configs/digits_d2.yaml", how)
    data = vae.load_data("digits", pixels="static")
    sessions = [
        Session(settings, build_model(with_likelihood(settings, "binary").model, data.shape, seed), data, None)
        for seed in range(replicas)
    ]
    steps = stepper(sessions, Stop())
    endless = (done for epoch in itertools.count() for done in steps(epoch, 0))
    for _ in range(2_000):
        next(endless)
    before = resident_mb()
    for _ in range(8_000):
        next(endless)
    assert resident_mb() - before < 3
