"""Layers whose weights are random variables: variational Bayes over the parameters of a network.

Their noise is an argument, by the name of the layer, and so is the way of sampling:

- `weights/NAME` draws the weights themselves: one network for all data of a minibatch;
- `activations/NAME` draws what the layer gives, for each datum on its own (local reparameterization, Kingma, Salimans &
  Welling 2015): the same law for each datum, and a gradient of less variance.

Without noise a layer uses the means of its weights.
"""

import contextlib
import math
import types
from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vae.distributions import Normal, kl_divergence
from vae.errors import ConfigError
from vae.randomness import Draws, Noise, datum_noise

NOTHING: Draws = types.MappingProxyType({})
Sampling = Literal["activations", "weights"]


class VariationalLinear(nn.Module):
    """x W' + b, weights and biases independent: q = N(mean, softplus(rho)^2), prior N(0, prior_std^2).

    The last column of `mean` and `rho` (O, I + 1) is that of the biases.
    """

    def __init__(self, inputs: int, outputs: int, *, prior_std: float = 1.0, initial_std: float = 0.05) -> None:
        super().__init__()
        like = nn.Linear(inputs, outputs)
        self.mean = nn.Parameter(torch.cat([like.weight, like.bias[:, None]], 1).detach())
        self.rho = nn.Parameter(torch.full_like(self.mean, math.log(math.expm1(initial_std))))
        self.prior_std = prior_std
        self.noise_of_rows: Tensor | None = None  # within `drawn`

    @property
    def std(self) -> Tensor:  # (O, I + 1)
        """The standard deviations of q."""
        return F.softplus(self.rho)

    def forward(self, x: Tensor, draws: Draws = NOTHING, name: str = "") -> Tensor:  # (1 or S, M, I) -> (1 or S, M, O)
        """The layer's output, by the noise of its name, if there is any."""
        x = F.pad(x, (0, 1), value=1.0)  # for the biases
        if (noise := draws.get(f"weights/{name}")) is not None:  # (S, O, I + 1)
            return torch.matmul(x, torch.addcmul(self.mean, self.std, noise).mT)
        mean = F.linear(x, self.mean)
        noise = draws.get(f"activations/{name}", self.noise_of_rows)  # (S, M, O), or (M, O) within `drawn`
        if noise is None:
            return mean
        return torch.addcmul(mean, F.linear(x.square(), self.std.square()).sqrt(), noise)

    def noise(self, sampling: Sampling, samples: int, batch_size: int) -> Noise:
        """What is drawn for S samples."""
        outputs = len(self.mean)
        if sampling == "weights":
            return Noise("normal", (samples, *self.mean.shape))
        return Noise("normal", (samples, batch_size, outputs), data_axis=1)


def variational_layers(module: nn.Module) -> Iterator[tuple[str, VariationalLinear]]:
    """The variational layers in a module, by name."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, VariationalLinear))


def weights_kl(module: nn.Module) -> Tensor:  # ()
    """KL(q(w) || p(w)) of all variational layers, nats, in closed form (paper, appendix B); 0 if there are none."""
    layers = [layer for _, layer in variational_layers(module)]
    if not layers:
        return torch.zeros(())
    # In units of the prior's standard deviation, where the prior is N(0, 1): one KL for all layers is faster than many.
    mean = torch.cat([layer.mean.flatten() / layer.prior_std for layer in layers])
    std = torch.cat([layer.std.flatten() / layer.prior_std for layer in layers])
    return kl_divergence(Normal(mean, std.log()), Normal(torch.zeros_like(mean), torch.zeros_like(mean))).sum()


def weights_noises(module: nn.Module, sampling: Sampling, samples: int, batch_size: int) -> dict[str, Noise]:
    """What is drawn for S samples of all variational layers, by name."""
    layers = variational_layers(module)
    return {f"{sampling}/{name}": layer.noise(sampling, samples, batch_size) for name, layer in layers}


def networks(module: nn.Module, samples: int, seed: int) -> dict[str, Tensor]:
    """The noise of `samples` networks drawn from q(w); network s depends only on (seed, s)."""
    layers = {f"weights/{name}": layer.mean for name, layer in variational_layers(module)}
    return {name: datum_noise("normal", seed, name, range(samples), w.shape).to(w) for name, w in layers.items()}


def through(network: nn.Sequential, x: Tensor, draws: Draws, name: str) -> Tensor:  # (1, M, I) -> (1 or S, M, O)
    """What a sequence of layers gives, each variational one with the noise of its name."""
    for key, layer in network.named_children():
        x = layer(x, draws, f"{name}.{key}") if isinstance(layer, VariationalLinear) else layer(x)
    return x


def randomise(network: nn.Module) -> nn.Module:
    """The network with its dense layers made variational, in place. ConfigError if it has weights of another kind."""
    for name, layer in list(network.named_modules()):
        if isinstance(layer, nn.Linear):
            parent, _, key = name.rpartition(".")
            made = VariationalLinear(layer.in_features, layer.out_features)
            with torch.no_grad():
                made.mean.copy_(torch.cat([layer.weight, layer.bias[:, None]], 1))
            setattr(network.get_submodule(parent), key, made)
        elif list(layer.parameters(recurse=False)):
            kind = type(layer).__name__
            raise ConfigError(f"model.weights: only dense layers have random weights, and the network has a {kind}")
    return network


@contextlib.contextmanager
def drawn(network: nn.Module, draws: Draws, name: str) -> Iterator[None]:
    """Within, the variational layers of a network use the noise of their names: activations (L, M, O), as L M rows."""
    layers = list(variational_layers(network))
    for key, layer in layers:
        layer.noise_of_rows = draws[f"activations/{name}.{key}"].flatten(0, 1)
    try:
        yield
    finally:
        for _, layer in layers:
            layer.noise_of_rows = None
