"""How float32 matrices are multiplied while a model is trained, and that it is as before afterwards."""

import subprocess
import sys
import threading

import pytest
import torch

import vae
from vae.errors import UsageError
from vae.precision import matmul_precision, onednn_is_faster
from vae.training import read_settings
from vae.training.run import train

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def asked_anew():
    onednn_is_faster.cache_clear()
    yield
    onednn_is_faster.cache_clear()


def test_float32_products_are_true_ones_while_training():
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    between = torch.full((64, 256), 1 + 2**-20)  # neither bfloat16 nor TF32 holds it
    seen = []

    def observe(model, data):
        seen.append((torch.equal(between @ torch.eye(256), between), torch.get_float32_matmul_precision()))
        return []

    raw = {"data": {"name": "digits", "train_size": 100}, "model": {"latent_dim": 2}, "train": {"epochs": 1}}
    train(read_settings(raw), None, verbose=False, observe=observe)
    assert seen in ([(True, "highest")], [(True, "medium")])
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    ("processor", "rounds", "expected"),
    [("AMD EPYC", False, "medium"), ("AMD EPYC", True, "highest"), ("Intel Xeon", False, "highest")],
)
def test_onednn_multiplies_where_mkl_is_slow_and_the_products_stay_true(processor, rounds, expected, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": processor}, raising=False)
    monkeypatch.setattr(torch, "equal", lambda a, b: not rounds)  # as a processor with matrix units for bfloat16 does
    onednn_is_faster.cache_clear()
    before = torch.get_float32_matmul_precision()
    with matmul_precision("float32", CPU):
        assert torch.get_float32_matmul_precision() == expected
    assert torch.get_float32_matmul_precision() == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_look_for_true_products_is_at_float32_ones(dtype, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "AMD"}, raising=False)
    onednn_is_faster.cache_clear()
    seen = []
    monkeypatch.setattr(torch, "equal", lambda a, b: bool(seen.append((a.dtype, b.dtype))))
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    onednn_is_faster()
    torch.set_default_dtype(before)
    assert seen == [(torch.float32, torch.float32)]


NEWER = [
    "pass",
    "b.fp32_precision = 'tf32'",
    "b.mkldnn.matmul.fp32_precision = 'bf16'",
    "b.mkldnn.conv.fp32_precision = 'bf16'",
    "b.cuda.matmul.fp32_precision = 'tf32'",
    "torch.set_float32_matmul_precision('high')",
    "b.cudnn.allow_tf32 = False",
]


@pytest.mark.parametrize("said", NEWER)
def test_what_a_program_said_of_float32_products_stands_again_afterwards(said):
    """In a process of its own, since it can be said in ways that cannot be unsaid."""
    code = f"""
import torch
from torch import backends as b
from vae.precision import ONEDNN, TF32, TRUE, set_products
def state():
    kinds = b, b.cuda.matmul, b.cudnn.conv, b.cudnn.rnn, b.mkldnn.matmul, b.mkldnn.conv, b.mkldnn.rnn
    said = [kind.fp32_precision for kind in kinds]
    for older in (torch.get_float32_matmul_precision, lambda: b.cudnn.allow_tf32):
        try:
            said.append(older())
        except RuntimeError:
            said.append(None)
    return said
{said}
before = state()
for how in (TRUE, TF32, ONEDNN):
    restore = set_products(how)
    assert state()[-2:] == [how, how == TF32]
    restore()
    assert state() == before, (before, state())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_on_cuda_float32_products_are_true_or_tf32():
    before = torch.backends.cudnn.allow_tf32
    for precision, expected in (("float32", "highest"), ("tf32", "high")):
        with matmul_precision(precision, CUDA):
            assert torch.get_float32_matmul_precision() == expected
            assert torch.backends.cudnn.conv.fp32_precision == ("tf32" if precision == "tf32" else "ieee")
    assert torch.backends.cudnn.allow_tf32 == before


def test_an_evaluation_multiplies_by_the_faster_library_and_within_a_training_as_that_does(monkeypatch):
    monkeypatch.setattr("vae.precision.onednn_is_faster", lambda: True)
    data = vae.load_data("digits", pixels="static", train_size=30)
    model = vae.build({"data": {"name": "digits", "pixels": "static"}, "model": {"latent_dim": 2}})
    before, seen = torch.get_float32_matmul_precision(), []
    model.encoder.register_forward_hook(lambda *given: seen.append(torch.get_float32_matmul_precision()))
    evaluations = (
        lambda: vae.evaluate_bound(model, data.test.first(3), name="test"),
        lambda: vae.measure(model, data.test.first(3), vae.ImportanceSampling(num_samples=10)),
        lambda: model.encode(data.test.first(3).images()),
    )
    for evaluate in evaluations:
        evaluate()
        assert torch.get_float32_matmul_precision() == before
    with matmul_precision("tf32", CUDA):
        evaluations[0]()
    assert seen == ["medium"] * 3 + ["high"]
    assert torch.get_float32_matmul_precision() == before


# ------------------------------------------------------------------------------------------------- threads


def test_the_last_of_two_threads_restores_what_was_before_both():
    """The one that began first ends first."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    first, second = matmul_precision("float32", CUDA), matmul_precision("float32", CUDA)
    seen = []

    def train_in_turn():
        for step in (second.__enter__, lambda: first.__exit__(None, None, None)):
            step()
            seen.append(torch.get_float32_matmul_precision())

    first.__enter__()
    other = threading.Thread(target=train_in_turn)
    other.start()
    other.join()
    assert seen == ["highest", "highest"]
    second.__exit__(None, None, None)
    assert torch.get_float32_matmul_precision() == "high"
    torch.set_float32_matmul_precision(before)


def test_two_threads_cannot_train_with_different_products():
    before = torch.get_float32_matmul_precision()
    with matmul_precision("float32", CUDA):
        with pytest.raises(UsageError, match="another thread of this process uses float32 products of precision"):
            matmul_precision("tf32", CUDA).__enter__()
        assert torch.get_float32_matmul_precision() == "highest"
    assert torch.get_float32_matmul_precision() == before


def test_two_fits_in_two_threads_leave_the_switches_as_they_were():
    before, data = torch.get_float32_matmul_precision(), vae.load_data("digits", pixels="static", train_size=200)

    def fit(seed):
        model = vae.VAE(vae.mlp_encoder((1, 8, 8), 4), vae.mlp_decoder(2, (1, 8, 8)), vae.Bernoulli((1, 8, 8)))
        vae.fit(model, data, epochs=3, seed=seed, verbose=False)

    threads = [threading.Thread(target=fit, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.get_float32_matmul_precision() == before
