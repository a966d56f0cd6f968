"""The page: the networks, the codes and pictures of a split, and the program, in one file."""

import base64
import copy
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from vae.data import Split
from vae.distributions import Normal
from vae.errors import UsageError
from vae.evaluation import evaluate_bound, posterior_codes
from vae.explorer.network import Weights, operations
from vae.likelihoods import Bernoulli, Gaussian, GreyCrossEntropy
from vae.models import VAE

HERE = Path(__file__).parent
ACROSS = 50  # pictures in a row of the sheet


def explorer_page(model: VAE, split: Split, *, name: str, split_name: str, classes: tuple[str, ...] = ()) -> str:
    """The HTML of a latent explorer: codes and pictures of a split, encoder and decoder, and what they need.

    It opens from disk and asks no network for anything. UsageError if the page cannot hold the model.
    """
    check(model)
    weights, model = Weights(), copy.deepcopy(model).double().cpu()  # the caller's stays as it was
    codes = posterior_codes(model, split, name=split_name)
    bound = evaluate_bound(model, split, name=split_name)
    assert bound.kl_per_dimension is not None, "checked: a diagonal Gaussian"
    decoder = operations(model.decoder, (model.latent_dim,), weights)
    encoder = operations(model.encoder, model.data_shape, weights)
    columns: dict[str, Any] = {}
    if split.labels is not None:
        columns["class"] = {"values": split.labels.tolist(), "names": list(classes)}
    columns["bound"] = {"values": _rounded(bound.elbo)}
    columns["KL"] = {"values": _rounded(bound.kl)}
    channels, height, width = model.data_shape
    data = {
        "name": name,
        "split": split_name,
        "shape": [height, width, channels],
        "latents": model.latent_dim,
        "density": model.is_density,
        "kl": _rounded(bound.kl_per_dimension, 4),
        "likelihood": _likelihood(model),
        "encoder": encoder,
        "decoder": decoder,
        "weights": weights.text(),
        "codes": base64.b64encode(codes.numpy().astype("<f4").tobytes()).decode(),
        "index": split.index.tolist(),
        "columns": columns,
        "sheet": _sheet(split.images()),
        "across": ACROSS,
    }
    text = json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    page = (HERE / "page.html").read_text()
    for key, file in (("STYLE", "page.css"), ("RUNTIME", "runtime.js"), ("PROGRAM", "page.js")):
        page = page.replace(f"/*{key}*/", (HERE / file).read_text())
    return page.replace("/*DATA*/", text)


def check(model: VAE) -> None:
    """UsageError, in one sentence, if the page cannot show the model."""
    shape, q = model.data_shape, model.posterior_head._at_zero
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise UsageError(f"the explorer is for pictures of one or three channels; these data have shape {shape}")
    if model.classes:
        raise UsageError("the explorer's networks take no label, and this model is conditional on one")
    if not isinstance(q, Normal) or not isinstance(model.prior, Normal):
        raise UsageError("the explorer is for a diagonal Gaussian posterior and a standard normal prior")
    if getattr(model.likelihood_head, "standardise", False):
        raise UsageError("the explorer knows no standardised likelihood; train with model.likelihood.standardise=false")
    if not isinstance(model.likelihood_head, Bernoulli | GreyCrossEntropy | Gaussian):
        kind = type(model.likelihood_head).__name__
        raise UsageError(f"the explorer knows bernoulli, grey_cross_entropy and gaussian likelihoods, not {kind}")


def _likelihood(model: VAE) -> dict[str, Any]:
    """How means and log p(x|z) follow from what the decoder gives."""
    head: Any = model.likelihood_head
    if not isinstance(head, Gaussian):
        return {"kind": "bernoulli"}
    made = {"kind": "gaussian", "mean": head.mean, "floor": head.floor, "variance": head.variance}
    if head.variance in ("per_pixel", "shared"):
        channels, height, width = model.data_shape
        s = head.log_variance.detach().double().expand(channels, height, width).permute(1, 2, 0)
        return {**made, "s": _rounded(s.flatten() if head.variance == "per_pixel" else s.flatten()[:1], 4)}
    return {**made, "s": [2 * math.log(head.std)]}


def _rounded(values: Tensor, digits: int = 2) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def _sheet(images: Tensor) -> str:
    """All pictures (N, C, H, W), row by row, as one PNG in a data address."""
    pixels = (images.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    n, height, width, channels = pixels.shape
    rows = -(-n // ACROSS)
    whole = np.zeros((rows * ACROSS, height, width, channels), np.uint8)
    whole[:n] = pixels
    tiled = whole.reshape(rows, ACROSS, height, width, channels).transpose(0, 2, 1, 3, 4)
    sheet = tiled.reshape(rows * height, ACROSS * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(sheet[..., 0] if channels == 1 else sheet).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
