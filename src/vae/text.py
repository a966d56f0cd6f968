"""Tables and numbers for people."""

from collections.abc import Mapping, Sequence
from typing import Any

# Of values that are not comparable with log-densities: in a title, and as a sentence.
NO_DENSITY = "grey cross-entropy, no density"
NOT_A_DENSITY = "grey cross-entropy is not a density of x: compare these values only with one another"


def plus_minus(mean: float, stderr: float | None, mean_format: str = ".2f", stderr_format: str = ".2f") -> str:
    """A mean ± its standard error, or the mean alone if there is none."""
    return f"{mean:{mean_format}}" + ("" if stderr is None else f" ± {stderr:{stderr_format}}")


def mean_row(name: str, record: Mapping[str, Any]) -> str:
    """A line of a table: a name, a mean, and its standard error if there is one."""
    stderr = "-" if record["stderr"] is None else f"{record['stderr']:.4f}"
    return f"{name:12} {record['mean']:11.4f} {stderr:>11}"  # a space between, whatever the size of the numbers


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown, its columns aligned for reading unrendered; a cell is text, whatever it holds."""
    cells = [
        [text.replace("|", r"\|").replace("<", "&lt;").replace("\n", " ") for text in row] for row in (head, *rows)
    ]
    lines = [cells[0], ["---"] * len(head), *cells[1:]]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = (" | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"| {text} |\n" for text in texts)
