"""The benchmark: what it takes for the least work of a step is that work, and the command prints it."""

import contextlib
import itertools
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from vae.data import Split, load_data
from vae.training import read_settings
from vae.training.build import build_model

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))  # its files import each other as scripts do

import evaluation  # noqa: E402
import gpu  # noqa: E402
import growth  # noqa: E402
import inputs  # noqa: E402
import loops  # noqa: E402
import lower_bound  # noqa: E402
import step  # noqa: E402
import timing  # noqa: E402
from loops import plain_step  # noqa: E402
from lower_bound import Operand, aten, pass_seconds, product_seconds, record, update_bytes  # noqa: E402
from step import Loop, alternate, main  # noqa: E402
from timing import median_seconds  # noqa: E402

CPU = torch.device("cpu")
CONFIG = {
    "data": {"name": "digits", "pixels": "static", "train_size": 60},
    "model": {"latent_dim": 3, "encoder": {"hidden": [12, 7]}, "decoder": {"hidden": [5]}, "likelihood": "bernoulli"},
    "objective": {"name": "sgvb_b", "num_samples": 2},
    "train": {"batch_size": 10, "device": "cpu", "compile": "never"},
}
CONV = [
    "model.encoder={name: conv, channels: [4, 6], kernel: 4, stride: 2, padding: 1}",
    "model.decoder={name: conv, channels: [6, 4], kernel: 4, stride: 2, padding: 1}",
]


def made(overrides=()):
    settings = read_settings(CONFIG, overrides)
    return settings, load_data(settings.data)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.dump(CONFIG))
    return str(path)


@pytest.fixture
def quick(monkeypatch):
    """Rounds of a few steps, and few sizes."""
    for module in (step, growth):
        monkeypatch.setattr(module, "ROUND_SECONDS", 1e-3)
    monkeypatch.setattr(timing, "SHORTEST", 1e-5)
    monkeypatch.setattr(inputs, "STAND_IN_SIZE", 300)
    monkeypatch.setattr(growth, "FRACTIONS", (1 / 3, 1))


# ------------------------------------------------------------------------------------- what a step multiplies


def dimensions(product):
    """(inner, outer, outer) of a matrix product, whichever of the two factors comes first."""
    (rows, inner), (_, columns) = product.shapes[-2:]
    return inner, *sorted((rows, columns))


def of_layer(rows, wide, narrow):
    """Forward, the gradient of the weights, the gradient of the input; each takes 2 * rows * wide * narrow flops."""
    return [(wide, *sorted((rows, narrow))), (rows, *sorted((wide, narrow))), (narrow, *sorted((rows, wide)))]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_products_of_a_multilayer_perceptron_are_those_of_its_layers(precision):
    """Minibatches of 10, two samples, so that the decoder sees 20 rows; nobody needs the gradient of the data."""
    products = record(plain_step(*made([f"train.precision={precision}"]))[0])
    layers = [(10, 64, 12), (10, 12, 7), (10, 7, 6), (20, 3, 5), (20, 5, 64)]
    expected = Counter(itertools.chain.from_iterable(of_layer(*layer) for layer in layers))
    expected[of_layer(*layers[0])[2]] -= 1
    found = Counter()
    for product, count in products.items():
        found[dimensions(product)] += count
    assert found == +expected
    assert products.total() == 14
    flops = sum(count * product.flops for product, count in products.items())
    assert flops == 3 * sum(2 * a * b * c for a, b, c in layers) - 2 * 10 * 64 * 12
    operands = {a for product in products for a in product.args if isinstance(a, Operand)}
    assert {operand.dtype for operand in operands} == {getattr(torch, precision)}


def test_the_products_of_a_convolutional_network_are_those_of_its_layers():
    """8 x 8 to 4 x 4 x 4 to 6 x 2 x 2 to 6 numbers; from 3 numbers back the same way."""
    products = record(plain_step(*made([*CONV, "objective.num_samples=1"]))[0])
    counts = Counter()
    for product, count in products.items():
        counts[product.operation.overloadpacket] += count
    assert counts == {aten.convolution: 4, aten.convolution_backward: 4, aten.addmm: 2, aten.mm: 4}
    convolutions = [2 * 10 * 1 * 4 * 16 * 16, 2 * 10 * 4 * 6 * 16 * 4]  # 2 M c_in c_out kernel^2 pixels; and back
    dense = [2 * 10 * 24 * 6, 2 * 10 * 3 * 24]
    flops = sum(count * product.flops for product, count in products.items())
    assert flops == 3 * (2 * sum(convolutions) + sum(dense)) - convolutions[0]
    backward = [p for p in products if p.operation.overloadpacket is aten.convolution_backward]
    assert sorted(p.args[-1] for p in backward) == [(False, True, False), *[(True, True, False)] * 3]


def test_equal_products_are_counted_and_timed_once():
    a, b = torch.randn(4, 6), torch.randn(6, 5)
    products = record(lambda: (a @ b, a @ b, a.t().contiguous().t() @ b, torch.bmm(a[None], b[None])))
    assert sorted(products.values()) == [1, 1, 2]  # another stride is another product


@pytest.mark.parametrize("overrides", [[], CONV], ids=["mlp", "conv"])
def test_every_recorded_product_runs_alone_in_its_own_shape(overrides):
    for product in record(plain_step(*made(overrides))[0]):
        for channels_last in (False, True):
            result = lower_bound._call(product, CPU, channels_last)()
            tensors = [r for r in (result if isinstance(result, tuple) else [result]) if r is not None]
            expected = product.result if isinstance(product.result, tuple) else [product.result]
            shapes = [r.shape for r in expected if isinstance(r, Operand)]
            assert [tuple(t.shape) for t in tensors] == shapes[: len(tensors)]
        assert product_seconds(product, CPU) > 0


@pytest.mark.parametrize(("shape", "stride"), [((3, 4), (4, 1)), ((3, 4), (1, 3)), ((3, 4), (0, 1)), ((), ())])
def test_operands_have_their_shape_stride_and_type(shape, stride):
    tensor = Operand(shape, stride, torch.bfloat16).fresh(CPU)
    assert (tuple(tensor.shape), tensor.stride(), tensor.dtype) == (shape, stride, torch.bfloat16)


# ------------------------------------------------------------------------------------- what it moves, how it is timed

BYTES = 4 * (12 + 4)  # of the parameters of 3 inputs and 4 outputs, and of each state of their shape
STEPS = 2 * 4  # the count of steps that an optimizer keeps for each of the two


@pytest.mark.parametrize(
    ("optimizer", "options", "expected"),
    [
        (torch.optim.SGD, {}, 3 * BYTES),
        (torch.optim.SGD, {"momentum": 0.9}, 3 * BYTES + 2 * BYTES),
        (torch.optim.Adagrad, {}, 3 * BYTES + 2 * (BYTES + STEPS)),
        (torch.optim.Adam, {"fused": True}, 3 * BYTES + 2 * (2 * BYTES + STEPS)),
    ],
)
def test_an_update_reads_and_writes_parameters_and_state_and_reads_gradients(optimizer, options, expected):
    layer, frozen = nn.Linear(3, 4), nn.Parameter(torch.zeros(100))
    optimizer = optimizer([*layer.parameters(), frozen], lr=0.1, **options)
    layer(torch.randn(2, 3)).sum().backward()
    optimizer.step()
    assert update_bytes(optimizer) == expected


def test_the_lower_bound_is_of_the_products_and_the_update():
    made_step, state = plain_step(*made())
    least = lower_bound.lower_bound(made_step, state.optimizer)
    assert min(least.seconds(CPU)) > 0
    parameters = sum(p.numel() for p in state.model.parameters())
    assert least.bytes == 4 * 7 * parameters + 2 * 4 * len(list(state.model.parameters()))
    assert least.flops == 3 * 2 * (10 * (64 * 12 + 12 * 7 + 7 * 6) + 20 * (3 * 5 + 5 * 64)) - 2 * 10 * 64 * 12


def test_the_seconds_of_a_lower_bound_count_each_product_as_often_as_it_occurs(monkeypatch):
    a, b = torch.randn(4, 6), torch.randn(6, 5)
    monkeypatch.setattr(lower_bound, "product_seconds", lambda product, device: product.flops)
    monkeypatch.setattr(lower_bound, "pass_seconds", lambda count, device: count)
    least = lower_bound.LowerBound(record(lambda: (a @ b, a @ b, b.t() @ a.t())), 7)
    assert least.seconds(CPU) == (3 * 240, 7)


def test_a_time_is_a_median(monkeypatch):
    """Two timings to warm up and to see how often to repeat, then five."""
    timings, repeats = iter([1.0, 1e-5, 3.0, 2.0, 2.5, 9.0, 1.0]), []
    monkeypatch.setattr(
        timing, "seconds_per_call", lambda call, count, device: (repeats.append(count), next(timings))[1]
    )
    assert median_seconds(lambda: None, CPU) == 2.5
    assert repeats[2:] == [20] * 5  # 0.2 ms of 10 us


def test_a_pass_moves_as_many_bytes_as_it_says(monkeypatch):
    moved = []
    monkeypatch.setattr(lower_bound, "median_seconds", lambda call, device: moved.append(call.__self__.nbytes))
    pass_seconds(80_000, CPU)
    assert moved == [40_000]  # read, and written


def test_loops_and_lower_bound_take_turns_each_in_its_own_setting(monkeypatch):
    monkeypatch.setattr(step, "ROUND_SECONDS", 0)
    made = []

    def setting(name):
        @contextlib.contextmanager
        def entered():
            made.append(name)
            yield
            made.append(")")

        return entered

    both = [Loop(lambda: made.append("a"), setting("A(")), Loop(lambda: made.append("b"), setting("B("))]
    times, counts = alternate(both, lambda: made.append("c") or (7.0, 8.0), CPU)
    said = "".join(made)
    assert said.endswith("A(a)B(b)c" * step.ROUNDS)
    assert said.count("a") == said.count("b") == 5 + step.ROUNDS  # five of each to warm up
    assert counts == [1, 1]
    assert [len(column) for column in times] == [step.ROUNDS] * 4
    assert times[2:] == [[7.0] * step.ROUNDS, [8.0] * step.ROUNDS]


def test_the_tutorial_multiplies_in_true_float32_and_leaves_the_setting_as_it_was():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with loops.true_float32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


# ------------------------------------------------------------------------------------- the tutorial


def test_the_tutorial_maximises_the_same_bound(monkeypatch):
    settings, data = made(["objective.num_samples=1"])
    x = data.train.images()[:10]
    values = []
    for textbook in (True, False):
        assert loops._is_textbook(settings)
        with monkeypatch.context() as patch:
            patch.setattr(loops, "_is_textbook", lambda settings, answer=textbook: answer)
            loss = loops._loss(settings, build_model(settings.model, data.shape, 0))
        torch.manual_seed(0)
        values.append(loss(x).item())
    assert values[0] == pytest.approx(values[1], rel=1e-6)
    assert not loops._is_textbook(made()[0])  # two samples
    assert not loops._is_textbook(made(["objective.num_samples=1", "modifiers.beta=2"])[0])


@pytest.mark.parametrize("channels", [1, 3])
def test_images_decoded_one_by_one_are_those_of_the_split(channels):
    x = torch.randint(0, 256, (5, channels, 6, 4), dtype=torch.uint8)
    split = Split(x, None, torch.arange(5), 255.0)
    images = loops.ImageByImage(split)
    assert len(images) == 5
    torch.testing.assert_close(torch.stack([images[i][0] for i in range(5)]), split.images())


@pytest.mark.real_data
def test_the_tutorial_loads_torchvisions_own_images():
    settings = read_settings(CONFIG, ["data={name: mnist}", "objective.num_samples=1"])
    tutorial, name = loops.tutorial_step(settings, load_data(settings.data))
    tutorial()
    assert name == "torchvision's MNIST"


# ------------------------------------------------------------------------------------- the command

KEYS = {
    "config", "precision", "steps", "floor_ms", "floor_products_ms", "floor_memory_ms", "step_ms", "images_per_second",
    "tutorial_images_per_second", "peak_memory_mb", "batch_size", "threads", "rounds",
}  # fmt: skip


def test_json_is_one_object_alone(config, quick, capsys):
    overrides = ["train.precision=float64", "train.compile=auto"]
    assert main(["--config", config, "--batch-size", "20", "--set", *overrides, "--json"]) == 0
    captured = capsys.readouterr()
    record = json.loads(captured.out)
    assert record.keys() >= KEYS
    assert (record["config"], record["precision"], record["batch_size"]) == (config, "float64", 20)
    assert record["floor_ms"] == pytest.approx(record["floor_products_ms"] + record["floor_memory_ms"])
    assert record["images_per_second"] == pytest.approx(20 / (record["step_ms"] / 1000))
    assert record["steps"] == "compiled"  # as a long run is
    assert record["rounds"] >= 7
    assert record["step_ms_quartiles"][0] <= record["step_ms"] <= record["step_ms_quartiles"][1]
    assert captured.err == ""


@pytest.mark.parametrize(
    "overrides", [[], ["data={name: digits}", "model.likelihood=gaussian", "model.posterior=laplace"]]
)
def test_the_table_shows_lower_bound_step_and_tutorial(overrides, config, quick, capsys):
    assert main(["--config", config, "--set", "train.batch_size=5000", *overrides]) == 0
    out = capsys.readouterr().out
    assert "minibatches of " + ("1500" if overrides else "60") in out  # no larger than the data
    for name in (
        "lower bound ",
        "  products",
        "  memory",
        "step ",
        "lower bound / step",
        "tutorial's step",
        "peak memory",
    ):
        assert f"\n{name}" in out


@pytest.mark.parametrize(
    "data", ["{name: mnist}", "{name: mnist, pixels: static}", "{name: cifar10, pixels: dynamic}", "{name: frey_face}"]
)
def test_data_that_are_not_at_hand_have_a_stand_in(data, config, quick, tmp_path, capsys):
    empty = tmp_path / "empty"
    arguments = ["--config", config, "--set", f"data={data[:-1]}, root: {empty}}}", "model.likelihood=null", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["tutorial_images"] == "images decoded one by one"
    assert "is not at hand; 300 random images of its shape stand in for it" in captured.err
    assert not empty.exists()


def test_growth_measures_each_axis(config, quick, monkeypatch, capsys):
    monkeypatch.setattr(growth, "_peaks", lambda settings, data, counts: [100.0 + n for n in counts])
    assert main(["--config", config, "--growth", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["growth"]
    assert {axis: columns["sizes"] for axis, columns in found.items()} == {
        "latents": [2, 8, 32, 128, 512],
        "hidden width": [3, 6, 12, 24, 48],
        "samples L": [1, 2, 4, 8, 16],
        "batch size": [2, 5, 10, 20, 40],
        "training data": [20, 60],
    }
    for axis, columns in found.items():
        for name in ("epoch_s", "memory_mb") if axis == "training data" else ("step_ms",):
            assert len(columns[name]) == len(columns["sizes"])
            assert columns[f"{name}_slope"] == pytest.approx(growth.slope(columns["sizes"], columns[name]))
    lines = growth.growth_table(found).splitlines()
    assert sum(line.startswith("step, ms") for line in lines) == 4
    assert [line.split()[:2] for line in lines if "memory" in line] == [["peak", "memory,"]]


@pytest.mark.slow
def test_memory_grows_by_the_bytes_of_the_data():
    small, large = growth._peaks(
        *made(["train.batch_size=1000"]), [1_000, 1_001_000]
    )  # 64 bytes a digit, and 8 of its index
    assert 60 < large - small < 120


def test_the_slope_is_the_exponent_of_a_power_law():
    sizes = [1, 3, 10, 40]
    assert growth.slope(sizes, [5 * n**1.5 for n in sizes]) == pytest.approx(1.5)
    assert growth.slope([3], [1.0]) is None
    assert growth.slope([3, 4], [None, None]) is None


def test_the_library_step_goes_on_from_epoch_to_epoch():
    library, run = loops.library_step(*made())
    for _ in range(13):  # of 6 per epoch
        library()
    assert (run.state.step, run.form) == (13, "plain")


WRONG = [
    ([], "the following arguments are required: --config; see step.py --help"),
    (["--config", "{t}/none.yaml"], "no such config file"),
    (["--config", "{c}", "--batch-size", "0"], "'0' is not a whole number of at least 1"),
    (["--config", "{c}", "--set", "model.latent_dims=3"], "no such setting; did you mean latent_dim?"),
    (["--config", "{c}", "--set", "data.train_size=5000"], "do not fit into the 1500 data"),
    (["--config", "{c}", "--set", "data={{name: npz, path: {t}/no.npz}}"], "no such file"),
    (["--config", "{c}", "--set", "data.pixels=grey"], "bernoulli needs 0 or 1"),
    (["--config", "{c}", "--set", "objective={{name: stl, num_samples: 3}}"], "stl is biased for num_samples > 1"),
    (["--config", "{c}", "--batch-size", "1", "--set", "model.encoder.batch_norm=true"], "holds a single datum"),
    (["--config", "{c}", "--rounds", "3"], "unrecognized arguments: --rounds 3"),
]


@pytest.mark.parametrize(("arguments", "sentence"), WRONG, ids=lambda v: " ".join(v) if isinstance(v, list) else "")
def test_a_mistake_is_one_sentence_and_status_2(arguments, sentence, config, tmp_path, capsys):
    status = main([a.format(c=config, t=Path(tmp_path)) for a in arguments])
    captured = capsys.readouterr()
    assert status == 2
    assert sentence in captured.err
    assert captured.err.strip().count("\n") == 0
    assert captured.out == ""


def test_a_long_run_s_form_is_measured():
    """Convolutions on a CPU are not compiled by `auto`, however long the run."""
    settings, data = made(["train.compile=auto", *CONV])
    assert loops.library_step(settings, data)[1].form == "plain"


def test_the_script_runs_and_shows_how_it_is_typed():
    command = [sys.executable, "benchmarks/step.py", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "python benchmarks/step.py --config configs/mnist_d2.yaml" in result.stdout


# ------------------------------------------------------------------------------------- on a GPU

WORKER = """
import json, os, sys, time
for case in json.loads(sys.stdin.read()):
    if case["config"] == "dies":
        os._exit(9)
    time.sleep(30 if case["config"] == "hangs" else 0)
    print(json.dumps({"step_ms": 1.0}), flush=True)
"""


def test_a_measurement_that_fails_does_not_stop_the_rest(monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(gpu, "__file__", str(tmp_path / "worker.py"))
    monkeypatch.setattr(gpu, "PATIENCE", 2)
    case = {"form": "plain", "precision": "float32", "batch_size": 128}
    names = ["a", "dies", "b", "hangs", "c"]
    skipped = []
    found = gpu.measured([{"config": name, **case} for name in names], time.time() + 60, skipped)
    assert [result["config"] for result in found] == names
    errors = [result.get("error") for result in found]
    assert errors == [None, "the process ended with status 9", None, "took longer than 2 s", None]
    assert skipped == []
    assert gpu.measured([{"config": "a", **case}], time.time() - 1, skipped) == []
    assert skipped == [{"what": "a, plain, float32, minibatches of 128", "why": "the time was up"}]


def test_a_measurement_of_a_gpu_runs_in_small(monkeypatch):
    monkeypatch.setattr(inputs, "STAND_IN_SIZE", inputs.STAND_IN_SIZE)  # what it changes is put back
    case = {"config": "laird_mnist_d2", "form": "plain", "precision": "float32", "batch_size": 512}
    found = gpu.measure(case)
    assert found["images_per_second"] == pytest.approx(512_000 / found["step_ms"])
    assert found["compile_s"] is None


PRINTED = """
collecting ... collected 5 items / 1 deselected / 4 selected

tests/test_cuda.py::test_a[x y-1e-8] PASSED     [ 25%]
tests/test_cuda.py::test_b FAILED               [ 50%]
tests/test_cuda.py::test_c SKIPPED (no CUDA)    [ 75%]
tests/test_cuda.py::test_d """


def test_the_outcome_of_tests_is_read_also_where_they_were_cut_short(tmp_path):
    log, skipped = tmp_path / "log", []
    log.write_text(PRINTED)
    found = gpu.outcome(str(log), skipped)
    assert [found[kind] for kind in ("passed", "failed", "skipped")] == [1, 1, 1]
    assert found["names_of_failed"] == [{"name": "tests/test_cuda.py::test_b", "reason": None}]
    assert {"what": "1 of 4 tests", "why": "the time for the tests was up"} in skipped
    log.write_text(
        PRINTED + "PASSED [100%]\n== summary ==\nFAILED tests/test_cuda.py::test_b - AssertionError: 1 - 2\n"
    )
    found = gpu.outcome(str(log), [])
    assert [found[kind] for kind in ("passed", "failed", "skipped")] == [2, 1, 1]
    assert found["names_of_failed"][0]["reason"] == "AssertionError: 1 - 2"


def test_evaluations_are_timed(monkeypatch, capsys):
    small = {**evaluation.CONFIG, "model": {"latent_dim": 2, "encoder": {"hidden": [4]}, "decoder": {"hidden": [4]}}}
    monkeypatch.setattr(evaluation, "CONFIG", small)
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", ["evaluation.py", "encode", "elbo", "--rounds", "1"])
    evaluation.main()
    torch.set_num_threads(threads)
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["evaluation"] for line in found] == ["encode", "elbo"]
    assert found[0]["seconds"] > 0
    assert found[1]["estimate"] < 0
