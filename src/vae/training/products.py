"""How float32 matrices are multiplied while a model is trained."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

# What torch.set_float32_matmul_precision is given. "medium" allows a processor to round to bfloat16, and so lets
# PyTorch take oneDNN's products for MKL's; only one with matrix units for bfloat16 does round.
TRUE, TF32, ONEDNN = "highest", "high", "medium"


@contextlib.contextmanager
def float32_products(precision: str, device: torch.device) -> Iterator[None]:
    """TF32 products and convolutions on CUDA where asked for; true float32 ones otherwise, by the faster library."""
    fastest = ONEDNN if device.type == "cpu" and suits_onednn() else TRUE
    with multiplied(TF32 if precision == "tf32" else fastest):
        yield


@contextlib.contextmanager
def multiplied(how: str) -> Iterator[None]:
    """Float32 products as torch.set_float32_matmul_precision names it, and as before after that.

    PyTorch has a newer way to say it too, a word for each kind of product, which a program may have used.
    """
    cudnn: Any = torch.backends.cudnn
    onednn: Any = torch.backends.mkldnn
    kinds: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, onednn.matmul, onednn.conv, onednn.rnn]
    words = [kind.fp32_precision for kind in kinds]
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # it does not answer where the newer way says something else
        before = TRUE
    torch.set_float32_matmul_precision(how)
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if how == TF32 else "ieee"
    onednn.conv.fp32_precision = "ieee"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        for kind, word in zip(kinds, words, strict=True):
            kind.fp32_precision = word


def suits_onednn() -> bool:
    """Whether float32 products are oneDNN's here: on AMD's processors, for which MKL is not written, if they are true.

    There they take about 15 % less time. A product of numbers that bfloat16 cannot hold shows whether it would round.
    """
    if "AMD" not in _capabilities().get("cpu_name", ""):
        return False
    kind: Any = {"dtype": torch.float32, "device": "cpu"}
    between = torch.full((128, 512), 1 + 2**-12, **kind)
    with multiplied(ONEDNN):
        return torch.equal(between @ torch.eye(512, **kind), between)


def multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for products of bfloat16, which are then faster than those of float32."""
    return any(_capabilities().get(name, False) for name in ("amx_bf16", "avx512_bf16"))


def _capabilities() -> Mapping[str, Any]:
    """What the processor is and can do, as PyTorch sees it; nothing where PyTorch is too old to say."""
    return getattr(torch.cpu, "get_capabilities", dict[str, Any])()
