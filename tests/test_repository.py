"""What a newcomer finds: the notebook, small files, and nothing that does not belong."""

import json
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "notebooks" / "first_steps.ipynb"


def tracked():
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in result.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_ignored_data_folder_does_not_swallow_the_package():
    assert any(path.is_relative_to(ROOT / "src" / "vae" / "data") for path in tracked())


def test_files_are_small_and_hold_no_data_sets():
    for path in tracked():
        assert path.stat().st_size < 1_500_000, path
        if "records" not in path.parts:  # of documents: pictures, each at most a megabyte
            assert path.suffix not in {".npz", ".safetensors", ".mat", ".gz"}, path


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").rglob("*.ipynb")), ids=lambda path: path.stem)
def test_a_notebook_is_executed_and_small(path):
    cells = json.loads(path.read_text())["cells"]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert all(cell["execution_count"] for cell in code)
    assert not any(output["output_type"] == "error" for cell in code for output in cell["outputs"])
    assert any("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])
    assert path.stat().st_size < 1_500_000


def test_the_notebook_runs_in_under_two_minutes():
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    client.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(ROOT))
    assert all(cell.get("execution_count") for cell in notebook.cells if cell["cell_type"] == "code")
