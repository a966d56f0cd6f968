"""Steps that never speak to the host: an ordinary function, held here to the plain step on the CPU; graphs on CUDA."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import vae
from tests.test_fast import before_normalisation, settings_of
from vae.data import Resident
from vae.errors import TrainingFailed
from vae.randomness import Streams
from vae.training import captured, fast
from vae.training.build import build_algorithm, build_model
from vae.training.captured import Graphs, captured_steps, captures, pieces
from vae.training.fast import functional
from vae.training.replicas import Replicated
from vae.training.trainer import one_by_one

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
    ),
]
aten = torch.ops.aten
BATCH = 10

CASES = {
    "adam": {},
    "batch normalisation, dynamic pixels": {
        "data": {"pixels": "dynamic"},
        "model": {"encoder": {"hidden": [8], "batch_norm": True}, "decoder": {"hidden": [7], "batch_norm": True}},
    },
    "schedule, warm-up, clipping": {
        "train": {"schedule": {"name": "exponential", "gamma": 0.5}, "clip_grad_norm": 1.0},
        "modifiers": {"beta": 2.0, "warm_up": 1.0},
    },
    "sgd with momentum": {"train": {"optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.9}}},
    "adagrad": {"train": {"optimizer": {"name": "adagrad", "lr": 0.05}}},
    "memory": {"objective": {"name": "score_function"}},
}


class Both:
    """The same run twice: plain steps, and steps on the device."""

    def __init__(self, blocks, device="cpu", seeds=(0,), dtype=torch.float64):
        settings, shape, _ = settings_of({**blocks, "train": {"batch_size": BATCH, **blocks.get("train", {})}})
        split = vae.load_data("digits", pixels=settings.data.pixels, train_size=BATCH * 4 + 3).train
        device, self.dtype = torch.device(device), dtype
        self.runs = []
        for _ in range(2):
            of_seeds = []
            for seed in seeds:
                source = Resident(split, BATCH, seed, device, dtype)
                algorithm = build_algorithm(settings, source.num_data, source.num_batches)
                algorithm = fast.AEVB(**{**algorithm.__dict__, "expand": source.expand})
                model = build_model(settings.model, shape, seed).to(device=device, dtype=dtype).train()
                of_seeds.append((algorithm, algorithm.init(model), source, Streams(seed, device)))
            self.runs.append(of_seeds)
        self.plain = [one_by_one(*parts, dtype) for parts in self.runs[0]]
        algorithms, self.states, sources, streams = zip(*self.runs[1], strict=True)
        together = len(seeds) > 1
        make = Replicated(algorithms[0], self.states) if together else functional(algorithms[0], self.states[0], None)
        self.form = make
        self.captured = captured_steps(make, sources, streams, dtype)

    def assert_equal(self, rtol=1e-8):
        for (_, state, _, _), own in zip(self.runs[0], self.states, strict=True):
            assert state.step == own.step
            free = before_normalisation(state.model)
            for name, value in state.model.state_dict().items():
                if name not in free:
                    found = own.model.state_dict()[name]
                    torch.testing.assert_close(found, value, rtol=rtol, atol=rtol * value.abs().max().item())


@pytest.fixture(autouse=True)
def few_steps_a_replay(monkeypatch):
    monkeypatch.setattr(captured, "STEPS_A_REPLAY", 2)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("case", CASES)
def test_steps_on_the_device_equal_plain_ones(case, device):
    both = Both(CASES[case], device)
    assert captures(both.form, both.runs[1][0][2])
    for epoch in range(11):
        start = 1 if epoch == 3 else 0  # as after a resume within an epoch
        plain = list(both.plain[0](epoch, start))
        found = list(both.captured(epoch, start))
        assert [s.data for s in found] == ([20, 10, 3] if start else [20, 20, 3])
        assert sum(s.batches for s in found) == len(plain)
        for name in plain[0].sums:
            total = sum(s.sums[name] for s in plain)
            torch.testing.assert_close(sum(s.sums[name] for s in found), total, rtol=1e-8, atol=1e-8)
        both.assert_equal()


@pytest.mark.parametrize("device", DEVICES)
def test_replicas_on_the_device_equal_plain_runs(device):
    both = Both(CASES["batch normalisation, dynamic pixels"], device, seeds=(3, 4, 5))
    for epoch in range(8):
        of_seeds = [list(plain(epoch, 0)) for plain in both.plain]
        found = list(both.captured(epoch, 0))
        for k, plain in enumerate(of_seeds):
            total = sum(s.sums["elbo"] for s in plain)
            torch.testing.assert_close(sum(s.sums["elbo"][k] for s in found), total, rtol=1e-8, atol=1e-8)
    for k in range(3):
        both.form.before_save(k)
    both.assert_equal()


@pytest.mark.parametrize("device", DEVICES)
def test_the_first_step_that_is_not_finite_is_noted_and_freezes_the_run(device, monkeypatch):
    both = Both(CASES["batch normalisation, dynamic pixels"], device)
    real = fast.AEVB.values

    def values(self, model, batch, noise, memory, step):
        maximised, memory, sums = real(self, model, batch, noise, memory, step)
        spoilt = {**sums, "kl": sums["kl"].where(torch.as_tensor(step != 6), torch.nan)}
        spoilt["elbo"] = spoilt["log_p_x_given_z"] - spoilt["kl"]
        return maximised * (spoilt["elbo"] / sums["elbo"]), memory, spoilt

    list(both.captured(0, 0))  # five steps
    monkeypatch.setattr(fast.AEVB, "values", values)
    plain = Both(CASES["batch normalisation, dynamic pixels"], device)
    rows = both.captured(1, 0)
    next(rows)  # steps 6 and 7, of which 7 is not finite
    frozen = {name: value.clone() for name, value in both.states[0].model.state_dict().items()}
    with pytest.raises(TrainingFailed, match=r"kl is not finite at step 7; try"):
        list(rows)
    for name, value in both.states[0].model.state_dict().items():
        assert torch.equal(value, frozen[name])
        assert torch.isfinite(value.double()).all()
    with pytest.raises(TrainingFailed, match="at step 7"):
        both.form.before_save(0)
    list(plain.plain[0](0, 0))
    one = plain.plain[0](1, 0)
    next(one)
    plain_state = plain.runs[0][0][1].model.state_dict()
    for name, value in frozen.items():  # it stopped where the plain run stood before its failing step
        if name not in before_normalisation(both.states[0].model):
            torch.testing.assert_close(value, plain_state[name], rtol=1e-8, atol=1e-8)


def test_a_failure_is_told_with_the_last_report_since_none_may_ask_for_more():
    both = Both({})
    steps = both.captured(0, 3)
    next(steps)
    with torch.no_grad():
        both.form.parameters[0].fill_(torch.nan)
    with pytest.raises(TrainingFailed, match="at step 2"):
        next(both.captured(0, 4))


def test_a_count_of_samples_ends_within_a_replay():
    both = Both({})
    assert [s.data for s in both.captured(0, 0, left=21)] == [20, 10]
    assert [s.data for s in both.captured(0, 3, left=11)] == [10, 3]
    assert both.states[0].step == 5


def test_pieces_cover_each_minibatch_once():
    for batches in range(1, 9):
        for full in (batches - 1, batches):
            for start in range(batches):
                done = list(pieces(start, batches, full))
                assert [b for first, count in done for b in range(first, first + count)] == list(range(start, batches))
                assert all(count == 1 or first + count <= full for first, count in done)


def test_optimizers_that_read_values_on_the_host_are_not_captured():
    for blocks, expected in (
        ({}, True),
        ({"train": {"optimizer": "adafactor"}}, False),
        ({"train": {"optimizer": "asgd"}}, False),
        ({"train": {"optimizer": {"name": "adagrad", "lr_decay": 0.1}}}, False),
        ({"train": {"optimizer": "adagrad", "schedule": "cosine"}}, False),
    ):
        settings, shape, _ = settings_of(blocks)
        algorithm = build_algorithm(settings, 100, 4)
        state = algorithm.init(build_model(settings.model, shape, 0))
        source = Resident(vae.load_data("digits").train, BATCH, 0, torch.device("cpu"), torch.float32)
        assert captures(functional(algorithm, state, None), source) == expected


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_graphs_are_replayed_and_nothing_waits_for_the_device():
    both = Both({}, "cuda", dtype=torch.float32)
    for epoch in range(4):
        list(both.captured(epoch, 0))
    torch.cuda.set_sync_debug_mode("error")
    try:
        steps = both.captured(4, 0)
        for _ in range(3):
            next(steps)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert both.states[0].step == 5 * 5


def test_a_graph_takes_the_shape_of_its_rows_only(monkeypatch):
    """The bookkeeping of graphs, without a device: as it is at first, then captured, once a shape."""
    made, calls = [], []
    step = type("Step", (), {"step": torch.tensor(0), "__call__": lambda self, rows, rate: calls.append(rows.shape)})()
    graphs = Graphs(step, [])
    graphs.captures = True
    monkeypatch.setattr(Graphs, "_capture", lambda self, rows, rates: made.append(tuple(rows.shape)))
    for _ in range(5):
        graphs(torch.zeros(2, 3), torch.ones(2))
        graphs(torch.zeros(1, 2), torch.ones(1))
    assert made == [(2, 3), (1, 2), (2, 3), (1, 2)]  # as nothing was kept, it is tried again
    assert len(calls) == 5 * 3


class _NoLook(TorchDispatchMode):
    """Refuses what reads a value on the host: on CUDA each such place would wait for the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket not in (aten._local_scalar_dense, aten.nonzero, aten.equal), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_a_step_looks_at_no_value(case):
    both = Both(CASES[case])
    steps = both.captured(0, 0)
    next(steps)
    with _NoLook():
        next(steps)
    with pytest.raises(AssertionError, match="_local_scalar_dense"), _NoLook():  # the plain step does look
        next(both.plain[0](0, 0))
