"""Data sets as tensors in memory.

`datasets` is the table of them, `files` and `pictures` read them, `arrays` are a user's own, `splits` and `pixels`
prepare them, and `batches` orders them.
"""

from vae.data.arrays import Doubt, outliers
from vae.data.batches import SINGLE, Batch, Loader, Resident
from vae.data.datasets import DATASETS
from vae.data.pixels import PIXELS
from vae.data.splits import Data, DataSettings, Split, data_root, kind_of, load_data, read_user_split, warn_of_range
