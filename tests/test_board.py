"""What TensorBoard is given: the metrics, and pictures; and it changes no bit of the run."""

import sys

import numpy as np
import pytest
import torch

import vae
from vae.errors import ConfigError
from vae.training import read_settings
from vae.training.board import pictures, tiled
from vae.training.run import train

pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
CONFIG = {
    "data": {"name": "digits", "train_size": 100, "validation_size": 40},
    "model": {"latent_dim": 2, "encoder": {"hidden": [8]}, "decoder": {"hidden": [8]}},
    "train": {"epochs": 4, "batch_size": 50, "evaluate_every": 2, "tensorboard": True},
}


def events(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(path / "tensorboard"), size_guidance={"images": 0, "scalars": 0}).Reload()


def test_curves_and_pictures_are_written_and_nothing_else_changes(tmp_path):
    settings = read_settings(CONFIG)
    run = train(settings, tmp_path / "with", verbose=False)
    without = train(read_settings(CONFIG, ["train.tensorboard=false"]), tmp_path / "without", verbose=False)
    for a, b in zip(run.model.state_dict().values(), without.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    found = events(tmp_path / "with")
    lines = [line for line in run.history if line["split"] == "train"]
    curve = found.Scalars("elbo/train")
    assert [event.step for event in curve] == [line["step"] for line in lines]
    np.testing.assert_allclose([event.value for event in curve], [line["elbo"] for line in lines], rtol=1e-6)
    assert len(found.Scalars("elbo/validation")) == 2
    assert sorted(found.Tags()["images"]) == ["manifold", "reconstructions", "samples"]
    image = found.Images("reconstructions")[-1]
    assert (image.width, image.height, image.step) == (10 * 8, 2 * 8, 8)
    assert not (tmp_path / "without" / "tensorboard").exists()


def test_a_resumed_run_hides_what_it_makes_again(tmp_path):
    train(read_settings(CONFIG, ["train.epochs=2"]), tmp_path / "run", verbose=False)
    train(read_settings(CONFIG), tmp_path / "run", resume=True, verbose=False)
    assert [event.step for event in events(tmp_path / "run").Scalars("elbo/train")] == [2, 4, 6, 8]
    train(read_settings(CONFIG), tmp_path / "run", overwrite=True, verbose=False)
    assert [event.step for event in events(tmp_path / "run").Scalars("elbo/train")] == [2, 4, 6, 8]


def test_pictures_lie_row_by_row():
    images = torch.arange(6.0).view(6, 1, 1, 1).expand(6, 1, 2, 3) / 10
    found = tiled(images, 3)[0, ::2, ::3]
    torch.testing.assert_close(found, torch.tensor([[0, 0.1, 0.2], [0.3, 0.4, 0.5]]))
    model = vae.build({**CONFIG, "train": {}})
    drawn = pictures(model, None)["manifold"]()
    z = torch.special.ndtri(torch.tensor([[0.5 / 12, 11.5 / 12]]))  # top left: z_1 small, z_2 large
    np.testing.assert_allclose(drawn[:, :8, :8], model.decode(z)[0], atol=1e-6)


def test_vectors_have_curves_alone():
    model = vae.VAE(vae.mlp_encoder((5,), 4), vae.mlp_decoder(2, (5,)), vae.Bernoulli((5,)))
    assert pictures(model, None) == {}


def test_what_is_missing_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="train.tensorboard: writes into the run directory; give out="):
        train(read_settings(CONFIG), None, verbose=False)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'vae\[tensorboard\]'"):
        train(read_settings(CONFIG), tmp_path / "run", verbose=False)
