"""What is timed: the settings of a config, and its data, or random ones of their shape where they are not at hand."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch.utils.data import Dataset

from vae.data import DATASETS, Data, DataSettings, Split, data_root, load_data
from vae.data.files import torchvision_datasets
from vae.errors import DataError
from vae.training import Settings, read_settings
from vae.training.build import build_model, resolve
from vae.training.checks import check

TORCHVISION = {name: row.torchvision for name, row in DATASETS.items() if row.torchvision}
STAND_IN_SIZE = 50_000  # random images in the place of data that are not at hand


def prepare(config: str, overrides: Sequence[str], random: bool = False) -> tuple[Settings, Data, bool]:
    """The settings, checked, the data to step on, in whole minibatches, and whether these are random.

    They are random if that is asked for, or if the data set of the config is not at hand.
    """
    settings, shape, kind = resolve(read_settings(config, overrides))
    random = random or not at_hand(settings)
    data = random_data(settings, shape, kind) if random else load_data(settings.data)
    settings, data = in_whole_batches(settings, data)
    check(settings, data, build_model(settings.model, shape, settings.train.seed))
    return settings, data, random


def in_whole_batches(settings: Settings, data: Data) -> tuple[Settings, Data]:
    """Minibatches no larger than the data, and as many data as make all minibatches the same size."""
    size = min(settings.train.batch_size, len(data.train))
    settings = replace(settings, train=replace(settings.train, batch_size=size))
    return settings, replace(data, train=data.train.first(len(data.train) // size * size))


def at_hand(settings: Settings) -> bool:
    """Whether the files of the data are there; nothing is downloaded. Data of the user's own have to be."""
    if settings.data.name in TORCHVISION:
        return torchvision_images(settings.data) is not None
    if settings.data.name != "frey_face":
        return True
    try:
        DATASETS["frey_face"](data_root(settings.data.root), 0)
    except DataError:
        return False
    return True


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


def random_data(settings: Settings, shape: tuple[int, ...], kind: Any) -> Data:
    """Random bytes in the place of a data set of images."""
    block = settings.data
    count = block.train_size or STAND_IN_SIZE
    x = torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    binary = block.pixels in ("threshold", "static")
    if binary:
        x >>= 7
    train = Split(x, None, torch.arange(count), 1.0 if binary else 255.0, dynamic=block.pixels == "dynamic")
    return Data(block, shape, kind, f"{count:,} random images of its shape", train, train.first(1))
