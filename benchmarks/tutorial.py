"""A training loop as tutorials write it, on the networks of a config: what benchmark.py compares with."""

import itertools
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader, Dataset
from vae.training.products import TRUE, multiplied

from vae.algorithms import OPTIMIZERS
from vae.data import Data, Split
from vae.data.files import torchvision_datasets
from vae.data.sets import DataSettings, data_root
from vae.models import VAE
from vae.training import Settings
from vae.training.build import build_model, build_objective, choose_device
from vae.training.settings import ModifierSettings

TORCHVISION = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "cifar10": "CIFAR10", "svhn": "SVHN"}


def tutorial_step(settings: Settings, data: Data) -> tuple[Callable[[], None], str]:
    """The next step of the loop, in float32, and the data set that it loads.

    A DataLoader in this process that decodes image by image, eager networks, the optimizer as torch gives it, and
    `loss.item()` at each step.
    """
    train = settings.train
    device = choose_device(train.device)
    model = build_model(settings.model, data.shape, train.seed).to(device).train()
    options: dict[str, Any] = train.optimizer.options
    optimizer = OPTIMIZERS[train.optimizer.name].cls(model.parameters(), **options)
    images, name = torchvision_images(data.settings), f"torchvision's {TORCHVISION.get(data.name)}"
    if images is None:
        images, name = ImageByImage(data.train), "images decoded one by one"
    loader = DataLoader(images, batch_size=train.batch_size, shuffle=True, drop_last=True)
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    loss_of = _loss(settings, model)

    def step() -> None:
        with multiplied(TRUE):
            x = next(batches)[0].to(device)
            optimizer.zero_grad()
            loss = loss_of(x)
            loss.backward()
            optimizer.step()
            loss.item()

    return step, name


def torchvision_images(settings: DataSettings) -> Dataset[Any] | None:
    """torchvision's own training data, each image decoded when it is asked for; None where they are not at hand."""
    if settings.name not in TORCHVISION:
        return None
    dataset = getattr(torchvision_datasets(), TORCHVISION[settings.name])
    from torchvision.transforms import ToTensor

    which: dict[str, Any] = {"split": "train"} if settings.name == "svhn" else {"train": True}
    try:
        return dataset(data_root(settings.root), transform=ToTensor(), **which)
    except RuntimeError:  # what torchvision says of files that are missing
        return None


class ImageByImage(Dataset[tuple[Tensor, int]]):
    """A split, decoded as torchvision's data sets are: bytes, a PIL image, a tensor; what is no picture, as it is."""

    def __init__(self, split: Split) -> None:
        self.x, self.pictures = split.x, None
        if split.x.dtype == torch.uint8 and split.x.shape[1:-2] in ((1,), (3,)):
            levels = (split.x.float() * (255 / split.scale)).round().byte()
            self.pictures = levels.permute(0, 2, 3, 1).squeeze(3).contiguous().numpy()  # (N, H, W) or (N, H, W, 3)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        if self.pictures is None:
            return self.x[i].float(), 0
        from torchvision.transforms.functional import to_tensor

        return to_tensor(Image.fromarray(self.pictures[i])), 0


def _loss(settings: Settings, model: VAE) -> Callable[[Tensor], Tensor]:
    """The negative bound: by the textbook's formulas where they are of this config, else by its own objective."""
    objective = build_objective(settings, 1)
    kind, shape = model.noise

    def textbook(x: Tensor) -> Tensor:
        mean, log_variance = model.encoder(x).chunk(2, 1)
        z = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        cross_entropy = binary_cross_entropy_with_logits(model.decoder(z).view_as(x), x, reduction="sum")
        return cross_entropy - 0.5 * torch.sum(1 + log_variance - mean.pow(2) - log_variance.exp())

    def own(x: Tensor) -> Tensor:
        noise = (torch.randn if kind == "normal" else torch.rand)(objective.num_samples, len(x), *shape)
        return -objective(model, x, noise.to(x), {}, 0)[0].surrogate.sum()

    bound = textbook if _is_textbook(settings) else own
    return bound if settings.train.reduction == "sum" else lambda x: bound(x) / len(x)


def _is_textbook(settings: Settings) -> bool:
    """Whether the objective is a cross-entropy and the KL of a diagonal Gaussian, by one sample."""
    model, objective = settings.model, settings.objective
    return (
        model.likelihood is not None
        and model.likelihood.name in ("bernoulli", "grey_cross_entropy")
        and (model.posterior.name, model.prior.name) == ("diagonal_gaussian", "standard_normal")
        and (objective.name, objective.options["num_samples"]) == ("sgvb_b", 1)
        and settings.modifiers == ModifierSettings()
    )
