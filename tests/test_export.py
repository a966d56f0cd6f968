"""Exported files: they give what the model gives, at any size of batch, and say what they take."""

import sys

import numpy as np
import pytest
import torch
from torch import nn

import vae
from vae.commands import export as command
from vae.commands import train as train_command
from vae.errors import UsageError
from vae.export import FORMATS, export, halves
from vae.models import Standardise
from vae.training import read_settings
from vae.training.run import train

pytest.importorskip("onnxruntime", reason="the extra `export` is not installed")


def dense(likelihood, shape=(1, 6, 5), **options):
    torch.manual_seed(0)
    likelihood = likelihood(shape, **options)
    encoder = vae.mlp_encoder(shape, 2 * 3, hidden=(8,), batch_norm=True)
    return vae.VAE(encoder, vae.mlp_decoder(3, likelihood.output_shape, hidden=(8,), activation="gelu"), likelihood)


def convolutional():
    torch.manual_seed(0)
    encoder = vae.conv_encoder((3, 8, 8), 2 * 4, channels=(4, 6))
    return vae.VAE(encoder, vae.conv_decoder(4, (3, 8, 8), channels=(6, 4)), vae.Bernoulli((3, 8, 8)))


def standardised():
    model = dense(vae.Gaussian, (7,))
    model.standardise = Standardise(torch.arange(7.0), torch.full((7,), 2.0))
    return model


def of_a_label():
    torch.manual_seed(0)
    encoder, decoder = vae.mlp_encoder((1, 6, 5), 2 * 3, 4), vae.mlp_decoder(3, (1, 6, 5), 4)
    return vae.VAE(encoder, decoder, vae.Bernoulli((1, 6, 5)), classes=4).given(2)


MODELS = {
    "dense": lambda: dense(vae.Bernoulli),
    "convolutional": convolutional,
    "of a label": of_a_label,
    "standardised": standardised,
    "categorical": lambda: dense(vae.Categorical, levels=4),
    "continuous": lambda: dense(vae.ContinuousBernoulli),
    "float64": lambda: dense(vae.Bernoulli).double(),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("form", FORMATS)
def test_a_file_gives_what_the_model_gives(name, form, tmp_path):
    """Read by the other program alone, at sizes that the example had not; 1e-5 of values of about 1."""
    model = MODELS[name]().train()
    files = list(export(model, tmp_path, form))
    assert [f.name for f in files] == [f"{half}.{FORMATS[form][0]}" for half in ("encoder", "decoder")]
    assert model.training  # it was copied
    model.eval()
    x, z = torch.rand(5, *model.data_shape), torch.randn(5, model.latent_dim)
    with torch.no_grad():
        like = x.to(model.prior.mean)
        q = model.posterior(like)
        expected = [[q.mean, q.variance.log()], [model.likelihood(z.to(like)[None]).mean[0]]]
    for file, given, wanted in zip(files, (x, z), expected, strict=True):
        for ours, theirs in zip(run(file, given), wanted, strict=True):
            torch.testing.assert_close(torch.as_tensor(ours), theirs.float(), rtol=1e-5, atol=1e-5)


def run(file, given):
    if file.suffix == ".pt2":
        return torch.export.load(file).module()(given)
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (taken,) = session.get_inputs()
    return session.run(None, {taken.name: given.numpy()})


def test_a_file_says_what_it_takes_and_gives(tmp_path):
    import onnxruntime

    model = dense(vae.Bernoulli)
    encoder, decoder = export(model, tmp_path, "onnx")
    session = onnxruntime.InferenceSession(encoder, providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == ["batch", 1, 6, 5]
    assert [output.name for output in session.get_outputs()] == ["mean", "log_variance"]
    about = session.get_modelmeta().custom_metadata_map["about"]
    assert about == halves(model)[0].about
    assert "x: float32 (batch, 1, 6, 5), 0 or 1 -> mean and log-variance of q(z|x), float32 (batch, 3)" in about
    extra = {"about.txt": ""}
    torch.export.load(export(model, tmp_path, "torch").popitem()[0], extra_files=extra)
    assert extra["about.txt"] == halves(model)[1].about
    assert "z: float32 (batch, 3)" in onnxruntime.InferenceSession(decoder).get_modelmeta().description


class Undecided(nn.Module):
    """A network whose path depends on its values, which no graph of operations holds."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 4)

    def forward(self, z):
        return self.layer(z) if z.sum() > 0 else -self.layer(z)


@pytest.mark.parametrize("form", FORMATS)
def test_a_network_that_cannot_be_exported_is_one_sentence(form, tmp_path):
    model = vae.VAE(nn.Linear(4, 4), Undecided(), vae.Gaussian((4,), variance="shared"))
    with pytest.raises(UsageError, match=f"--format {form}: the decoder cannot be exported") as caught:
        export(model, tmp_path, form)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / f"decoder.{FORMATS[form][0]}").exists()


def test_a_missing_package_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(
        UsageError, match=r"needs the package onnxruntime; install it with: pip install 'vae\[export\]'"
    ):
        export(dense(vae.Bernoulli), tmp_path, "onnx")


def test_the_command_exports_a_run(tmp_path, capsys):
    config = {"hidden": [8]}
    model = vae.build({"data": {"name": "digits"}, "model": {"latent_dim": 2, "encoder": config, "decoder": config}})
    vae.fit(model, vae.load_data("digits"), epochs=1, out=tmp_path / "run", verbose=False)
    assert command.main([str(tmp_path / "run"), "--format", "torch"]) == 0
    assert "differs from the model by 0.0e+00" in capsys.readouterr().out
    decoder = torch.export.load(tmp_path / "run" / "export" / "decoder.pt2").module()
    z = torch.tensor([[0.5, -1.0]])
    np.testing.assert_allclose(decoder(z)[0], model.decode(z), rtol=1e-6)
    for arguments, sentence in (
        ([str(tmp_path), "--format", "onnx"], "is not a run"),
        ([str(tmp_path / "run"), "--format", "tflite"], "invalid choice"),
        ([str(tmp_path / "run"), "--format", "torch", "--out", str(tmp_path / "run" / "config.yaml")], "config.yaml"),
    ):
        assert command.main(arguments) == 2
        assert sentence in capsys.readouterr().err


def test_weights_alone_can_be_used_but_not_resumed(tmp_path, capsys):
    raw = {
        "data": {"name": "digits", "pixels": "static", "train_size": 200},
        "model": {"latent_dim": 2, "encoder": {"hidden": [16], "batch_norm": True}, "decoder": {"hidden": [16]}},
        "train": {"epochs": 2},
    }
    whole = train(read_settings(raw), tmp_path / "run", verbose=False)
    arguments = [str(tmp_path / "run"), "--format", "weights", "--out", str(tmp_path / "small")]
    assert command.main(arguments) == 0
    assert "changed by " in capsys.readouterr().out
    before = (tmp_path / "small" / "checkpoints" / "last.safetensors").read_bytes()
    sizes = [len(before), (tmp_path / "run" / "checkpoints" / "last.safetensors").stat().st_size]
    assert sizes[0] < 0.3 * sizes[1]  # float32 with two moments of Adam is six times as much, beside the header
    x = whole.data.test.images()
    small = vae.load(tmp_path / "small")
    assert next(small.parameters()).dtype == torch.float32
    torch.testing.assert_close(small.elbo(x), whole.model.elbo(x), rtol=1e-3, atol=0.05)
    assert (small.elbo(x) != whole.model.elbo(x)).any()
    assert train_command.main(["--resume", str(tmp_path / "small")]) == 2
    error = capsys.readouterr().err
    assert "holds weights alone" in error
    assert f"--from {tmp_path / 'small'}" in error
    assert (tmp_path / "small" / "checkpoints" / "last.safetensors").read_bytes() == before
    begun = train(read_settings(raw), None, weights=tmp_path / "small", verbose=False)
    assert begun.steps > 0
    assert command.main(arguments) == 2  # it is there already
    assert "is a file of the run" in capsys.readouterr().err
