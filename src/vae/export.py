"""Encoder and decoder of a trained VAE as files that other programs run: ONNX, or torch.export's own format."""

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.export import Dim

from vae.distributions import support_of
from vae.errors import TrainingFailed, UsageError
from vae.files import write_atomically
from vae.models import VAE

BATCHES = (1, 7, 64)  # sizes on which a file is compared with the model
ALLOWED = 1e-4  # the largest difference, relative to the largest value


class Encoder(nn.Module):
    """x (M, *data_shape) -> mean and log-variance of q(z|x), (M, J) both."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The parameters of q(z|x)."""
        q = self.model.posterior(x)
        return q.mean, q.variance.log()


class Decoder(nn.Module):
    """z (M, J) -> mean of p(x|z), (M, *data_shape); what is drawn for a sample of x stays outside."""

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.model = model

    def forward(self, z: Tensor) -> tuple[Tensor]:
        """The mean of p(x|z)."""
        return (self.model.likelihood(z[None]).mean[0],)


class Half(NamedTuple):
    """One of the two files."""

    name: str
    module: nn.Module
    takes: str
    gives: tuple[str, ...]
    shape: tuple[int, ...]  # of what it takes, for one datum
    about: str

    def example(self, size: int) -> Tensor:
        """Inputs of a batch, on [0, 1]."""
        return torch.rand(size, *self.shape, generator=torch.Generator().manual_seed(0))


def halves(model: VAE) -> tuple[Half, Half]:
    """Encoder and decoder of a copy of the model, in float32 on the CPU."""
    model = copy.deepcopy(model).float().cpu().eval().requires_grad_(False)
    J, shape = model.latent_dim, model.data_shape
    words = support_of(str(model.likelihood_head.support)).words
    inside = "" if model.standardise is None else ", standardised inside"
    x = f"x: float32 (batch, {', '.join(map(str, shape))})"
    return (
        Half("encoder", Encoder(model), "x", ("mean", "log_variance"), shape,
             f"{x}, {words}{inside} -> mean and log-variance of q(z|x), float32 (batch, {J})"),
        Half("decoder", Decoder(model), "z", ("x_mean",), (J,),
             f"z: float32 (batch, {J}), a code or a draw of the prior -> the mean of p(x|z), as {x}"),
    )  # fmt: skip


def export(model: VAE, out: Path, form: str) -> dict[Path, float]:
    """Write both files into a folder, and compare what they give with the model: the largest difference of each.

    UsageError if the form's packages are missing or a network cannot be exported, TrainingFailed if a file differs.
    """
    extension, write = FORMATS[form]
    found = {}
    for half in halves(model):
        path = out / f"{half.name}.{extension}"
        try:
            content, run = write(half)
        except ImportError as error:
            raise UsageError(
                f"--format {form}: needs the package {error.name}; install it with: pip install 'vae[export]'"
            ) from None
        except Exception as error:  # whatever the exporter may raise of a user's network
            first = str(error).strip().splitlines() or [type(error).__name__]
            raise UsageError(f"--format {form}: the {half.name} cannot be exported: {first[0]}") from None
        found[path] = difference = _difference(half, run)
        if not difference <= ALLOWED:
            raise TrainingFailed(f"{path}: gives other values than the model, by {difference:.2g}; it was not written")
        write_atomically(path, content)
    return found


def _difference(half: Half, run: Callable[[Tensor], Any]) -> float:
    """The largest difference from the model over batches of several sizes, relative to its largest value."""
    worst = 0.0
    for size in BATCHES:
        for ours, theirs in zip(half.module(half.example(size)), run(half.example(size)), strict=True):
            error = (ours - torch.as_tensor(theirs)).abs().max() / ours.abs().max().clamp(min=1.0)
            worst = max(worst, error.item())
    return worst


def _onnx(half: Half) -> tuple[bytes, Callable[[Tensor], Any]]:
    import onnx
    import onnxruntime  # type: ignore[import-untyped]
    import onnxscript  # noqa: F401

    with _quiet():
        given: dict[str, Any] = {"input_names": [half.takes], "output_names": list(half.gives)}
        program = torch.onnx.export(
            half.module, (half.example(2),), dynamo=True, dynamic_shapes=({0: Dim("batch")},), verbose=False, **given
        )
    assert program is not None, "with dynamo=True there is one"
    proto = program.model_proto
    proto.doc_string = half.about
    proto.metadata_props.add(key="about", value=half.about)
    onnx.checker.check_model(proto)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    return content, lambda x: session.run(None, {half.takes: x.numpy()})


def _torch(half: Half) -> tuple[bytes, Callable[[Tensor], Any]]:
    with _quiet():
        program = torch.export.export(half.module, (half.example(2),), dynamic_shapes=({0: Dim("batch")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"about.txt": half.about})
    buffer.seek(0)
    loaded = torch.export.load(buffer).module()
    return buffer.getvalue(), loaded


FORMATS: dict[str, tuple[str, Callable[[Half], tuple[bytes, Callable[[Tensor], Any]]]]] = {
    "onnx": ("onnx", _onnx),
    "torch": ("pt2", _torch),
}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters print and log of themselves."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
