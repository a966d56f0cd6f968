"""The report of a document: what is replicated, its figures, its numbers beside ours; as Markdown and as HTML."""

import base64
import html
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from markdown_it import MarkdownIt
from PIL import Image

from vae.files import write_atomically
from vae.reproduce.document import Document, Figure
from vae.reproduce.records import COMMITTED, Record, Records, chosen
from vae.reproduce.table import Row, table
from vae.text import markdown_table, plus_minus


def figure_file(figure: Figure) -> str:
    """The file name of a figure, as the document numbers it."""
    return f"figure_{figure.name.replace('.', '_').replace(' ', '_')}.png"


def draw(document: Document, records: Records, out: Path, only: str | None) -> list[Path]:
    """Draw the figures whose records exist into OUT/figures."""
    made = list[Path]()
    for figure in document.figures:
        there = [name in records for name in figure.experiments]
        if only in (None, figure.name) and (all(there) or (figure.partial and any(there))):
            made.append(out / "figures" / figure_file(figure))
            made[-1].parent.mkdir(parents=True, exist_ok=True)
            of_figure = {name: records[name] for name in figure.experiments if name in records}
            figure.draw(of_figure).savefig(made[-1], dpi=100)
            picture = Image.open(made[-1]).convert("RGB").quantize(128, method=Image.Quantize.FASTOCTREE)
            picture.save(made[-1], optimize=True)  # a quarter of the bytes
    return made


def write(document: Document, records: Records, rows: Sequence[Row], out: Path) -> list[Path]:
    """Write report.md, and report.html with the pictures in it."""
    text = "\n".join(_parts(document, records, rows, out))
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = re.sub('src="([^"]+)"', lambda m: _inside(m, out), body)
    page = _HTML.format(title=html.escape(document.title), body=body)
    for name, content in {"report.md": text, "report.html": page}.items():
        write_atomically(out / name, content.encode())
    return [out / "report.md", out / "report.html"]


def _inside(source: re.Match[str], out: Path) -> str:
    """The picture that a page refers to, as a part of the page."""
    return f'src="data:image/png;base64,{base64.b64encode((out / source[1]).read_bytes()).decode()}"'


def _parts(document: Document, records: Records, rows: Sequence[Row], out: Path) -> Iterator[str]:
    """The report from top to bottom, as Markdown."""
    yield f"# {document.title}\n"
    yield _code(f"python scripts/reproduce.py {document.name} --profile paper --out notebooks/{document.name}")
    yield "".join(f"- {item}\n" for item in (*_verdicts(rows), *document.notes))
    for label in document.labels():
        of_label = [row for row in rows if row["figure"] == label]
        figure = next((f for f in document.figures if f.name == label), None)
        yield "## " + (f"Figure {label}" if label[:1].isdigit() else label.capitalize()) + "\n"
        if figure:
            yield f"{figure.caption}\n"
        yield _code(f"python scripts/reproduce.py {document.name} --figure '{label}' --profile paper")
        if figure and (out / "figures" / figure_file(figure)).exists():
            yield f"![{figure.caption}](figures/{figure_file(figure)})\n"
        elif figure:
            yield "Not drawn: there are no records of it yet.\n"
        if figure and figure.seen:
            yield f"{figure.seen}\n"
        if of_label:
            yield markdown_table(COLUMNS, [cells(row) for row in of_label])
    for other in document.tables:
        if lines := other.rows(records):
            yield f"## {other.title}\n"
            yield markdown_table(other.columns, lines)
    if document.details:
        yield "## Where the document's text and its code disagree\n"
        yield markdown_table(("the text", "the code", "ours"), document.details)
    yield "## What the numbers were made with\n"
    yield markdown_table(_MADE, [_made(name, found) for name, found in records.items()])


def _code(line: str) -> str:
    return f"```bash\n{line}\n```\n"


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """How many rows have each verdict, the good ones first."""
    words = ["agrees", "holds", "measured", "mixed", "differs", "does not hold", "not replicated"]
    return [f"{word}: {found}" for word in words if (found := sum(row["verdict"] == word for row in rows))]


# ------------------------------------------------------------------------------------- rows of tables

COLUMNS = ("quantity", "published", "ours", "difference, 95 %", "n", "verdict", "reason")
_MADE = ("experiment", "profile", "seeds", "minutes per seed", "processor", "threads", "torch", "commit")


def cells(row: Row) -> list[str]:
    """A row of the table as text; the interval is of ours less the published number, or of ours."""
    number = "-" if row["ours"] is None else plus_minus(row["ours"], row["stderr"], ".5g", ".2g")
    interval = "-" if row["interval"] is None else "{:.3g} to {:.3g}".format(*row["interval"])
    published = "-" if row["published"] is None else f"{row['published']:g}"
    return [row["quantity"], published, number, interval, str(row["n"]), row["verdict"], row["reason"]]


def _made(name: str, found: Sequence[Record]) -> list[str]:
    first, minutes = found[0], [record.seconds / 60 for record in found]
    made = [", ".join(str(r.seed) for r in found), f"{sum(minutes) / len(minutes):.1f}", first.processor]
    return [name, first.profile, *made, str(first.threads), first.versions["torch"], (first.commit or "-")[:10]]


def results(documents: Iterable[Document]) -> str:
    """The table of README.md: the published numbers that are headlines beside ours, where there is a record."""
    head = ("document", "figure", *COLUMNS[:-1])
    lines = []
    for document in documents:
        main = replace(document, quantities=tuple(q for q in document.quantities if q.headline))
        rows = table(main, chosen(document, [COMMITTED / document.name]))
        link = f"[{document.name}](notebooks/{document.name}/report.md)"
        lines += [[link, row["figure"], *cells(row)[:-1]] for row in rows if row["published"] is not None and row["n"]]
    return markdown_table(head, lines)


_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img {{ max-width: 100%; }} pre {{ background: #f4f4f4; padding: .5rem; overflow-x: auto; }}
table {{ display: block; overflow-x: auto; border-collapse: collapse; font-size: .85rem; }}
td, th {{ padding: .2rem .6rem; text-align: left; border-bottom: 1px solid #ddd; vertical-align: top; }}
</style>
{body}
</html>
"""
