"""What a newcomer finds: the notebook, small files, and nothing that does not belong."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import torch

import vae
from vae.commands import plot, train
from vae.evaluation import evaluate_bound
from vae.training import checkpoint

ROOT = Path(__file__).parent.parent
COURSE = sorted((ROOT / "notebooks").glob("*.ipynb"))
RUNS = ("mnist_d2", "mnist_d20")


def tracked():
    result = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in result.stdout.splitlines() if (ROOT / name).is_file()]


def test_the_ignored_data_folder_does_not_swallow_the_package():
    assert any(path.is_relative_to(ROOT / "src" / "vae" / "data") for path in tracked())


def test_files_are_small_and_hold_no_data_sets():
    for path in tracked():
        if path.parts[-3:-1] in {(name, "checkpoints") for name in RUNS}:  # two trained models, of 16-bit weights alone
            assert path.stat().st_size < 2_400_000, path
            continue
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


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*/*.ipynb")), ids=lambda path: path.stem)
def test_a_tour_says_the_commands_of_its_own_document(path):
    text = "".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    assert set(re.findall(r"reproduce.py (\w+)", text)) == set(re.findall(r"runs/reproduce/(\w+)", text)) == {path.stem}


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, marks=[pytest.mark.slow] * (path.stem != "first_steps"), id=path.stem) for path in COURSE],
)
def test_a_notebook_runs_in_under_two_minutes(path):
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    notebook = nbformat.read(path, as_version=4)
    client.NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(path.parent))
    assert all(cell.get("execution_count") for cell in notebook.cells if cell["cell_type"] == "code")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_to_start_from_opens_without_training_and_has_its_digest(name, tmp_path):
    folder = ROOT / "notebooks" / "runs" / name
    model = vae.load(folder)
    assert model.sample(3, seed=0).shape == (3, 1, 28, 28)
    assert next(model.parameters()).dtype == torch.float32
    page = (folder.parent / "README.md").read_text()
    assert checkpoint.sha256_of(folder / "checkpoints" / "last.safetensors") in page
    assert plot.main_samples([str(folder), "--count", "4", "--out", str(tmp_path)]) == 0


@pytest.mark.real_data
@pytest.mark.parametrize("name", RUNS)
def test_a_run_to_start_from_reaches_what_its_page_says_and_is_not_resumed(name, capsys):
    folder = ROOT / "notebooks" / "runs" / name
    elbo = evaluate_bound(vae.load(folder), vae.load_data("mnist").test, name="test").elbo.mean().item()
    row = next(
        line for line in (folder.parent / "README.md").read_text().splitlines() if line.startswith(f"| `{name}`")
    )
    assert float(row.split("|")[3].split()[0]) == pytest.approx(elbo, abs=0.006)
    assert train.main(["--resume", str(folder)]) == 2
    assert "the run cannot be resumed" in capsys.readouterr().err
