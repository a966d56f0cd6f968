"""sphinx-build -W -c docs . site: the pages, the reports and the reference from the docstrings, as a site in site/."""

import re
from typing import Any

import vae

project, author, version = "vae", "the authors of vae", vae.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
include_patterns = [
    "README.md",
    "CONTRIBUTING.md",
    "docs/*.md",
    "benchmarks/README.md",
    "notebooks/*/report.md",
    "notebooks/runs/README.md",
]
root_doc = "docs/index"
html_theme, html_title = "furo", "vae"
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"


def as_text(app: Any, what: str, name: str, thing: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with code in single backticks: nothing else in them is markup."""
    for i, line in enumerate(lines):
        parts = re.split(r"(`[^`]+`)", line)
        lines[i] = "".join(f"`{p}`" if p.startswith("`") else re.sub(r"([*|_\\])", r"\\\1", p) for p in parts)


def setup(app: Any) -> None:
    """What Sphinx calls first."""
    app.connect("autodoc-process-docstring", as_text)
