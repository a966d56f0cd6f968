"""Every encoder and decoder: shapes for any image, initial values, and the description that a run keeps of it."""

import pytest
import torch

from vae.errors import ConfigError, UsageError
from vae.networks import ACTIVATIONS, DECODERS, ENCODERS, INITIALISATIONS
from vae.schema import describe, options_of

BUILT = {"mlp", "conv"}  # `module` stands for the user's own
SHAPES = [(1, 28, 28), (3, 32, 32), (1, 28, 20), (2, 9, 17), (1, 8, 8)]


def test_every_network_is_covered():
    assert ENCODERS.keys() == DECODERS.keys() == BUILT | {"module"}


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", sorted(BUILT))
def test_shapes_and_gradients(name, shape, batch_norm):
    encoder = ENCODERS[name](shape, 6, batch_norm=batch_norm)
    decoder = DECODERS[name](3, (2 * shape[0], *shape[1:]), batch_norm=batch_norm)
    codes = encoder(torch.rand(4, *shape))
    outputs = decoder(torch.randn(5, 3))
    assert codes.shape == (4, 6)
    assert outputs.shape == (5, 2 * shape[0], *shape[1:])
    (codes.square().sum() + outputs.square().sum()).backward()
    for parameter in [*encoder.parameters(), *decoder.parameters()]:
        assert parameter.grad is not None


@pytest.mark.parametrize("layers", [(), (7,), (7, 5, 3, 4)])
def test_any_depth(layers):
    assert ENCODERS["mlp"]((10,), 4, hidden=layers)(torch.rand(2, 10)).shape == (2, 4)
    assert DECODERS["mlp"](2, (10,), hidden=layers)(torch.rand(2, 2)).shape == (2, 10)
    assert ENCODERS["conv"]((1, 40, 40), 4, channels=layers)(torch.rand(2, 1, 40, 40)).shape == (2, 4)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_is_used(activation):
    torch.manual_seed(0)
    network = ENCODERS["mlp"]((4,), 2, hidden=(3,), activation=activation)
    assert any(isinstance(layer, type(ACTIVATIONS[activation]())) for layer in network.layers)


def test_chens_parameter_counts():
    """Chen 2020, tables 4.1 and 4.2, with d = 2 and 256."""
    import vae

    count = {c: sum(p.numel() for p in vae.build(f"configs/{c}.yaml").parameters()) for c in COUNTS}
    assert count == COUNTS


COUNTS = {
    "mnist_d2": 1_137_428,
    "mnist_d20": 1_144_376,
    "cifar10_fc_d256": 3_580_672,
    "cifar10_conv_d256": 1_911_235,
    "laird_mnist_d2": 807_700,
}


@pytest.mark.parametrize("init", INITIALISATIONS)
@pytest.mark.parametrize("name", sorted(BUILT))
def test_initialisation(name, init):
    torch.manual_seed(0)
    network = ENCODERS[name]((1, 28, 28), 4, init=init)
    weights = torch.cat([p.detach().flatten() for k, p in network.named_parameters() if k.endswith("weight")])
    biases = torch.cat([p.detach().flatten() for k, p in network.named_parameters() if k.endswith("bias")])
    if init == "normal":  # N(0, 0.01^2), weights and biases: standard deviation, not variance
        n = len(weights)
        assert weights.std().item() == pytest.approx(0.01, rel=4.5 / (2 * n) ** 0.5)
        assert biases.std().item() == pytest.approx(0.01, rel=4.5 / (2 * len(biases)) ** 0.5)
    elif init in ("xavier", "kaiming"):
        assert (biases == 0).all()
        assert weights.abs().max() > 0.02


@pytest.mark.parametrize("name", sorted(BUILT))
def test_a_network_describes_itself(name):
    options = {"hidden": (7,), "activation": "tanh", "batch_norm": True, "init": "normal"}
    for table, build in (
        (ENCODERS, lambda f: f((1, 8, 8), 4, **options)),
        (DECODERS, lambda f: f(2, (1, 8, 8), **options)),
    ):
        part = describe(build(table[name]), table)
        assert part.name == name
        assert part.options.keys() == options_of(table[name]).keys()
        assert options.items() <= part.options.items()


def test_misuse_is_an_error_at_once():
    with pytest.raises(ConfigError, match=r"images of 4x4 are too small for 3 convolutions"):
        ENCODERS["conv"]((1, 4, 4), 2)
    with pytest.raises(ConfigError, match="a conv network needs images"):
        ENCODERS["conv"]((10,), 2)
    with pytest.raises(ConfigError, match="at least one entry in channels"):
        DECODERS["conv"](2, (1, 8, 8), channels=())
    with pytest.raises(UsageError, match="vae.load"):
        ENCODERS["module"]((1,), 2, of="a.B")
