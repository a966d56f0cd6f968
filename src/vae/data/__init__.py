"""Data sets as resident tensors.

`sets`: what they are; `files`: how they are read; `pixels`: what a pixel means; `batches`: in which order they come.
"""

from vae.data.batches import Loader, Resident
from vae.data.pixels import PIXELS
from vae.data.sets import DATASETS, GREY_LEVELS, IMAGE_SHAPES, Data, Split, kind_of, load_data, read_user_split

__all__ = [
    "DATASETS",
    "GREY_LEVELS",
    "IMAGE_SHAPES",
    "PIXELS",
    "Data",
    "Loader",
    "Resident",
    "Split",
    "kind_of",
    "load_data",
    "read_user_split",
]
