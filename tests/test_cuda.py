"""Training, evaluation and checkpoints on a CUDA device; its steps compiled, which there means CUDA graphs.

With VAE_TEST_DEVICE=cpu all that is not about CUDA alone runs on the CPU, compiled there too, so that the tests
themselves are tried where there is no GPU.
"""

import contextlib
import copy
import itertools
import json
import os
import signal
import warnings

import pytest
import torch
import yaml
from torch._dynamo.utils import counters

import vae
from vae.algorithms import AEVB, State, eager
from vae.commands.encode import main as encode
from vae.commands.evaluate import main as evaluate
from vae.commands.plot import main_curves, main_manifold, main_reconstructions, main_samples, main_tsne
from vae.commands.train import main as train_command
from vae.errors import Interrupted, TrainingFailed
from vae.evaluation import evaluate_bound
from vae.precision import matmul_precision, parameter_dtype
from vae.ranks import Ranks, Stop
from vae.training import checkpoint, gradients, read_settings
from vae.training.build import build_model, choose_device, with_likelihood
from vae.training.progress import Progress
from vae.training.run import begin, plan_of, train, with_gradient
from vae.training.run_directory import resumed_settings
from vae.training.trainer import Stepper

DEVICE = os.environ.get("VAE_TEST_DEVICE", "cuda")
ON_CUDA = DEVICE == "cuda"
only_cuda = pytest.mark.skipif(not ON_CUDA, reason="a CPU has no such thing")
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(ON_CUDA and not torch.cuda.is_available(), reason="no CUDA device"),
]

DENSE = {"encoder": {"hidden": [16, 12], "batch_norm": True}, "decoder": {"hidden": [12, 16], "batch_norm": True}}
CONV = {
    "encoder": {"name": "conv", "channels": [4, 6], "batch_norm": True},
    "decoder": {"name": "conv", "channels": [6, 4], "batch_norm": True},
}
WITHOUT_NORM = {"encoder": {"hidden": [16, 12]}, "decoder": {"hidden": [12, 16]}}


def config(*blocks, **train):
    """A small run on the digits: 6 whole minibatches per epoch and one of another size, which is never compiled."""
    raw = {
        "data": {"name": "digits", "pixels": "static", "train_size": 310, "validation_size": 50},
        "model": {"latent_dim": 3, **DENSE},
        "train": {"epochs": 3, "batch_size": 50, "device": DEVICE, "compile": "never", "checkpoint_seconds": 0},
    }
    for block in (*blocks, {"train": train}):
        for name, values in block.items():
            raw[name] = {**raw.get(name, {}), **values}
    return raw


@contextlib.contextmanager
def really_compiled():
    """Fail where a run falls back to the eager gradient, and where a compiled one is no CUDA graph."""
    counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the step is not compiled")
        yield
    assert counters["inductor"]["cudagraph_skips"] == 0


@contextlib.contextmanager
def begun(raw):
    """A run before its first step, with the gradient that its config asks for; the algorithm; minibatches for ever."""
    settings = read_settings(raw)
    data = vae.load_data(settings.data)
    settings = with_likelihood(settings, data.kind, data.shape)
    model = build_model(settings.model, data.shape, settings.train.seed)
    with really_compiled(), matmul_precision(settings.train.precision, choose_device(DEVICE)):
        run, algorithm = begin(settings, model, data, Ranks())
        algorithm = with_gradient(algorithm, run, settings, plan_of(settings), Stop())
        assert run.form == {"never": "plain", "always": "compiled"}[settings.train.compile]
        if ON_CUDA and run.form == "compiled":
            assert counters["inductor"]["cudagraph_recorded_non_static_inputs"] > 0
        yield run, algorithm, parameter_dtype(settings.train.precision)


def stepper_of(run, algorithm, dtype):
    return Stepper(algorithm, run.state, run.batches, run.streams, dtype)


def trained(raw, out=None, **options):
    with really_compiled():
        return train(read_settings(raw), out, verbose=False, **options)


def form_of(path):
    return json.loads((path / "environment.json").read_text())["steps"]


def metrics(path, split):
    """What a run has logged of a split, without times."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines if line["split"] == split]


def elbos(path, split="train"):
    return [line["elbo"] for line in metrics(path, split)]


def last(path):
    """The tensors and values of the last checkpoint."""
    return checkpoint.read(path / "checkpoints" / "last.safetensors")


# ------------------------------------------------------------------------------------- the compiled gradient

GRADIENTS = {
    "batch normalisation": {},
    "convolutions": {"model": CONV},
    "a memory": {"objective": {"name": "score_function", "num_samples": 2, "baseline": "running"}},
    "three samples, dynamic pixels, warm-up": {
        "data": {"pixels": "dynamic"},
        "objective": {"name": "sgvb_b", "num_samples": 3},
        "modifiers": {"beta": 2.0, "warm_up": 2.0},
    },
}


def assert_agree(ours, theirs, tolerance):
    """Relative to the largest value of each tensor, or to a hundredth of the largest of all: the true gradient of a
    bias before a batch normalisation is 0."""
    largest = max(value.abs().max().item() for value in theirs.values())
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        allowed = tolerance * max(value.abs().max().item(), 1e-2 * largest)
        assert (ours[name] - value).abs().max().item() <= allowed, name


@pytest.mark.parametrize(
    ("case", "precision", "tolerance"),
    [
        *((case, "float64", 1e-8) for case in GRADIENTS),
        ("batch normalisation", "float32", 1e-3),
        ("convolutions", "float32", 1e-3),
    ],
)
def test_the_compiled_gradient_is_the_eager_one_step_after_step(case, precision, tolerance):
    """The compiled gradient makes the steps, and the eager one is asked at each of its states: nothing of an earlier
    replay may be left in a result, and no result may change after its step."""
    with begun(config(GRADIENTS[case], precision=precision, compile="always")) as (run, algorithm, dtype):
        state, kept, sizes = run.state, [], set()
        twin = copy.deepcopy(state.model)
        batches = (batch for epoch in range(4) for batch in run.batches.epoch(epoch, 0, run.streams))
        for batch in itertools.islice(batches, 24):
            sizes.add(len(batch.x))
            noise = run.streams.draw(algorithm.noises(state, len(batch.x)), dtype)
            twin.load_state_dict(state.model.state_dict())
            specification = State(twin, torch.optim.SGD(twin.parameters(), lr=0.0), state.memory, state.step)
            their_memory, their_sums = eager(algorithm, specification, batch, noise)
            memory, sums = algorithm.gradient(algorithm, state, batch, noise)
            parameters = dict(state.model.named_parameters())
            of_twin = dict(twin.named_parameters())
            assert_agree({n: p.grad for n, p in parameters.items()}, {n: p.grad for n, p in of_twin.items()}, tolerance)
            assert_agree(dict(state.model.named_buffers()), dict(twin.named_buffers()), tolerance)
            assert_agree(sums, their_sums, tolerance)
            if memory:
                assert_agree(memory, their_memory, tolerance)
            # Fused optimizers walk through parameter and gradient side by side.
            assert all(p.grad.stride() == p.stride() for p in parameters.values())
            algorithm.update(state, memory)
            kept.append(({**sums, **memory}, {n: v.clone() for n, v in {**sums, **memory}.items()}))
        assert sizes == {50, 10}
        assert all(torch.equal(value, then[name]) for now, then in kept for name, value in now.items())


@pytest.mark.parametrize("networks", ["dense", pytest.param("convolutional", marks=only_cuda)])
def test_a_long_run_is_compiled_and_trains_as_a_plain_one(networks, monkeypatch, tmp_path):
    monkeypatch.setattr(gradients, "ENOUGH_STEPS", 10)
    model = {"model": CONV if networks == "convolutional" else DENSE}
    for setting, form in (("auto", "compiled"), ("never", "plain")):
        trained(config(model, compile=setting, precision="float64", epochs=4), tmp_path / form)
        assert form_of(tmp_path / form) == form
    compiled, plain = (elbos(tmp_path / form) for form in ("compiled", "plain"))
    assert compiled == pytest.approx(plain, rel=1e-6)
    # Adam makes whole steps of the rounding in a bias before a batch normalisation. Training does not see it, and
    # evaluation does a little, by running means that lag behind.
    compiled, plain = (elbos(tmp_path / form, "validation") for form in ("compiled", "plain"))
    assert compiled == pytest.approx(plain, rel=1e-2)


# ------------------------------------------------------------------------------------- checkpoints


def interrupt_after(patch, steps):
    """A signal to this very process after so many more steps."""
    real, count = AEVB.step, itertools.count(1)

    def step(self, state, batch, noise):
        if next(count) == steps:
            signal.raise_signal(signal.SIGINT)
        return real(self, state, batch, noise)

    patch.setattr(AEVB, "step", step)


RESUMED = {
    # What adds up in an order of its own: nothing. PyTorch's kernels and cuBLAS on a single stream are deterministic.
    "dense, adam": ({}, True),
    "dense, adagrad": ({"model": WITHOUT_NORM, "train": {"optimizer": {"name": "adagrad", "lr": 0.05}}}, True),
    "dynamic pixels, a memory": ({"data": {"pixels": "dynamic"}, **GRADIENTS["a memory"]}, True),
    # cuDNN may sum the gradient of a convolution's weights by atomic additions.
    "convolutions": (
        {
            "model": {k: {**v, "batch_norm": False} for k, v in CONV.items()},
            "train": {"precision": "float64"},
        },
        False,
    ),
    # The compiler may choose by a timing in how many parts it sums.
    "compiled": ({"model": WITHOUT_NORM, "train": {"precision": "float64", "compile": "always"}}, False),
}


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_ends_as_one_never_stopped(case, monkeypatch, tmp_path):
    """In the same bits where `exact`; on CUDA to 1e-6 in float64 where not, and a warning says if the bits differ."""
    blocks, exact = RESUMED[case]
    raw = config(blocks)
    trained(raw, tmp_path / "whole")
    for steps in (4, 9):
        with monkeypatch.context() as patch, pytest.raises(Interrupted, match="stopped by SIGINT"):
            interrupt_after(patch, steps)
            trained(raw, tmp_path / "parts", resume=True)
    trained(raw, tmp_path / "parts", resume=True)
    (whole, values), (parts, others) = last(tmp_path / "whole"), last(tmp_path / "parts")
    assert (values["step"], values["form"]) == (others["step"], others["form"])
    assert whole.keys() == parts.keys()
    same_bits = all(torch.equal(parts[name], tensor) for name, tensor in whole.items())
    for split in ("train", "validation"):
        assert elbos(tmp_path / "parts", split) == pytest.approx(elbos(tmp_path / "whole", split), rel=1e-6)
    for name, tensor in whole.items():
        scale = tensor.double().abs().max().item()
        torch.testing.assert_close(parts[name], tensor, rtol=1e-6, atol=1e-6 * scale, msg=lambda m, n=name: f"{n}: {m}")
    if exact or not ON_CUDA:
        assert same_bits
    elif not same_bits:
        warnings.warn(f"{case}: resumed, the run ends in other bits", stacklevel=1)


@pytest.mark.parametrize("compile", ["never", "always"])
def test_a_checkpoint_of_cuda_opens_and_goes_on_on_the_cpu(compile, tmp_path):
    run = trained(config(precision="float64", compile=compile, epochs=2), tmp_path / "x")
    assert next(run.model.parameters()).device.type == DEVICE
    model = vae.load(tmp_path / "x", checkpoint="last")
    assert next(model.parameters()).device.type == "cpu"
    x = vae.load_data("digits", pixels="static").test.images()
    torch.testing.assert_close(model.elbo(x), run.model.elbo(x).cpu(), rtol=1e-8, atol=1e-8)
    settings = resumed_settings(tmp_path / "x", ["train.device=cpu", "train.epochs=4"])
    with really_compiled():
        more = train(settings, tmp_path / "x", resume=True, verbose=False)
    assert more.steps == 14
    assert next(more.model.parameters()).device.type == "cpu"
    assert elbos(tmp_path / "x")[-1] > elbos(tmp_path / "x")[0]


def test_a_run_begun_on_the_cpu_goes_on_on_cuda(tmp_path):
    trained(config(epochs=2, device="cpu"), tmp_path / "x")
    tensors, values = last(tmp_path / "x")
    settings = resumed_settings(tmp_path / "x", [f"train.device={DEVICE}", "train.epochs=4"])
    more = train(settings, tmp_path / "x", resume=True, verbose=False)
    assert next(more.model.parameters()).device.type == DEVICE
    assert more.steps == 14
    assert [line["epoch"] for line in metrics(tmp_path / "x", "train")] == [1, 2, 3, 4]
    assert elbos(tmp_path / "x")[-1] > elbos(tmp_path / "x")[0]
    after, others = last(tmp_path / "x")
    assert others["step"] == values["step"] + 14
    assert others["form"] == values["form"]
    assert after.keys() >= tensors.keys()


# ------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("compile", ["never", "always"])
def test_a_value_that_is_not_finite_ends_the_run_by_the_end_of_its_epoch(compile, monkeypatch, tmp_path):
    """From step 10 on, in the second of epochs of 7; the checkpoint of the first stays as it was."""
    real = AEVB.values

    def values(self, model, batch, noise, memory, step):
        maximised, memory, sums = real(self, model, batch, noise, memory, step)
        if not isinstance(step, torch.Tensor):
            factor = float("nan") if step >= 9 else 1.0
        else:
            factor = torch.where(step >= 9, float("nan"), 1.0)
        return maximised * factor, memory, {name: value * factor for name, value in sums.items()}

    monkeypatch.setattr(AEVB, "values", values)
    with pytest.raises(TrainingFailed, match=r"step (10|14).*the last good checkpoint is .*last\.safetensors") as error:
        trained(config(compile=compile), tmp_path / "x")
    assert ("by step 14" if ON_CUDA else "at step 10") in str(error.value)
    tensors, saved = last(tmp_path / "x")
    assert saved["step"] == 7
    assert all(torch.isfinite(tensor).all() for tensor in tensors.values() if tensor.is_floating_point())
    assert [line["epoch"] for line in metrics(tmp_path / "x", "train")] == [1]
    assert torch.isfinite(vae.load(tmp_path / "x").sample(3)).all()


@only_cuda
@pytest.mark.parametrize("compile", ["never", "always"])
@pytest.mark.parametrize(
    "blocks",
    [
        {"train": {"clip_grad_norm": 1.0, "schedule": "cosine"}, "modifiers": {"beta": 2.0, "warm_up": 1.0}},
        {"model": CONV},
        {"train": {"optimizer": {"name": "adagrad", "lr": 0.05}}, **GRADIENTS["a memory"]},
    ],
    ids=["adam, clipping, warm-up", "convolutions", "adagrad, a memory"],
)
def test_no_step_waits_for_the_device(blocks, compile):
    raw = config(blocks, compile=compile, batch_size=10)  # so that the steps lie within one epoch
    with begun(raw) as (run, algorithm, dtype):
        progress, steps = Progress(), stepper_of(run, algorithm, dtype).epoch(0, 0)
        for size, sums in itertools.islice(steps, 8):
            progress.add(size, sums)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for size, sums in itertools.islice(steps, 10):
                progress.add(size, sums)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert run.state.step == 18
        assert all(torch.isfinite(value) for value in progress.sums.values())


def resident_mb():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads Linux's account of the process")
@pytest.mark.parametrize("compile", ["never", "always"])
def test_memory_is_steady_over_2_000_steps(compile):
    """After 500 more, in which caches fill; a kept step would add some 20 kB each, 40 MB in all."""
    with begun(config(compile=compile)) as (run, algorithm, dtype):
        stepper, progress = stepper_of(run, algorithm, dtype), Progress()
        endless = (done for epoch in itertools.count() for done in stepper.epoch(epoch, 0))
        for count, (size, sums) in enumerate(endless):
            progress.add(size, sums)
            if count == 500:
                before = resident_mb(), torch.cuda.memory_allocated() if ON_CUDA else 0
            if count == 2500:
                break
        after = resident_mb(), torch.cuda.memory_allocated() if ON_CUDA else 0
    assert after[0] - before[0] < 10
    assert after[1] - before[1] < 100_000  # bytes; the last minibatch of an epoch is smaller than others


# ------------------------------------------------------------------------------------- precisions and commands


@pytest.mark.parametrize(
    ("networks", "precision", "compile"),
    [
        ("dense", "bfloat16", "never"),
        ("dense", "bfloat16", "always"),
        ("convolutional", "bfloat16", "never"),
        pytest.param("dense", "tf32", "never", marks=only_cuda),
        pytest.param("convolutional", "tf32", "never", marks=only_cuda),
        pytest.param("convolutional", "tf32", "always", marks=only_cuda),
    ],
)
def test_other_precisions_train(networks, precision, compile, tmp_path):
    model = {"model": CONV if networks == "convolutional" else DENSE}
    trained(config(model, epochs=4), tmp_path / "float32")
    trained(config(model, epochs=4, precision=precision, compile=compile), tmp_path / precision)
    assert form_of(tmp_path / precision) == ("plain" if compile == "never" else "compiled")
    found = elbos(tmp_path / precision)
    assert found == pytest.approx(elbos(tmp_path / "float32"), rel=3e-2)
    assert found[-1] > found[0]
    tensors, _ = last(tmp_path / precision)
    assert {t.dtype for name, t in tensors.items() if name.startswith("model.") and t.is_floating_point()} == {
        torch.float32
    }


@pytest.fixture(scope="module")
def run_of_two_latents(tmp_path_factory):
    """Trained by the command, with all that this ends in: an evaluation, and figures."""
    path = tmp_path_factory.mktemp("commands")
    (path / "tiny.yaml").write_text(yaml.dump(config({"model": {"latent_dim": 2}})))
    assert train_command(["--config", str(path / "tiny.yaml"), "--out", str(path / "x")]) == 0
    return path / "x"


def test_the_command_evaluates_and_draws(run_of_two_latents):
    assert DEVICE in json.loads((run_of_two_latents / "environment.json").read_text())["device"]
    stems = {file.stem for file in (run_of_two_latents / "figures").iterdir()}
    assert stems == {"curves", "reconstructions", "samples", "manifold", "manifold_quantiles", "codes"}
    assert [len(metrics(run_of_two_latents, split)) for split in ("train", "validation", "test")] == [3, 3, 3]


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--log-likelihood is --num-samples 200",
        "--log-likelihood hmc --num-samples 16 --chains 4",
        "--log-likelihood ais --num-samples 5 --chains 4",
        "--log-likelihood quadrature --num-samples 30",
        "--gaps --num-samples 100",
        "--self-check --num-samples 5 --chains 4",
        "--representation",
    ],
)
def test_evaluation_runs(arguments, run_of_two_latents, capsys):
    limit = None if arguments in ("", "--representation") else 4
    words = ["--json", *arguments.split(), *([] if limit is None else ["--limit", str(limit)])]
    assert evaluate([str(run_of_two_latents), *words]) == 0
    record = json.loads(capsys.readouterr().out)
    # The noise of a datum is the same on every device.
    split = vae.load_data("digits", pixels="static").evaluation_split("test", limit)
    on_cpu = evaluate_bound(vae.load(run_of_two_latents), split, name="test").elbo.mean().item()
    assert record["elbo"]["mean"] == pytest.approx(on_cpu, rel=1e-4)
    if "--log-likelihood" in arguments and "hmc" not in arguments:
        assert record["log_p_x"]["mean"] > record["elbo"]["mean"] - 1


@pytest.mark.parametrize("command", [main_curves, main_reconstructions, main_samples, main_manifold, main_tsne])
def test_figures_are_drawn(command, run_of_two_latents, tmp_path, capsys):
    assert command([str(run_of_two_latents), "--out", str(tmp_path)]) == 0
    drawn = capsys.readouterr().out.split()
    assert len(drawn) >= 2
    assert all(os.path.getsize(file) > 1000 for file in drawn)


def test_codes_are_written(run_of_two_latents, tmp_path):
    assert encode([str(run_of_two_latents), "--out", str(tmp_path / "codes.npz"), "--sample"]) == 0
