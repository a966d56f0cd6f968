"""The precision of a run: the type of its parameters, and how float32 matrices are multiplied.

PyTorch keeps the latter in settings of the whole process, set while something is trained or evaluated, then restored.
"""

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, TypeVar

import torch

from vae.errors import UsageError

T = TypeVar("T")

Precision = Literal["float32", "tf32", "bfloat16", "float64"]
AUTOCAST = {"bfloat16": torch.bfloat16}  # the type of the networks' products, if it is not that of the parameters
ROUNDOFF = {"float64": 2.0**-52, "float32": 2.0**-23, "tf32": 2.0**-10, "bfloat16": 2.0**-7}

# What torch.set_float32_matmul_precision takes. "medium" lets PyTorch use oneDNN's products on a CPU; only a processor
# with matrix units for bfloat16 rounds in them.
TRUE, TF32, ONEDNN = "highest", "high", "medium"

_lock = threading.Lock()
_active: list[str] = []  # one entry for each training or evaluation in this process
_restore: list[Callable[[], None]] = []


def parameter_dtype(precision: Precision) -> torch.dtype:
    """The type of parameters and data."""
    return torch.float64 if precision == "float64" else torch.float32


@contextlib.contextmanager
def matmul_precision(precision: Precision | None, device: torch.device) -> Iterator[None]:
    """TF32 products on CUDA if asked for; otherwise true float32 products, by the faster library.

    An evaluation (None) keeps the setting of a training around it. UsageError if another thread is training with
    another setting, since PyTorch has one for the whole process.
    """
    with _lock:
        how = TF32 if precision == "tf32" else ONEDNN if device.type == "cpu" and onednn_is_faster() else TRUE
        how = _active[0] if precision is None and _active else how
        if any(other != how for other in _active):
            raise UsageError(
                f"another thread of this process uses float32 products of precision {_active[0]}, and this one "
                f"needs {how}; run them in separate processes"
            )
        if not _active:
            _restore.append(set_products(how))
        _active.append(how)
    try:
        yield
    finally:
        with _lock:
            _active.remove(how)
            if not _active:
                _restore.pop()()


def set_products(how: str) -> Callable[[], None]:
    """Set how float32 matrices are multiplied; what is returned restores the settings of before.

    PyTorch has two older switches and newer ones, one for each kind of product; a program may have used either.
    """
    cudnn: Any = torch.backends.cudnn
    onednn: Any = torch.backends.mkldnn
    kinds: list[Any] = [torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, onednn.matmul, onednn.conv, onednn.rnn]
    words = [kind.fp32_precision for kind in kinds]
    before, allowed = _older(torch.get_float32_matmul_precision, TRUE), _older(lambda: cudnn.allow_tf32, True)
    torch.set_float32_matmul_precision(how)
    cudnn.allow_tf32 = how == TF32  # else to read it would be an error
    cudnn.conv.fp32_precision = cudnn.rnn.fp32_precision = "tf32" if how == TF32 else "ieee"
    onednn.conv.fp32_precision = "ieee"

    def restore() -> None:
        torch.set_float32_matmul_precision(before)
        cudnn.allow_tf32 = allowed
        for kind, word in zip(kinds, words, strict=True):
            kind.fp32_precision = word

    return restore


def _older(switch: Callable[[], T], default: T) -> T:
    """What an older switch is set to; it raises if it cannot express what the newer ones are set to."""
    try:
        return switch()
    except RuntimeError:
        return default


@functools.cache
def onednn_is_faster() -> bool:
    """Whether to multiply float32 matrices by oneDNN: on AMD's processors, for which MKL is not tuned, if it is exact.

    It takes about 15 % less time there. A product of numbers that bfloat16 cannot hold shows whether it would round.
    """
    capabilities: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict[str, Any])()  # newer than torch 2.11
    if "AMD" not in capabilities.get("cpu_name", ""):
        return False
    options: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    between = torch.full((128, 512), 1 + 2**-12, **options)
    restore = set_products(ONEDNN)
    try:
        return torch.equal(between @ torch.eye(512, **options), between)
    finally:
        restore()
