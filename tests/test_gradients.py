"""The forms of the gradient equal the eager one, step by step, through `train`.

In float64, 51 steps agree to 1e-8 relative; biases before a batch normalisation are left out (their true gradient is
0, and Adam makes steps of full size of its rounding). In float32 the values of ten steps agree to 1e-4 relative; in
bfloat16 to its unit roundoff, 2^-8, and with those of float32 to twice that.
"""

import itertools
import json
import logging
import warnings

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import vae
from vae.algorithms import AEVB
from vae.data import Batch, Resident
from vae.errors import TrainingFailed
from vae.objectives import EstimatorB, WeightedKL
from vae.randomness import Noise, Streams
from vae.training import compiled, gradients, read_settings
from vae.training.loading import load_run
from vae.training.run import train


def config(**blocks):
    raw = {
        "data": {"name": "digits", "pixels": "static", "train_size": 20},
        "model": {"latent_dim": 3, "encoder": {"hidden": [8]}, "decoder": {"hidden": [7]}},
        "train": {"epochs": 17, "batch_size": 8, "device": "cpu", "compile": "always"},
    }
    return {**raw, **{key: {**raw.get(key, {}), **value} for key, value in blocks.items()}}


def merged(blocks, **train):
    return config(**{**blocks, "train": {**blocks.get("train", {}), **train}})


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
    "beta, warm-up and free bits": {"modifiers": {"beta": 2.0, "warm_up": 7.0, "free_bits": 0.1}},
    "shared noise": {"objective": {"name": "sgvb_b", "num_samples": 2}, "modifiers": {"shared_noise": True}},
    "schedule": {"train": {"schedule": {"name": "exponential", "gamma": 0.5}}},
    "importance weights": {"objective": {"name": "iwae", "num_samples": 4}},
    "dreg": {"objective": {"name": "dreg", "num_samples": 4}},
    "score function": {"objective": {"name": "score_function"}},
    "full Gaussian": {"model": {"posterior": "full_gaussian"}},
    "logistic": {"model": {"posterior": "logistic"}},
    "grey levels": {"data": {"pixels": "grey"}},
    "Gaussian likelihood": {"data": {"pixels": "grey"}, "model": {"likelihood": "gaussian"}},
}
COMPILED = ["batch normalisation", "convolutions", "beta, warm-up and free bits", "score function"]


def trained(raw, out=None):
    """A run, and its parameters and buffers at the end of each epoch (of three minibatches: 8, 8 and 4 data)."""
    seen = []

    def observe(model, data):
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return []

    return train(read_settings(raw), out, verbose=False, observe=observe), seen


def values(run):
    """The values of each epoch, in a row for each."""
    names = ("elbo", "log_p_x_given_z", "kl")
    return torch.tensor([[line[name] for name in names] for line in run.history if line["split"] == "train"])


def form_of(path):
    return json.loads((path / "environment.json").read_text())["steps"]


def before_normalisation(model):
    """Biases whose layer feeds a batch normalisation."""
    layers = [(name, layer) for name, layer in model.named_modules() if not list(layer.children())]
    pairs = itertools.pairwise(layers)
    return {f"{name}.bias" for (name, _), (_, after) in pairs if type(after).__name__.startswith("BatchNorm")}


@pytest.fixture
def traced_only(monkeypatch):
    """The pure gradient as Python runs it, without the seconds that compiling takes."""
    monkeypatch.setattr(compiled, "compiled", lambda function, given: function)


def assert_equal_runs(case, out):
    (plain, theirs), (fast, ours) = (
        trained(merged(CASES[case], compile=form, precision="float64"), out / form) for form in ("never", "always")
    )
    assert [form_of(out / form) for form in ("never", "always")] == ["plain", "compiled"]
    assert fast.steps == 51
    free = before_normalisation(plain.model)
    for before, after in zip(theirs, ours, strict=True):
        for name in before.keys() - free:
            scale = before[name].abs().max().item()
            torch.testing.assert_close(after[name], before[name], rtol=1e-8, atol=1e-8 * scale)
    torch.testing.assert_close(values(fast), values(plain), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("case", CASES)
def test_runs_by_the_pure_gradient_equal_plain_ones_in_float64(case, tmp_path, traced_only):
    assert_equal_runs(case, tmp_path)


@pytest.mark.parametrize("case", COMPILED)
def test_compiled_runs_equal_plain_ones_in_float64(case, tmp_path):
    assert_equal_runs(case, tmp_path)


def first_values(case, form, precision):
    """The values of ten epochs of one minibatch."""
    raw = merged(CASES[case], compile=form, precision=precision, epochs=10, batch_size=20)
    return values(trained(raw)[0])


@pytest.mark.parametrize(
    "case", ["plain network", "batch normalisation", pytest.param("Gaussian likelihood", marks=pytest.mark.slow)]
)
def test_compiled_values_equal_plain_ones_in_float32(case):
    plain, fast = (first_values(case, form, "float32") for form in ("never", "always"))
    torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    "case", ["plain network", "batch normalisation", pytest.param("Gaussian likelihood", marks=pytest.mark.slow)]
)
def test_values_in_bfloat16_lie_within_its_roundoff(case):
    plain, fast = (first_values(case, form, "bfloat16") for form in ("never", "always"))
    torch.testing.assert_close(fast, plain, rtol=2**-8, atol=1e-3)
    true = first_values(case, "never", "float32")
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
    compiled.cast_before_transposing(graph)
    casts = graph.graph.find_nodes(op="call_function", target=aten._to_copy.default)
    assert [node.args[0].op for node in casts] == ["placeholder"] * 2
    for ours, theirs in zip(graph(*given), function(*given), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


def test_the_weight_at_a_step_that_is_a_tensor_is_double_precision_too():
    """A compiled step counts by a tensor of whole numbers, whose quotient would be float32."""
    objective = WeightedKL(EstimatorB(), 2.0, 7)
    for step in range(10):
        assert objective.weight(torch.tensor(step)).item() == objective.weight(step).item() == 2 * min(1, step / 7)


# ------------------------------------------------------------------------------------------------- which form, and when


class Batches:
    batch_size = 8


@pytest.mark.parametrize(
    ("setting", "case", "steps", "expected"),
    [
        ("auto", "plain network", gradients.ENOUGH_STEPS, "compiled"),
        ("auto", "plain network", gradients.ENOUGH_STEPS - 1, "plain"),
        ("auto", "convolutions", 10**9, "plain"),
        ("always", "convolutions", 1, "compiled"),
        ("always", "plain network", 1, "compiled"),
        ("never", "plain network", 10**9, "plain"),
    ],
)
def test_long_runs_of_dense_networks_are_compiled(setting, case, steps, expected):
    assert gradients.form_of_run(setting, vae.build(config(**CASES[case])), Batches, steps) == expected


def test_minibatches_of_any_size_are_not_compiled():
    loader = type("Loader", (), {"batch_size": None})
    assert gradients.form_of_run("always", vae.build(config()), loader, 10**9) == "plain"


def test_the_rule_goes_by_the_steps_of_the_run(monkeypatch, tmp_path, traced_only):
    for enough, form in ((52, "plain"), (51, "compiled")):
        monkeypatch.setattr(gradients, "ENOUGH_STEPS", enough)
        trained(config(train={"compile": "auto"}), tmp_path / form)
        assert form_of(tmp_path / form) == form


def test_a_network_of_the_user_s_is_compiled_on_request_only(monkeypatch, tmp_path):
    monkeypatch.setattr(gradients, "ENOUGH_STEPS", 0)
    for setting, form in (("auto", "plain"), ("always", "compiled")):
        encoder = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Dropout(0.1))
        model = vae.VAE(encoder, vae.mlp_decoder(2, (1, 8, 8), hidden=(4,)), vae.Bernoulli((1, 8, 8)))
        data = vae.load_data("digits", pixels="static", train_size=100)
        vae.fit(model, data, out=tmp_path / form, epochs=2, batch_size=50, compile=setting, verbose=False)
        assert form_of(tmp_path / form) == form


def test_a_resumed_run_keeps_its_form_and_its_bits(monkeypatch, tmp_path):
    for form, enough, other in (("compiled", 0, 10**9), ("plain", 10**9, 0)):
        monkeypatch.setattr(gradients, "ENOUGH_STEPS", enough)
        auto = {"compile": "auto", "checkpoint_seconds": 0}
        trained(config(train={**auto, "epochs": 4}), tmp_path / f"whole {form}")
        trained(config(train={**auto, "epochs": 2}), tmp_path / form)
        monkeypatch.setattr(gradients, "ENOUGH_STEPS", other)  # now the rule would choose the other
        train(read_settings(config(train={**auto, "epochs": 4})), tmp_path / form, resume=True, verbose=False)
        assert form_of(tmp_path / form) == form
        ends = [load_run(tmp_path / name, which="last").model.state_dict() for name in (form, f"whole {form}")]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


# ------------------------------------------------------------------------------------------------- the agreement


def test_the_comparison_changes_no_bit_of_the_run(tmp_path, monkeypatch):
    """Steps that are eager after a comparison equal those of a run that never compared anything."""
    case = merged(CASES["score function"], **{"checkpoint_seconds": 0})
    case["model"] |= CASES["batch normalisation"]["model"]
    case["data"] |= {"pixels": "dynamic"}
    trained({**case, "train": {**case["train"], "compile": "never"}}, tmp_path / "never")
    monkeypatch.setattr(gradients, "CompiledGradient", lambda *_: gradients.eager)
    trained(case, tmp_path / "compared")
    ends = [
        vae.training.checkpoint.read(tmp_path / n / "checkpoints" / "last.safetensors") for n in ("never", "compared")
    ]
    assert all(torch.equal(ends[0][0][name], ends[1][0][name]) for name in ends[0][0].keys() | ends[1][0].keys())


WRONG = {
    "a gradient": lambda found: found.gradients[0].mul_(1.01),
    "one entry of a gradient": lambda found: found.gradients[0][3, 5].add_(0.1 * found.gradients[0].abs().max()),
    "a NaN": lambda found: found.gradients[0][0].fill_(float("nan")),
    "a buffer": lambda found: found.buffers[0].add_(1e-2),
    "the ELBO": lambda found: found.sums["elbo"].mul_(1.001),
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("call", [0, 2])
def test_a_gradient_that_disagrees_is_not_taken(what, call, tmp_path, monkeypatch):
    """Also one that goes wrong from its third call on, as a CUDA graph that is replayed might."""
    calls = []

    def wrong(function, given):
        def program(*given):
            found = function(*given)
            calls.append(1)
            if len(calls) > call:
                WRONG[what](found)
            return found

        return program

    monkeypatch.setattr(compiled, "compiled", wrong)
    with pytest.warns(UserWarning, match="the step is not compiled, because that fails: the two differ in "):
        trained(config(**CASES["batch normalisation"]), tmp_path / "x")
    assert form_of(tmp_path / "x") == "plain"
    assert len(calls) == call + 1
    monkeypatch.undo()
    trained(merged(CASES["batch normalisation"], compile="never"), tmp_path / "plain")
    ends = [load_run(tmp_path / name).model.state_dict() for name in ("x", "plain")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_run_that_can_no_longer_be_compiled_says_what_its_steps_are(monkeypatch, tmp_path):
    trained(config(train={"epochs": 2}), tmp_path / "x")
    assert form_of(tmp_path / "x") == "compiled"
    monkeypatch.setattr(compiled, "compiled", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="the step is not compiled, because that fails: division by zero"):
        train(read_settings(config(train={"epochs": 4})), tmp_path / "x", resume=True, verbose=False)
    assert form_of(tmp_path / "x") == "plain"
    _, values = vae.training.checkpoint.read(tmp_path / "x" / "checkpoints" / "last.safetensors")
    assert values["form"] == "plain"


def test_a_finished_run_compiles_nothing_when_it_is_resumed(monkeypatch, tmp_path):
    trained(config(train={"epochs": 2}), tmp_path / "x")
    before = (tmp_path / "x" / "checkpoints" / "last.safetensors").read_bytes()
    monkeypatch.setattr(compiled, "compiled", lambda *_: pytest.fail("compiled"))
    train(read_settings(config(train={"epochs": 2})), tmp_path / "x", resume=True, verbose=False)
    assert (tmp_path / "x" / "checkpoints" / "last.safetensors").read_bytes() == before


def test_what_cannot_be_compiled_runs_plain_after_one_line(monkeypatch, tmp_path):
    def no_compiler(*_, **__):
        raise RuntimeError("no C++ compiler\nand more lines")

    monkeypatch.setattr(torch, "compile", no_compiler)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(config(), tmp_path / "fallen")
    said = [str(w.message) for w in caught if "compiled" in str(w.message)]
    assert said == ["the step is not compiled, because that fails: no C++ compiler"]
    trained(config(train={"compile": "never"}), tmp_path / "plain")
    ends = [load_run(tmp_path / name, which="last").model.state_dict() for name in ("fallen", "plain")]
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_a_compiled_step_that_is_not_finite_changes_nothing(traced_only):
    """The second of three minibatches holds a NaN; the parameters stay those after the first step."""
    images = torch.ones(24, 1, 8, 8)
    model = vae.build(config())
    seen, real = [], AEVB.update

    def update(self, state, memory):
        real(self, state, memory)
        seen.append([p.detach().clone() for p in state.model.parameters()])

    def nan_from_the_second_on(self, model, batch, *given):
        return original(self, model, Batch(batch.x * (float("nan") if seen else 1.0)), *given)

    original = AEVB.values
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AEVB, "update", update)
        patch.setattr(AEVB, "values", nan_from_the_second_on)
        with pytest.raises(TrainingFailed, match="log_p_x_given_z is not finite at step 2"):
            vae.fit(model, torch.utils.data.DataLoader(images, 8), epochs=1, compile="always", verbose=False)
    assert len(seen) == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), seen[0], strict=True))


def test_minibatches_of_other_sizes_are_eager(tmp_path, monkeypatch):
    """Three minibatches an epoch, 8, 8 and 4 data: the program is asked for the first two only."""
    sizes = []

    def program(function, given):
        return lambda *given: (sizes.append(len(given[2].x)), function(*given))[1]

    monkeypatch.setattr(compiled, "compiled", program)
    run, _ = trained(config(train={"epochs": 2}))
    assert run.steps == 6
    assert sizes == [8] * (4 + 4)  # the comparison, and twice two steps


def test_compiling_silences_no_logger_but_for_one_sentence(caplog):
    logger = logging.getLogger("torch.utils.cpp_extension")
    level = logger.level
    trained(config(train={"epochs": 1}))
    assert logger.level == level
    logger.warning("No CUDA runtime is found, using CUDA_HOME='/usr/local'")
    logger.warning("the compiler is old")
    assert [record.message for record in caplog.records if record.name == logger.name] == ["the compiler is old"]


def test_a_line_of_an_error_says_more_than_that_there_is_one():
    assert gradients.one_line(RuntimeError("backend='inductor' raised:\nno compiler\n\nmore")) == (
        "backend='inductor' raised: no compiler"
    )
    assert gradients.one_line(RuntimeError("one\ntwo")) == "one"
    assert gradients.one_line(ValueError()) == "ValueError"


# ------------------------------------------------------------------------------------- more than one noise


class NoisyCodes(EstimatorB):
    """Estimator B with noise added to what the decoder sees, of each datum and of all of them together."""

    def noises(self, model, batch_size):
        more = {"each": Noise("normal", (batch_size, 3), data_axis=0), "all": Noise("uniform", (3,))}
        return {**super().noises(model, batch_size), **more}

    def __call__(self, model, x, noise, memory, step):
        eps = noise["eps"] + noise["each"] + noise["all"]
        return super().__call__(model, x, {"eps": eps}, memory, step)


def test_an_objective_may_need_several_noises_and_a_minibatch_may_have_labels():
    data = vae.load_data("digits", pixels="static", train_size=12)
    model = vae.build(config(train={"precision": "float64"})).double()
    algorithm = AEVB(NoisyCodes(), torch.optim.SGD)
    state, streams = algorithm.init(model), Streams(0, torch.device("cpu"))
    batch = next(Resident(data.train, 8, 0, streams.device, torch.float64).epoch(0, 0, streams))
    batch = Batch(batch.x.double(), batch.y)
    needed = algorithm.noises(state, 8)
    noise = streams.draw(needed, torch.float64)
    assert {name: tuple(draw.shape) for name, draw in noise.items()} == {"eps": (1, 8, 3), "each": (8, 3), "all": (3,)}
    fast = compiled.CompiledGradient(algorithm, model, 8)
    assert (
        compiled.disagreement(fast, algorithm, state, batch, [noise, streams.draw(needed, torch.float64)], 2e-16)
        is None
    )
    whole = algorithm.values(model, batch, noise, {}, 0)[2]
    parts = [
        (batch.part(rows), {name: needed[name].part(draw, rows) for name, draw in noise.items()})
        for rows in (slice(0, 3), slice(3, 8))
    ]
    assert [part.y.tolist() for part, _ in parts] == [batch.y[:3].tolist(), batch.y[3:].tolist()]
    sums = [algorithm.values(model, *part, {}, 0)[2] for part in parts]  # what each of two processes computes
    for name, value in whole.items():
        assert sum(each[name] for each in sums).item() == pytest.approx(value.item(), rel=1e-12)


def test_a_loader_that_gives_labels_gets_a_program_for_minibatches_with_labels(monkeypatch):
    """The comparison has none, since taking a minibatch from the loader would change its order."""
    labelled = []

    def program(function, given):
        labelled.append(given[2].y is not None)
        return function

    monkeypatch.setattr(compiled, "compiled", program)
    data = torch.utils.data.TensorDataset(torch.ones(16, 1, 8, 8), torch.arange(16))
    vae.fit(vae.build(config()), torch.utils.data.DataLoader(data, 8), epochs=2, compile="always", verbose=False)
    assert labelled == [False, True]
