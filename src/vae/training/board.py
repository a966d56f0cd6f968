"""TensorBoard: the metrics of a run, and pictures of what the model makes, as training goes."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vae.data import Data
from vae.errors import ConfigError
from vae.models import VAE

COUNTED = ("step", "epoch", "samples", "split")  # what places a line, and is no curve
MANIFOLD = 12  # pictures a side, at quantiles of the standard normal


class Board:
    """Writes lines of metrics as curves and, with each evaluation, pictures; it changes no bit of the model."""

    def __init__(self, folder: Path, step: int, model: Any, data: Any) -> None:
        """`step` is where a resumed run goes on: what was written later is hidden. ConfigError without the package."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ConfigError(
                f"train.tensorboard: needs the package {error.name}; install it with: pip install 'vae[tensorboard]'"
            ) from None
        self.writer: Any = SummaryWriter(folder / "tensorboard", purge_step=step + 1, flush_secs=10)
        self.pictures = pictures(model, data)

    def __call__(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """Show the lines of an epoch."""
        for line in lines:
            for key, value in line.items():
                if key not in COUNTED and isinstance(value, int | float):
                    self.writer.add_scalar(f"{key}/{line['split']}", value, line["step"])
        if len(lines) > 1:  # something was evaluated
            for name, draw in self.pictures.items():
                self.writer.add_image(name, draw(), lines[0]["step"])

    def close(self) -> None:
        """Write what is still in memory."""
        self.writer.close()


def pictures(model: Any, data: Any) -> dict[str, Callable[[], Tensor]]:
    """What is drawn of a VAE of pictures, by name: (C, H, W) on [0, 1]; nothing of other models and data."""
    if not isinstance(model, VAE) or len(model.data_shape) != 3 or model.data_shape[0] not in (1, 3):
        return {}
    found = {"samples": lambda: tiled(model.sample(64), 8)}
    if isinstance(data, Data):
        first = (data.validation or data.train).first(10)
        x, given = first.images(), model.with_labels(first.labels)
        found["reconstructions"] = lambda: tiled(torch.cat([x, given.reconstruct(x).to(x)]), 10)
    if model.latent_dim == 2 and not model.classes:
        share = (torch.arange(MANIFOLD) + 0.5) / MANIFOLD
        across, up = torch.meshgrid(*[torch.special.ndtri(share)] * 2, indexing="xy")
        found["manifold"] = lambda: tiled(model.decode(torch.stack([across, up.flip(0)], -1).view(-1, 2)), MANIFOLD)
    return found


def tiled(images: Tensor, across: int) -> Tensor:  # (N, C, H, W) -> (C, rows H, across W)
    """Pictures row by row, so many in each."""
    _, channels, height, width = images.shape
    rows = images.clamp(0, 1).cpu().view(-1, across, channels, height, width).permute(2, 0, 3, 1, 4)
    return rows.reshape(channels, -1, across * width)
