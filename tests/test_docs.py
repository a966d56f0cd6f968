"""README.md, CONTRIBUTING.md and docs/: commands that their scripts accept, names that exist, and commands that run."""

import argparse
import ast
import itertools
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import vae
from vae.config import load_yaml, override, read_grid, with_values
from vae.training import read_settings

ROOT = Path(__file__).parent.parent
SOURCE = Path(vae.__file__).parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)
SCRIPT = re.compile(r"(?:scripts|benchmarks)/(\w+)\.py")
NOT_HERE = re.compile(
    r"mnist|cifar|frey|jax|^(pip|pytest|ruff|mypy)\b"
)  # needs a data set, or is not about the library

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(page):
    """The fenced blocks of a page in order: (language, what it holds), a bash block command by command."""
    for language, text in BLOCK.findall(page.read_text()):
        if language == "bash":
            yield from ((language, part) for line in text.splitlines() for part in line.split(" && "))
        else:
            yield language, text


def script_commands(page):
    """The commands of a page that start a script: of its bash blocks, and within a sentence (`train.py --list`)."""
    found = [text for language, text in blocks(page) if language == "bash" and SCRIPT.search(text)]
    inline = (" ".join(text.split()) for text in re.findall(r"`([^`]+)`", BLOCK.sub("", page.read_text())))
    for text in inline:
        name, space, _ = text.partition(" ")
        if SCRIPT.search(text) and space:
            found.append(text)
        elif space and (ROOT / "scripts" / name).is_file():
            found.append(f"python scripts/{text}")
    return found


class Accepted(BaseException):
    """A script has parsed its arguments; what it does next is not of interest."""


def arguments(command, monkeypatch, capsys):
    """The arguments of a command by its script's own parser; the test fails with the script's message if it refuses."""
    words = shlex.split(command, comments=True)
    place = next(i for i, word in enumerate(words) if SCRIPT.fullmatch(word))
    parse_args = argparse.ArgumentParser.parse_args

    def accept(self, args=None, namespace=None):
        raise Accepted(parse_args(self, args, namespace))

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", accept)
        patch.setattr(sys, "argv", words[place:])
        patch.syspath_prepend(ROOT / "benchmarks")  # whose files import each other
        try:
            runpy.run_path(words[place], run_name="__main__")
        except Accepted as accepted:
            return accepted.args[0]
        except SystemExit:
            pytest.fail(f"{command}: {capsys.readouterr().err}")
    return pytest.fail(f"{command}: reads no arguments")


def test_readme_is_short_and_has_the_two_commands():
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 150
    commands = [command for language, command in blocks(ROOT / "README.md") if language == "bash"]
    assert commands[:2] == ["pip install -e .", "python scripts/train.py --config configs/digits_d2.yaml"]
    assert 'pip install -e ".[dev]" && pytest' in text.splitlines()  # the line that .ci/run reads


@pytest.mark.parametrize(
    "command",
    sorted({command for page in PAGES for command in script_commands(page) if "jax_aevb" not in command}),
)
def test_scripts_accept_the_commands(command, in_root, monkeypatch, capsys):
    args = arguments(command, monkeypatch, capsys)
    config = getattr(args, "config", None) or "configs/digits_d2.yaml"  # what a resumed run may set, any config may
    raw = override(load_yaml(ROOT / config), getattr(args, "set", ()))
    grid = read_grid(getattr(args, "grid", ()))
    for values in itertools.product(*grid.values()):
        read_settings(with_values(raw, dict(zip(grid, values, strict=True))))


@every_page
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)\s#]*)#?([^)\s]*)\)", page.read_text()):
        if target.startswith("http"):
            continue
        there = page if not target else page.parent / target
        assert there.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", there.read_text(), flags=re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in slugs, f"{target}#{anchor}"


@every_page
def test_every_file_that_is_named_is_there(page):
    text = page.read_text()
    for name in re.findall(r"\b(?:configs|scripts|notebooks|src|tests|benchmarks|docs)/[\w/]+\.\w+", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", text):
        folders = ROOT, SOURCE, SOURCE / "likelihoods", ROOT / "scripts"
        assert any((folder / name).exists() for folder in folders), name


@every_page
def test_python_blocks_are_python_and_use_names_that_exist(page):
    for language, text in blocks(page):
        if language == "python":
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vae":
                    assert hasattr(vae, node.attr), f"vae.{node.attr}"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # what CFF 1.2.0 requires
    assert citation["version"] == vae.__version__
    assert citation["references"][0]["title"] == "Auto-encoding variational Bayes"


def runnable(page):
    return [
        (language, text)
        for language, text in blocks(page)
        if language in ("bash", "python") and not NOT_HERE.search(text)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if runnable(page)], ids=lambda page: page.name)
def test_what_needs_no_data_set_runs_as_it_stands(page, tmp_path):
    for folder in ("configs", "scripts", "benchmarks"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    binaries = Path(sys.executable).parent
    environment = {**os.environ, "PATH": f"{binaries}:{os.environ['PATH']}", "PYTHONPATH": str(SOURCE.parent)}
    for language, text in runnable(page):
        command = ["bash", "-euc", text] if language == "bash" else [sys.executable, "-c", text]
        result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, f"{text}\n{result.stdout}\n{result.stderr}"


def test_the_reference_has_every_public_name_once():
    names = re.findall(r"^\.\. auto\w+:: vae\.(\w+)$", (ROOT / "docs" / "reference.md").read_text(), flags=re.MULTILINE)
    assert sorted(names) == sorted(set(vae.__all__) - {"__version__"})


def test_the_pages_become_a_site_without_a_warning(tmp_path):
    pytest.importorskip("sphinx", reason="the extra `docs` is not installed")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "p(x|z)" in (tmp_path / "docs" / "reference.html").read_text()
