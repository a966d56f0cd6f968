import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent


def pytest_collection_modifyitems(items):
    """Tests on the real data run where VAE_DATA names their folder, and say why where they do not."""
    if "VAE_DATA" not in os.environ:
        skip = pytest.mark.skip(reason="VAE_DATA names no folder with the real data sets")
        for item in items:
            if "real_data" in item.keywords:
                item.add_marker(skip)


@pytest.fixture
def float64():
    """Mathematical tests: new tensors are float64, so that 1e-10 means something."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def in_root(monkeypatch):
    """Run from the root of the repository, as its commands are."""
    monkeypatch.chdir(ROOT)
    return ROOT
