"""The published data sets themselves, where VAE_DATA names their folder."""

import os
import shutil
from pathlib import Path

import pytest
import torch

import vae
from vae.errors import DataError

pytestmark = pytest.mark.real_data
ROOT = Path(os.environ.get("VAE_DATA", "."))


def entropy(split):
    """The mean summed binary entropy: the floor of grey cross-entropy, nats."""
    x = split.images(dtype=torch.float64).flatten(1)
    terms = torch.special.entr(x) + torch.special.entr(1 - x)
    return terms.sum(1).mean().item()


@pytest.mark.parametrize(
    ("name", "test", "train"), [("mnist", 45.5345, 45.7568), ("fashion_mnist", 189.8583, 188.2811)]
)
def test_images_are_the_published_ones(name, test, train):
    data = vae.load_data(name)
    assert data.shape == (1, 28, 28)
    assert (len(data.train), len(data.test)) == (60_000, 10_000)
    assert entropy(data.test) == pytest.approx(test, abs=5e-4)
    assert entropy(data.train) == pytest.approx(train, abs=5e-4)
    assert data.test.y[:4].tolist() == {"mnist": [7, 2, 1, 0], "fashion_mnist": [9, 2, 1, 1]}[name]


def test_digits_over_256_have_a_higher_floor_of_cross_entropy():
    floors = [entropy(vae.load_data("mnist", pixels=pixels).test) for pixels in ("grey", "grey_256")]
    assert floors[1] - floors[0] == pytest.approx(1.2963, abs=5e-4)


def test_lairds_selection_is_the_last_55000_of_the_file():
    whole = vae.load_data("mnist")
    data = vae.load_data("mnist", train_size=55_000, train_from="end", validation_size=5_000)
    assert torch.equal(data.train.x, whole.train.x[5_000:])
    assert torch.equal(data.validation.x, whole.train.x[:5_000])


def test_frey_faces_random_and_block():
    random = vae.load_data("frey_face")
    assert random.shape == (1, 28, 20)
    assert (len(random.train), len(random.test)) == (1500, 465)
    x = torch.cat([random.train.x, random.test.x]).double()
    assert (x.min(), x.max()) == (8, 238)
    assert x.mean().item() == pytest.approx(154.4609, abs=1e-4)
    block = vae.load_data("frey_face", split="block")
    assert (len(block.train), len(block.test)) == (1965 - 465 - 30, 465)

    def nearest(data):  # the median over test frames of the distance to the nearest training frame
        return torch.cdist(data.test.images().flatten(1), data.train.images().flatten(1)).min(1).values.median()

    assert nearest(block) > 1.2 * nearest(random)  # neighbours of the video are out of training


@pytest.fixture
def copy(tmp_path):
    shutil.copytree(ROOT / "MNIST", tmp_path / "MNIST")
    return tmp_path


@pytest.mark.parametrize("harm", ["flip", "truncate", "swap"])
def test_a_damaged_raw_file_is_named(copy, harm):
    path = copy / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    if harm == "flip":
        content[12_345_678] ^= 1
    path.write_bytes(content if harm == "flip" else content[:-1000] if harm == "truncate" else b"another file")
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte: the file is truncated or altered.*delete"):
        vae.load_data("mnist", root=str(copy))


def test_static_mnist_is_binary_and_fits_a_bernoulli():
    data = vae.load_data("mnist", pixels="static", train_size=1000)
    assert data.kind == "binary"
    assert set(data.train.x.unique().tolist()) == {0, 1}
