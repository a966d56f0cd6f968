"""Fast forms of a step equal the plain one, step by step, on the same noise.

In float64 50 steps agree to 1e-8 relative; biases before a batch normalisation are left out (their true gradient is 0,
and Adam makes steps of full size of its rounding). In float32 the values of ten steps agree to 1e-4 relative; in
bfloat16 to its unit roundoff, 2^-8, and with those of float32 to twice that.
"""

import itertools
import json
import math
import warnings
from dataclasses import replace

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import vae
from vae.errors import TrainingFailed
from vae.randomness import Streams
from vae.training import fast, read_settings
from vae.training.build import build_algorithm, build_model, resolve
from vae.training.fast import functional
from vae.training.opened import open_run
from vae.training.run import train

M = 6


def config(**blocks):
    raw = {
        "data": {"name": "digits", "pixels": "static", "train_size": 200, "validation_size": 40},
        "model": {"latent_dim": 3, "encoder": {"hidden": [8]}, "decoder": {"hidden": [7]}},
        "train": {"epochs": 3, "batch_size": 64, "device": "cpu", "compile": "always"},
    }
    return {**raw, **{key: {**raw.get(key, {}), **value} for key, value in blocks.items()}}


CASES = {
    "plain network": {},
    "batch normalisation": {
        "model": {
            "encoder": {"hidden": [8, 5], "batch_norm": True},
            "decoder": {"hidden": [7], "batch_norm": True},
        }
    },
    "convolutions": {
        "model": {
            "encoder": {"name": "conv", "channels": [3, 4], "batch_norm": True},
            "decoder": {"name": "conv", "channels": [4, 3]},
        }
    },
    "L = 3, sum, weight decay, clipping": {
        "objective": {"name": "sgvb_a", "num_samples": 3},
        "train": {
            "reduction": "sum",
            "clip_grad_norm": 30.0,
            "optimizer": {"name": "adagrad", "lr": 0.05, "weight_decay": 1e-3},
        },
    },
    "beta, warm-up and free bits": {"modifiers": {"beta": 2.0, "warm_up": 1.0, "free_bits": 0.1}},
    "schedule": {"train": {"schedule": {"name": "exponential", "gamma": 0.5}}},
    "importance weights": {"objective": {"name": "iwae", "num_samples": 4}},
    "dreg": {"objective": {"name": "dreg", "num_samples": 4}},
    "score function": {"objective": {"name": "score_function"}},
    "full Gaussian": {"model": {"posterior": "full_gaussian"}},
    "logistic": {"model": {"posterior": "logistic"}},
    "grey levels": {"data": {"pixels": "grey"}},
    "Gaussian likelihood": {"data": {"pixels": "grey"}, "model": {"likelihood": "gaussian"}},
}
COMPILED = ["batch normalisation", "convolutions", "beta, warm-up and free bits", "grey levels"]


def settings_of(blocks):
    merged = config()
    for block, values in blocks.items():
        merged[block] = {**merged.get(block, {}), **values}
    return resolve(read_settings(merged))


def steps_of(settings, shape, kind, form, dtype, count):
    """Parameters, buffers and sums after each of `count` steps from the same start, on the same data and noise."""
    model = build_model(settings.model, shape, 0).to(dtype).train()
    plain = replace(build_algorithm(settings, 200, 10), expand=lambda stored: stored.to(dtype) / 16)
    if kind == "binary":
        plain = replace(plain, expand=lambda stored: (stored > 8).to(dtype))
    state, streams = plain.init(model), Streams(1, torch.device("cpu"))
    algorithm = form(plain, state)
    generator = torch.Generator().manual_seed(2)
    for _ in range(count):
        batch = torch.randint(0, 17, (M, *shape), dtype=torch.uint8, generator=generator)
        noise, noise_shape = plain.noise(state, M)
        given = batch, streams.draw(noise, noise_shape, dtype)
        info = algorithm.step(*given) if form is compiled else algorithm.step(state, *given)[1]
        yield dict(model.named_parameters()), dict(model.named_buffers()), info.sums
    if form is compiled:
        assert algorithm.form == "compiled"


def as_it_is(plain, state):
    return plain


def compiled(plain, state):
    return functional(plain, state, M)


def before_normalisation(model):
    """Biases whose layer feeds a batch normalisation."""
    layers = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    pairs = itertools.pairwise(layers)
    return {f"{name}.bias" for (name, _), (_, after) in pairs if type(after).__name__.startswith("BatchNorm")}


@pytest.mark.parametrize(
    ("case", "compiles"), [*((case, False) for case in CASES), *((case, True) for case in COMPILED)]
)
def test_steps_by_the_pure_gradient_equal_plain_ones_in_float64(case, compiles, monkeypatch):
    """Every case by the pure function as Python runs it, some by its compiled program, which takes seconds to make."""
    if not compiles:
        monkeypatch.setattr(fast, "program", lambda function, given: function)
    settings, shape, kind = settings_of(CASES[case])
    free = before_normalisation(build_model(settings.model, shape, 0))
    both = [steps_of(settings, shape, kind, form, torch.float64, 50) for form in (as_it_is, compiled)]
    for (parameters, buffers, sums), (others, other_buffers, other_sums) in zip(*both, strict=True):
        for name, parameter in parameters.items():
            if name not in free:
                torch.testing.assert_close(others[name], parameter, rtol=1e-8, atol=1e-8 * parameter.abs().max().item())
        for name, buffer in buffers.items():
            torch.testing.assert_close(other_buffers[name], buffer, rtol=1e-8, atol=1e-8)
        for name, value in sums.items():
            torch.testing.assert_close(other_sums[name], value, rtol=1e-8, atol=1e-8)


def values_of(case, form, precision):
    """The values of ten steps, in a row for each."""
    blocks = CASES[case]
    train = {**blocks.get("train", {}), "precision": precision}
    steps = steps_of(*settings_of({**blocks, "train": train}), form, torch.float32, 10)
    return torch.stack([torch.stack([*sums.values()]).float() for _, _, sums in steps])


@pytest.mark.parametrize("case", ["plain network", "batch normalisation", "Gaussian likelihood"])
def test_compiled_values_equal_plain_ones_in_float32(case):
    plain, fast = (values_of(case, form, "float32") for form in (as_it_is, compiled))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("case", ["plain network", "batch normalisation", "Gaussian likelihood"])
def test_values_in_bfloat16_lie_within_its_roundoff(case):
    plain, fast = (values_of(case, form, "bfloat16") for form in (as_it_is, compiled))
    torch.testing.assert_close(fast, plain, rtol=2**-8, atol=1e-3)
    true = values_of(case, as_it_is, "float32")
    torch.testing.assert_close(plain, true, rtol=2**-7, atol=1e-3)
    assert not torch.equal(plain, true)


def test_a_cast_comes_before_a_transposition():
    """The compiler would write a cast transposed matrix, and a transposed cast one, out in memory."""
    aten = torch.ops.aten

    def function(a, b):
        cast = a.t().to(torch.bfloat16)
        return cast @ b, cast.t(), b.t().double()

    given = torch.randn(3, 4), torch.randn(3, 5).bfloat16()
    graph = make_fx(function)(*given)
    fast.cast_before_transposing(graph)
    casts = graph.graph.find_nodes(op="call_function", target=aten._to_copy.default)
    assert [node.args[0].op for node in casts] == ["placeholder"] * 2
    for ours, theirs in zip(graph(*given), function(*given), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_the_gradient_has_no_side_effect():
    settings, shape, _ = settings_of(CASES["batch normalisation"])
    model = build_model(settings.model, shape, 0).train()
    algorithm = build_algorithm(settings, 200, 10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    gradient = fast.pure_gradient(algorithm, model)
    parameters, buffers = [p.detach() for p in model.parameters()], list(model.buffers())
    given = parameters, buffers, torch.rand(M, *shape).round(), torch.randn(1, M, 3), {}, torch.tensor(0)
    found = gradient(*given)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not torch.equal(found.buffers[0], buffers[0])


# ------------------------------------------------------------------------------------------------- which form, and when


def form_of(path):
    return json.loads((path / "environment.json").read_text())["steps"]


def test_the_rule_counts_what_a_run_computes():
    """It compiles from the step on at which what it saves at the least, 1 ns a number, makes 8 seconds."""
    model = vae.build(config())
    # flat pixels, hidden, activation, 2 J; hidden, activation, pixels, images
    assert fast.numbers(model.encoder, (1, 8, 8), model) == 64 + 8 + 8 + 6
    assert fast.numbers(model.decoder, (3,), model) == 7 + 7 + 64 + 64
    source = type("Source", (), {"batch_size": 50})()
    a_step = 50 * (86 + 2 * 142) * fast.SAVED_A_NUMBER
    enough = math.ceil(fast.SAVED_AT_LEAST / a_step)
    forms = [fast.chosen_form("auto", model, steps, source, 2) for steps in (enough - 1, enough)]
    assert forms == ["plain", "compiled"]
    assert fast.chosen_form("never", model, 10**12, source, 2) == "plain"
    assert fast.chosen_form("always", model, 1, source, 2) == "compiled"
    source.batch_size = None  # a DataLoader whose minibatches are of any size
    assert fast.chosen_form("always", model, 10**12, source, 2) == "plain"


def test_convolutions_are_compiled_on_request_only():
    conv = settings_of(CASES["convolutions"])
    model = build_model(conv[0].model, conv[1], 0)
    source = type("Source", (), {"batch_size": 50})()
    assert [fast.chosen_form(s, model, 10**12, source, 1) for s in ("auto", "always")] == ["plain", "compiled"]


def test_a_long_run_is_compiled_and_a_short_one_is_not(monkeypatch, tmp_path):
    for least, form in ((1e6, "plain"), (0.0, "compiled")):
        monkeypatch.setattr(fast, "SAVED_AT_LEAST", least)
        train(read_settings(config(train={"compile": "auto"})), tmp_path / form, verbose=False)
        assert form_of(tmp_path / form) == form


def test_a_network_of_the_user_s_is_compiled_on_request_only(monkeypatch, tmp_path):
    monkeypatch.setattr(fast, "SAVED_AT_LEAST", 0.0)
    for setting, form in (("auto", "plain"), ("always", "compiled")):
        encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Dropout(0.1))
        model = vae.VAE(encoder, vae.mlp_decoder(2, (1, 8, 8), hidden=(4,)), vae.Bernoulli((1, 8, 8)))
        data = vae.load_data("digits", pixels="static", train_size=100)
        vae.fit(model, data, out=tmp_path / form, epochs=2, batch_size=50, compile=setting, verbose=False)
        assert form_of(tmp_path / form) == form


def test_a_resumed_run_keeps_its_form_and_its_bits(monkeypatch, tmp_path):
    for form, least in (("compiled", 0.0), ("plain", 1e6)):
        monkeypatch.setattr(fast, "SAVED_AT_LEAST", least)
        auto = {"compile": "auto", "checkpoint_seconds": 0}
        train(read_settings(config(train={**auto, "epochs": 4})), tmp_path / f"whole {form}", verbose=False)
        train(read_settings(config(train={**auto, "epochs": 2})), tmp_path / form, verbose=False)
        monkeypatch.setattr(fast, "SAVED_AT_LEAST", 1e6 - least)  # now the rule would choose the other
        train(read_settings(config(train={**auto, "epochs": 4})), tmp_path / form, resume=True, verbose=False)
        ends = [open_run(tmp_path / name, which="last").model.state_dict() for name in (form, f"whole {form}")]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


SEES = {"amx_bf16": False, "avx512_bf16": True, "cpu_name": "some"}  # a processor with products of bfloat16


@pytest.mark.parametrize(
    ("blocks", "processor", "alone", "expected"),
    [
        ({}, SEES, True, "bfloat16"),
        ({"objective": {"name": "sgvb_a", "num_samples": 2}}, {"amx_bf16": True}, True, "bfloat16"),
        ({"data": {"pixels": "grey"}, "model": {"likelihood": "grey_cross_entropy"}}, SEES, True, "bfloat16"),
        ({}, {"avx512_bf16": False}, True, "float32"),
        ({}, {}, True, "float32"),
        ({}, SEES, False, "float32"),  # replicas, or several processes
        ({"train": {"precision": "float32"}}, SEES, True, "float32"),
        ({"train": {"precision": "bfloat16"}}, {}, True, "bfloat16"),
        ({"data": {"pixels": "grey"}, "model": {"likelihood": "gaussian"}}, SEES, True, "float32"),
        ({"objective": {"name": "iwae", "num_samples": 4}}, SEES, True, "float32"),
        ({"model": {"posterior": "full_gaussian"}}, SEES, True, "float32"),
        ({"modifiers": {"beta": 2.0}}, SEES, True, "float32"),
        (CASES["convolutions"], SEES, True, "float32"),
    ],
)
def test_auto_is_bfloat16_where_that_was_shown_to_do(blocks, processor, alone, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    settings, shape, _ = settings_of(blocks)
    model, source = build_model(settings.model, shape, 0), type("Source", (), {"batch_size": 50})()
    assert fast.chosen_precision(settings, model, 10**12, source, 1, alone=alone) == expected
    if settings.train.precision == "auto":
        assert fast.chosen_precision(settings, model, 1, source, 1, alone=alone) == "float32"  # a short run
        source.batch_size = None
        assert fast.chosen_precision(settings, model, 10**12, source, 1, alone=alone) == "float32"


def test_a_resumed_run_keeps_its_precision_and_its_bits(monkeypatch, tmp_path):
    auto = {"compile": "never", "checkpoint_seconds": 0}
    monkeypatch.setattr(fast, "SAVED_AT_LEAST", 0.0)
    for precision, processor, other in (("bfloat16", SEES, {}), ("float32", {}, SEES)):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda p=processor: p, raising=False)
        train(read_settings(config(train={**auto, "epochs": 4})), tmp_path / f"whole {precision}", verbose=False)
        train(read_settings(config(train={**auto, "epochs": 2})), tmp_path / precision, verbose=False)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda p=other: p, raising=False)
        train(read_settings(config(train={**auto, "epochs": 4})), tmp_path / precision, resume=True, verbose=False)
        asked = config(train={**auto, "epochs": 4, "precision": precision})
        model = train(read_settings(asked), None, verbose=False)[0].model
        ends = [open_run(tmp_path / name, which="last").model for name in (precision, f"whole {precision}")]
        for ours, whole, named in zip(*(m.state_dict().values() for m in (*ends, model)), strict=True):
            assert torch.equal(ours, whole)
            assert torch.equal(ours, named)
        assert json.loads((tmp_path / precision / "environment.json").read_text())["precision"] == precision


def test_a_run_that_can_no_longer_be_compiled_says_what_its_steps_are(monkeypatch, tmp_path):
    train(read_settings(config()), tmp_path / "x", verbose=False)
    assert form_of(tmp_path / "x") == "compiled"
    monkeypatch.setattr(fast, "program", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="not compiled"):
        train(read_settings(config(train={"epochs": 4})), tmp_path / "x", resume=True, verbose=False)
    assert form_of(tmp_path / "x") == "plain"


def test_a_finished_run_compiles_nothing_when_it_is_resumed(monkeypatch, tmp_path):
    train(read_settings(config()), tmp_path / "x", verbose=False)
    before = (tmp_path / "x" / "checkpoints" / "last.safetensors").read_bytes()
    monkeypatch.setattr(fast, "program", lambda *_: pytest.fail("compiled"))
    train(read_settings(config()), tmp_path / "x", resume=True, verbose=False)
    assert (tmp_path / "x" / "checkpoints" / "last.safetensors").read_bytes() == before


def test_what_cannot_be_compiled_runs_plain_after_one_line(monkeypatch, tmp_path):
    def no_compiler(*_, **__):
        raise RuntimeError("no C++ compiler\nand more lines")

    monkeypatch.setattr(fast.torch, "compile", no_compiler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(read_settings(config()), tmp_path / "fallen", verbose=False)
    said = [str(w.message) for w in caught if "compiled" in str(w.message)]
    assert said == ["the step is not compiled, as that fails: no C++ compiler"]
    train(read_settings(config(train={"compile": "never"})), tmp_path / "plain", verbose=False)
    ends = [open_run(tmp_path / name, which="last").model.state_dict() for name in ("fallen", "plain")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_compiled_step_that_is_not_finite_changes_nothing():
    settings, shape, _ = settings_of({})
    model = build_model(settings.model, shape, 0).train()
    plain = build_algorithm(settings, 200, 10)
    state = plain.init(model)
    algorithm = functional(plain, state, M)
    algorithm.step(torch.ones(M, *shape), torch.zeros(1, M, 3))
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(TrainingFailed, match="log_p_x_given_z is not finite at step 2"):
        algorithm.step(torch.full((M, *shape), float("nan")), torch.zeros(1, M, 3))
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_other_sizes_are_not_compiled(monkeypatch):
    settings, shape, _ = settings_of({})
    plain = build_algorithm(settings, 200, 10)
    state = plain.init(build_model(settings.model, shape, 0).train())
    algorithm = functional(plain, state, M)
    sizes, real = [], fast.program
    monkeypatch.setattr(fast, "program", lambda f, given: (sizes.append(len(given[2])), f)[1])
    for size in (M, 2, M):
        algorithm.step(torch.ones(size, *shape), torch.zeros(1, size, 3))
    assert sizes == [M]
    assert real is not fast.program
    assert state.step == 3


def test_a_line_of_an_error_says_more_than_that_there_is_one():
    assert fast.one_line(RuntimeError("backend='inductor' raised:\nno compiler\n\nmore")) == (
        "backend='inductor' raised: no compiler"
    )
    assert fast.one_line(RuntimeError("one\ntwo")) == "one"
    assert fast.one_line(ValueError()) == "ValueError"
