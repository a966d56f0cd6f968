"""The evaluations that are written into a run directory."""

import json
from pathlib import Path
from typing import Any


def read_evaluation(run: Path, split: str = "test") -> dict[str, Any] | None:
    """The evaluation of a whole split in a run directory, if there is one."""
    try:
        record = json.loads((run / "evaluations" / f"{split}.json").read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and "step" in record else None
