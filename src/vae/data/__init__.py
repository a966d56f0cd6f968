"""Data sets as resident tensors.

`datasets`: what there is; `files`: how it is read; `splits`: how it is split; `pixels`: what a pixel means; `batches`:
in which order the data come.
"""

from vae.data.batches import Loader, Resident
from vae.data.datasets import DATASETS
from vae.data.pixels import PIXELS
from vae.data.splits import Data, DataSettings, Split, data_root, kind_of, load_data, read_user_split

__all__ = [
    "DATASETS",
    "PIXELS",
    "Data",
    "DataSettings",
    "Loader",
    "Resident",
    "Split",
    "data_root",
    "kind_of",
    "load_data",
    "read_user_split",
]
