"""Every file of configs/ opens with its comment, builds, and takes a step on data of its shape."""

from pathlib import Path

import pytest
import torch

from vae.config import plain
from vae.data import DATASETS, Batch
from vae.likelihoods.advice import FITTING_SUPPORTS
from vae.randomness import Streams
from vae.schema import Part
from vae.training import read_settings
from vae.training.build import build, build_algorithm, build_model, resolve

FILES = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
NAMES = {
    "mnist_d2", "mnist_d20", "fashion_mnist_d2", "fashion_mnist_d20", "cifar10_fc_d256", "cifar10_conv_d256",
    "frey_face_d2", "laird_mnist_d2", "digits_d2",
}  # fmt: skip


def test_the_published_experiments_are_there():
    assert {path.stem for path in FILES} >= NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_config_builds_and_takes_a_step(path):
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    assert len(head) >= 2  # what it reproduces, how long it takes, what to expect
    settings, batch = read_settings(path), Batch(torch.rand(5, 1), torch.rand(5, 1))
    if isinstance(settings.model, Part):
        model = build(settings).train()
    else:
        settings, shape, _ = resolve(settings)
        classes = 10 if settings.model.condition else 0
        model = build_model(settings.model, shape, settings.train.seed, classes=classes).train()
        kind = "grey" if settings.data.pixels == "grey" else "binary"
        assert model.likelihood_head.support in FITTING_SUPPORTS[kind]
        x = torch.rand(5, *DATASETS[settings.data.name].shape, generator=torch.Generator().manual_seed(0))
        batch = Batch(x if kind == "grey" else (x > 0.5).float(), torch.arange(5) if classes else None, torch.arange(5))
    algorithm = build_algorithm(settings, 5, 1)
    state = algorithm.init(model)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    noise = Streams(1, torch.device("cpu")).draw(algorithm.noises(state, 5), torch.float32)
    assert torch.isfinite(algorithm.step(state, batch, noise)["elbo"])
    assert not torch.equal(before, torch.cat([p.detach().flatten() for p in model.parameters()]))


def test_chens_settings():
    for name, dim in (("mnist_d2", 2), ("mnist_d20", 20), ("fashion_mnist_d2", 2), ("fashion_mnist_d20", 20)):
        raw = plain(read_settings(next(f for f in FILES if f.stem == name)))
        assert raw["data"]["name"] == name.rpartition("_")[0]
        assert raw["model"]["latent_dim"] == dim
        assert raw["model"]["encoder"]["hidden"] == [512, 256, 128]
        assert raw["model"]["decoder"]["hidden"] == [128, 256, 512]
        assert raw["model"]["encoder"]["batch_norm"] is raw["model"]["decoder"]["batch_norm"] is True
        train = raw["train"]
        assert (train["epochs"], train["batch_size"], train["reduction"]) == (20, 128, "sum")
        assert (train["optimizer"]["name"], train["optimizer"]["lr"]) == ("adam", 1e-3)
        assert train["optimizer"]["weight_decay"] == 1e-5


def test_lairds_settings():
    raw = plain(read_settings(next(f for f in FILES if f.stem == "laird_mnist_d2")))
    assert (raw["data"]["train_size"], raw["data"]["train_from"], raw["data"]["pixels"]) == (55_000, "end", "grey")
    assert raw["model"]["encoder"] == {
        "name": "mlp", "hidden": [512], "activation": "tanh", "batch_norm": False, "init": "normal"
    }  # fmt: skip
    assert raw["train"]["optimizer"]["initial_accumulator_value"] == 0.1


def test_an_untrained_frey_face_model_starts_where_the_papers_curves_do():
    """-526.3 nats: means of 1/2, deviations of 1, on the real pixels (Kingma & Welling 2013, figure 2, first entry)."""
    import os

    if "VAE_DATA" not in os.environ:
        pytest.skip("VAE_DATA names no folder with the real data sets")
    import vae
    from vae.evaluation import evaluate_bound

    model = vae.build(FILES[0].parent / "frey_face_d2.yaml")
    bound = evaluate_bound(model, vae.load_data("frey_face").train, name="train").elbo.mean().item()
    assert bound == pytest.approx(-526.3, abs=0.5)
