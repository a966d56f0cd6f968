"""A network of the library as a list of operations and their weights, for the small runtime of the page.

Pictures are (height, width, channels) there, so that the inner loop of a convolution is over adjacent numbers: the
weights of dense layers beside pictures are put into that order here. Batch normalisation becomes part of the layer
before.
"""

import base64
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vae.errors import UsageError
from vae.networks import ACTIVATIONS, ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder

Operation = dict[str, Any]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass
class Weights:
    """Weights of all operations one after the other, as 16-bit floats."""

    parts: list[NDArray[np.float16]] = field(default_factory=list)
    size: int = 0

    def add(self, tensor: Tensor) -> int:
        """Append a tensor; where it begins."""
        begin, values = self.size, tensor.detach().double().flatten().numpy().astype(np.float16)
        self.parts.append(values)
        self.size += len(values)
        return begin

    def text(self) -> str:
        """All of them in base64, little-endian."""
        return base64.b64encode(np.concatenate(self.parts).astype("<f2").tobytes()).decode()


def operations(network: nn.Module, shape: tuple[int, ...], weights: Weights) -> list[Operation]:
    """What a network does to a datum of a shape, layer by layer. UsageError if the page's runtime has no such layer."""
    if not isinstance(network, MLPEncoder | MLPDecoder | ConvEncoder | ConvDecoder):
        raise UsageError(f"the explorer knows the library's mlp and conv networks, not {type(network).__qualname__}")
    found: list[Operation] = []
    for layer, norm, activation in _layers(network.layers):
        scale, shift = _normalisation(norm, layer)
        if isinstance(layer, nn.Linear):
            order, rows = _picture_order(shape), _picture_order(out := _shape_after(network, layer))
            w = (scale[:, None] * layer.weight)[rows][:, order]
            made = {"op": "dense", "inputs": w.shape[1], "outputs": w.shape[0]}
            b = (shift + scale * layer.bias)[rows]
            shape = out
        else:
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d), "the networks have no other layers"
            made, out = _convolution(layer, shape)
            upward = isinstance(layer, nn.ConvTranspose2d)
            w = layer.weight.permute(2, 3, 1, 0) if upward else layer.weight.permute(2, 3, 0, 1)  # (k, k, out, in)
            w, b, shape = scale[:, None] * w, shift + scale * _bias(layer), out
        found.append({**made, "w": weights.add(w), "b": weights.add(b), "activation": activation})
    return found


def _bias(layer: Any) -> Tensor:
    return layer.bias.double()


def _layers(layers: nn.Sequential) -> Iterator[tuple[Any, nn.Module | None, str]]:
    """Each layer with weights, the normalisation after it, and the name of the activation after that."""
    names = {type(make()): name for name, make in ACTIVATIONS.items()}
    group: list[Any] = []
    for module in [*layers, None]:
        if module is None or isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            if group:
                norm = next((m for m in group if isinstance(m, NORMS)), None)
                yield group[0], norm, next((names[type(m)] for m in group if type(m) in names), "none")
            group = []
        if module is not None and not isinstance(module, nn.Flatten | nn.Unflatten):
            group.append(module)


def _normalisation(norm: Any, layer: Any) -> tuple[Tensor, Tensor]:
    """What evaluation-mode batch normalisation multiplies and adds, by channel; 1 and 0 without."""
    outputs = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
    if norm is None:
        return torch.ones(outputs).double(), torch.zeros(outputs).double()
    scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
    return scale, norm.bias.double() - scale * norm.running_mean.double()


def _picture_order(shape: tuple[int, ...]) -> Tensor:
    """Where the numbers of a flat (channels, height, width) are in (height, width, channels)."""
    places = torch.arange(math.prod(shape))
    return places.view(shape).permute(1, 2, 0).flatten() if len(shape) == 3 else places


def _shape_after(network: Any, layer: nn.Linear) -> tuple[int, ...]:
    """The shape that a dense layer's outputs are given, if they are made a picture right after it."""
    layers = list(network.layers)
    after = layers[layers.index(layer) + 1 :]
    for module in after:
        if isinstance(module, nn.Unflatten):
            return tuple(module.unflattened_size)
        if isinstance(module, nn.Linear):
            break
    return (layer.out_features,)


def _convolution(layer: Any, shape: tuple[int, ...]) -> tuple[Operation, tuple[int, ...]]:
    """The sizes of a convolution on a picture (channels, height, width), and the shape of what it gives."""
    upward = isinstance(layer, nn.ConvTranspose2d)
    (kernel, _), (stride, _), (padding, _) = layer.kernel_size, layer.stride, layer.padding
    extra = layer.output_padding if upward else (0, 0)
    height, width = (
        (side - 1) * stride - 2 * padding + kernel + more if upward else (side + 2 * padding - kernel) // stride + 1
        for side, more in zip(shape[1:], extra, strict=True)
    )
    made = {"op": "up" if upward else "conv", "kernel": kernel, "stride": stride, "padding": padding}
    sizes = {"height": shape[1], "width": shape[2], "inputs": layer.in_channels, "outputs": layer.out_channels}
    return {**made, **sizes, "outHeight": height, "outWidth": width}, (layer.out_channels, height, width)
