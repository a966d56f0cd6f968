"""Fully connected and convolutional networks of any depth and width, and their initialisation.

An encoder maps (M, *data_shape) to (M, output_size), the parameters of the posterior. A decoder maps (B, J) to
(B, *output_shape), the parameters of the likelihood. Neither ends in an activation. Any module of the same shapes can
replace them. Networks of a conditional VAE take the label too, as a second argument, one-hot (M, classes).
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn

from vae.errors import ConfigError, UsageError
from vae.schema import Count, Index, OneOf, validated

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
}
Activation = Annotated[str, OneOf(ACTIVATIONS)]


def _normal(layer: nn.Module) -> None:
    nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
    nn.init.normal_(layer.bias, std=0.01)  # type: ignore[arg-type]


def _xavier(layer: nn.Module) -> None:
    nn.init.xavier_uniform_(layer.weight)  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


def _kaiming(layer: nn.Module) -> None:
    nn.init.kaiming_uniform_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


# How layers are initialised: `torch` is PyTorch's own rule (Chen 2020); `normal` is N(0, 0.01^2) for
# weights and biases (Kingma & Welling 2013, section 5; Laird); `xavier` Glorot & Bengio 2010; `kaiming` He et al. 2015.
INITIALISATIONS: dict[str, Callable[[nn.Module], None]] = {
    "torch": lambda layer: None,
    "normal": _normal,
    "xavier": _xavier,
    "kaiming": _kaiming,
}
Initialisation = Annotated[str, OneOf(INITIALISATIONS)]

_WEIGHTED = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d)


def _initialise(network: nn.Module, init: str) -> None:
    for layer in network.modules():
        if isinstance(layer, _WEIGHTED):
            INITIALISATIONS[init](layer)


def _beside(x: Tensor, label: Tensor | None) -> Tensor:  # (M, D[, H, W]), (M, K) -> (M, D + K[, H, W])
    """The label beside the data: as further numbers, of images as further channels."""
    if label is None:
        return x
    return torch.cat([x, label.view(*label.shape, *(1 for _ in x.shape[2:])).expand(-1, -1, *x.shape[2:])], 1)


def _hidden(layer: nn.Module, width: int, activation: str, batch_norm: bool) -> list[nn.Module]:
    """One hidden layer: the layer, batch normalisation if asked for, the activation."""
    norm = nn.BatchNorm1d if isinstance(layer, nn.Linear) else nn.BatchNorm2d
    return [layer, *([norm(width)] if batch_norm else []), ACTIVATIONS[activation]()]


def _dense(sizes: Sequence[int], activation: str, batch_norm: bool) -> list[nn.Module]:
    """Hidden layers from each size to the next."""
    return [
        module
        for wide, next_wide in itertools.pairwise(sizes)
        for module in _hidden(nn.Linear(wide, next_wide), next_wide, activation, batch_norm)
    ]


@validated
class MLPEncoder(nn.Module):
    """Fully connected: data -> hidden layers -> output_size numbers (paper, appendix C)."""

    def __init__(
        self,
        data_shape: tuple[int, ...],
        output_size: int,
        classes: int = 0,
        *,
        hidden: tuple[Count, ...] = (512, 256),
        activation: Activation = "relu",
        batch_norm: bool = False,
        init: Initialisation = "torch",
    ) -> None:
        super().__init__()
        self.hidden, self.activation, self.batch_norm, self.init = tuple(hidden), activation, batch_norm, init
        sizes = (math.prod(data_shape) + classes, *hidden)
        self.layers = nn.Sequential(
            nn.Flatten(), *_dense(sizes, activation, batch_norm), nn.Linear(sizes[-1], output_size)
        )
        _initialise(self, init)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:  # (M, *data_shape) -> (M, output_size)
        """The parameters of the posterior."""
        return self.layers(x if label is None else _beside(x.flatten(1), label))


@validated
class MLPDecoder(nn.Module):
    """Fully connected: latents -> hidden layers -> numbers of shape output_shape (paper, appendix C)."""

    def __init__(
        self,
        latent_dim: int,
        output_shape: tuple[int, ...],
        classes: int = 0,
        *,
        hidden: tuple[Count, ...] = (256, 512),
        activation: Activation = "relu",
        batch_norm: bool = False,
        init: Initialisation = "torch",
    ) -> None:
        super().__init__()
        self.hidden, self.activation, self.batch_norm, self.init = tuple(hidden), activation, batch_norm, init
        sizes = (latent_dim + classes, *hidden)
        self.layers = nn.Sequential(
            *_dense(sizes, activation, batch_norm),
            nn.Linear(sizes[-1], math.prod(output_shape)),
            nn.Unflatten(1, output_shape),
        )
        _initialise(self, init)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:  # (B, J) -> (B, *output_shape)
        """The parameters of the likelihood."""
        return self.layers(_beside(z, label))


def _conv_sizes(shape: tuple[int, ...], layers: int, kernel: int, stride: int, padding: int) -> list[tuple[int, int]]:
    """Height and width before the first and after each convolution; ConfigError if an image gets too small."""
    if len(shape) != 3:
        raise ConfigError(f"a conv network needs images (channels, height, width), and the data have shape {shape}")
    sizes = [(shape[1], shape[2])]
    for _ in range(layers):
        sizes.append(tuple((side + 2 * padding - kernel) // stride + 1 for side in sizes[-1]))  # type: ignore[arg-type]
        if min(sizes[-1]) < 1:
            raise ConfigError(
                f"images of {shape[1]}x{shape[2]} are too small for {layers} convolutions of kernel {kernel}, "
                f"stride {stride}, padding {padding}; give fewer channels, or a smaller kernel or stride"
            )
    return sizes


@validated
class ConvEncoder(nn.Module):
    """Convolutions that halve the image (by default), then dense layers (Chen 2020, table 4.2)."""

    def __init__(
        self,
        data_shape: tuple[int, ...],
        output_size: int,
        classes: int = 0,
        *,
        channels: tuple[Count, ...] = (32, 64, 128),
        hidden: tuple[Count, ...] = (),
        kernel: Count = 4,
        stride: Count = 2,
        padding: Index = 1,
        activation: Activation = "relu",
        batch_norm: bool = False,
        init: Initialisation = "torch",
    ) -> None:
        super().__init__()
        self.channels, self.hidden = tuple(channels), tuple(hidden)
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.activation, self.batch_norm, self.init = activation, batch_norm, init
        height, width = _conv_sizes(data_shape, len(channels), kernel, stride, padding)[-1]
        counts = (data_shape[0] + classes, *channels)
        convolutions = [
            module
            for few, many in itertools.pairwise(counts)
            for module in _hidden(nn.Conv2d(few, many, kernel, stride, padding), many, activation, batch_norm)
        ]
        sizes = (counts[-1] * height * width, *hidden)
        self.layers = nn.Sequential(
            *convolutions,
            nn.Flatten(),
            *_dense(sizes, activation, batch_norm),
            nn.Linear(sizes[-1], output_size),
        )
        _initialise(self, init)

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:  # (M, C, H, W) -> (M, output_size)
        """The parameters of the posterior."""
        return self.layers(_beside(x, label))


@validated
class ConvDecoder(nn.Module):
    """The mirror of ConvEncoder: dense layers to channels[0] small images, then transposed convolutions (table 4.2)."""

    def __init__(
        self,
        latent_dim: int,
        output_shape: tuple[int, ...],
        classes: int = 0,
        *,
        channels: tuple[Count, ...] = (128, 64, 32),
        hidden: tuple[Count, ...] = (),
        kernel: Count = 4,
        stride: Count = 2,
        padding: Index = 1,
        activation: Activation = "relu",
        batch_norm: bool = False,
        init: Initialisation = "torch",
    ) -> None:
        super().__init__()
        self.channels, self.hidden = tuple(channels), tuple(hidden)
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.activation, self.batch_norm, self.init = activation, batch_norm, init
        if not channels:
            raise ConfigError("a conv decoder needs at least one entry in channels")
        sizes = _conv_sizes(output_shape, len(channels), kernel, stride, padding)[::-1]  # smallest first
        counts = (*channels, output_shape[0])
        upward: list[nn.Module] = []
        for layer, (few, many) in enumerate(itertools.pairwise(counts)):
            # A strided convolution rounds down; output_padding gives back the rows it dropped.
            small, large = sizes[layer], sizes[layer + 1]
            dropped = tuple(b - ((a - 1) * stride - 2 * padding + kernel) for a, b in zip(small, large, strict=True))
            conv = nn.ConvTranspose2d(few, many, kernel, stride, padding, output_padding=dropped)  # type: ignore[arg-type]
            last = layer == len(channels) - 1
            upward += [conv] if last else _hidden(conv, many, activation, batch_norm)
        dense = (latent_dim + classes, *hidden, channels[0] * math.prod(sizes[0]))
        self.layers = nn.Sequential(
            *_dense(dense, activation, batch_norm), nn.Unflatten(1, (channels[0], *sizes[0])), *upward
        )
        _initialise(self, init)

    def forward(self, z: Tensor, label: Tensor | None = None) -> Tensor:  # (B, J) -> (B, C, H, W)
        """The parameters of the likelihood."""
        return self.layers(_beside(z, label))


def user_network(given: Any, wanted: Any, classes: int = 0, *, of: str) -> nn.Module:
    """Your own nn.Module; from Python only: vae.VAE(encoder=..., decoder=..., likelihood=...)."""
    raise UsageError(
        f"a network of this run is the user's own module, {of}; open it from Python with that module: "
        "vae.load(run, encoder=module) or decoder=module"
    )


ENCODERS: dict[str, Callable[..., nn.Module]] = {"mlp": MLPEncoder, "conv": ConvEncoder, "module": user_network}
DECODERS: dict[str, Callable[..., nn.Module]] = {"mlp": MLPDecoder, "conv": ConvDecoder, "module": user_network}

# The names by which people call them: vae.mlp_encoder(...).
mlp_encoder, mlp_decoder, conv_encoder, conv_decoder = MLPEncoder, MLPDecoder, ConvEncoder, ConvDecoder
