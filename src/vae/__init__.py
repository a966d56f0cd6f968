"""Auto-encoding variational Bayes (Kingma & Welling 2013), right, fast and pleasant.

    data = vae.load_data("digits", pixels="static")
    model = vae.build("configs/digits_d2.yaml")
    run = vae.fit(model, data, epochs=20, out="runs/x")
    model = vae.load("runs/x")

The public names are those of `__init__.pyi`, imported when they are first used: `import vae` costs next to nothing.
"""

import ast
import importlib
from pathlib import Path
from typing import Any

__version__ = "0.1.0"

_STUB = ast.parse(Path(__file__).with_suffix(".pyi").read_text()).body
_PUBLIC = {alias.name: line.module for line in _STUB if isinstance(line, ast.ImportFrom) for alias in line.names}
__all__ = ["__version__", *sorted(_PUBLIC)]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'vae' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_PUBLIC[name]), name)  # type: ignore[arg-type]
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
