"""A checkpoint is one safetensors file: tensors, and one JSON text under one metadata key. Opening it runs no code.

The JSON holds a format number, everything that is not a tensor, and a SHA-256 over the names, types, shapes and bytes
of the tensors and over the JSON itself, so that a flipped bit anywhere is found. There is no clock time in it: equal
states give equal files.
"""

import contextlib
import hashlib
import json
import os
import shutil
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as _load_tensors
from safetensors.torch import save as _save_tensors
from torch import Tensor, nn
from torch.optim import Optimizer

from vae.algorithms.optimizers import HOW
from vae.errors import CheckpointError
from vae.files import open_regular, write_atomically

FORMAT = 4
_KEY = "vae"


def write(path: Path, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
    """Write a checkpoint whole or not at all: a temporary file beside it, flushed to the disk, then renamed.

    CheckpointError if there is no room for it; the file of before stays.
    """
    # Copies: safetensors refuses tensors that share memory or are not contiguous.
    own = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(values, sort_keys=True, allow_nan=False)
    metadata = {_KEY: json.dumps({"format": FORMAT, "sha256": _digest(own, text), "values": text})}
    content = _save_tensors(own, metadata)
    with room(path, len(content)):
        write_atomically(path, content)


@contextlib.contextmanager
def room(path: Path, size: int) -> Iterator[None]:
    """CheckpointError if a checkpoint of so many bytes cannot be written, with the bytes that are free."""
    try:
        yield
    except OSError as error:
        place = next(folder for folder in path.parents if folder.exists())
        left = f"; the last good checkpoint is {path}" if path.exists() else ""
        raise CheckpointError(
            f"{path}: cannot be written: {error.strerror}; it needs {size:,} bytes, and "
            f"{shutil.disk_usage(place).free:,} are free; make room, or use another directory{left}"
        ) from None


def read(path: Path, kinds: Mapping[str, Any] = types.MappingProxyType({})) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and values of a checkpoint; CheckpointError if it is missing, cut short, altered, or not one.

    `kinds` are the types of the values that it must hold.
    """
    with _readable(path) as file:
        content = file.read()
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    sha256, text = _record(path, header)
    try:
        tensors = _load_tensors(content)
    except (SafetensorError, ValueError) as error:
        raise _damaged(path, error) from None
    # The header is compact JSON, padded with spaces; the digest does not cover the padding, so look at it.
    if sha256 != _digest(tensors, text) or not header.rstrip(b" ").endswith(b"}"):
        raise CheckpointError(f"{path}: the file was altered or damaged (its SHA-256 is wrong); {_CURE}")
    with of_this_library(path):
        values = dict.fromkeys(kinds) | json.loads(text)
        wrong = [key for key, kind in kinds.items() if not isinstance(values[key], kind)]
        if wrong:
            raise ValueError(f"{', '.join(wrong)} of another type")
    return tensors, values


@contextlib.contextmanager
def of_this_library(path: Path) -> Iterator[None]:
    """CheckpointError where values, though whole, are not what this library writes."""
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise _damaged(path, error) from error


def read_values(path: Path) -> dict[str, Any]:
    """The values of a checkpoint alone, from its header; the digest, which covers the tensors too, is not checked."""
    with of_this_library(path):
        return json.loads(_header(path)[1])


def sha256_of(path: Path) -> str:
    """The digest that stands in a checkpoint."""
    return _header(path)[0]


def _header(path: Path) -> tuple[str, str]:
    """The digest and the JSON text of the values, without reading the tensors."""
    with _readable(path) as file:
        size = os.fstat(file.fileno()).st_size
        header = file.read(min(size, int.from_bytes(file.read(8), "little")))
    return _record(path, header)


_CURE = "put a copy of it back, or train again"


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[BinaryIO]:
    try:
        with open_regular(path) as file:
            yield file
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None


def _record(path: Path, header: bytes) -> tuple[str, str]:
    """The digest and the JSON text of the values in a header."""
    try:
        record = json.loads(json.loads(header)["__metadata__"][_KEY])
        version, sha256, text = record["format"], record["sha256"], record["values"]
        text.encode()  # which a lone surrogate cannot be
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, error) from None
    if version != FORMAT:
        raise CheckpointError(f"{path}: is of checkpoint format {version}, this version reads {FORMAT}; train it again")
    return sha256, text


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return CheckpointError(f"{path}: not a whole checkpoint of this library ({reason}); {_CURE}")


def _digest(tensors: dict[str, Tensor], text: str) -> str:
    found = hashlib.sha256(f"{FORMAT}\n{text}\n".encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return found.hexdigest()


# ------------------------------------------------------------------------------------- modules and optimizers


def under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix.`, without it."""
    return {name[len(prefix) + 1 :]: t for name, t in tensors.items() if name.startswith(prefix + ".")}


def load_model(model: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load the tensors under `model.`; CheckpointError names the first that belongs to another model."""
    theirs, ours = under("model", tensors), model.state_dict()
    for name in sorted(theirs.keys() | ours.keys()):
        if name not in ours:
            raise CheckpointError(f"{path}: of another model: it holds {name}, which this model does not have")
        if name not in theirs:
            raise CheckpointError(f"{path}: of another model: it lacks {name}, which this model has")
        if theirs[name].shape != ours[name].shape:
            raise CheckpointError(
                f"{path}: of another model: {name} has shape {tuple(theirs[name].shape)} in it, and "
                f"{tuple(ours[name].shape)} in this model"
            )
    model.load_state_dict(theirs)


def optimizer_state(optimizer: Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors and values."""
    whole = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    numbers: dict[str, Any] = {}
    for index, state in whole["state"].items():
        for name, value in state.items():
            (tensors if isinstance(value, Tensor) else numbers)[f"{index}.{name}"] = value
    groups = [{k: v for k, v in g.items() if k not in HOW} for g in whole["param_groups"]]
    return tensors, {"param_groups": groups, "numbers": numbers}


def load_optimizer(optimizer: Optimizer, tensors: dict[str, Tensor], values: dict[str, Any], path: Path) -> None:
    """Give an optimizer its saved state; CheckpointError if it is that of another optimizer or model.

    torch casts what it loads to the type of the parameters; what was float32 is made float32 again.
    """
    state: dict[int, dict[str, Any]] = {}
    for key, value in [*tensors.items(), *values["numbers"].items()]:
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value
    how = [{key: group[key] for key in HOW & group.keys()} for group in optimizer.param_groups]
    groups = [
        {**here, **{k: tuple(v) if k == "betas" else v for k, v in g.items()}}
        for g, here in zip(values["param_groups"], how, strict=False)
    ]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: its optimizer state is of another optimizer or model ({error})") from None
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for index, saved in state.items():
        loaded = optimizer.state[parameters[index]]
        for name, value in saved.items():
            if isinstance(value, Tensor) and loaded[name].dtype != value.dtype:
                loaded[name] = value.to(loaded[name].device)
