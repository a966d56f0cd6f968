"""The report of a document: what is replicated, its figures, its numbers beside ours; as Markdown and as HTML."""

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from vae.files import write_atomically
from vae.reproduce.document import Document, Figure
from vae.reproduce.records import COMMITTED, Record, Records, chosen
from vae.reproduce.table import GOOD, Row, table
from vae.text import markdown_table, plus_minus


class Block(NamedTuple):
    """A piece of a report: heading, text, code, list (of texts), table (head and rows) or image (path and caption)."""

    kind: str
    content: Any


def figure_file(figure: Figure) -> str:
    """The file name of a figure, as the document numbers it."""
    return f"figure_{figure.name.replace('.', '_').replace(' ', '_')}.png"


def draw(document: Document, records: Records, out: Path, only: str | None) -> list[Path]:
    """Draw the figures whose records exist into OUT/figures."""
    made = list[Path]()
    for figure in document.figures:
        if only in (None, figure.name) and all(name in records for name in figure.experiments):
            made.append(out / "figures" / figure_file(figure))
            made[-1].parent.mkdir(parents=True, exist_ok=True)
            figure.draw({name: records[name] for name in figure.experiments}).savefig(made[-1], dpi=100)
            Image.open(made[-1]).convert("RGB").quantize(64).save(made[-1], optimize=True)  # a third of the bytes
    return made


def write(document: Document, records: Records, rows: Sequence[Row], out: Path) -> list[Path]:
    """Write report.md and report.html."""
    blocks = list(_blocks(document, records, rows, out))
    texts = {
        "report.md": "\n".join(map(_markdown, blocks)),
        "report.html": _HTML.format(title=html.escape(document.title), body="\n".join(map(_html, blocks))),
    }
    for name, text in texts.items():
        write_atomically(out / name, text.encode())
    return [out / name for name in texts]


def _blocks(document: Document, records: Records, rows: Sequence[Row], out: Path) -> Iterable[Block]:
    """The report from top to bottom."""
    yield Block("heading", document.title)
    yield Block("code", f"python scripts/reproduce.py {document.name} --profile paper --out notebooks/{document.name}")
    yield Block("list", [*_verdicts(rows), *document.notes])
    for label in document.labels():
        of_label = [row for row in rows if row["figure"] == label]
        figure = next((f for f in document.figures if f.name == label), None)
        yield Block("subheading", f"Figure {label}" if label[:1].isdigit() else label.capitalize())
        if figure:
            yield Block("text", figure.caption)
        yield Block("code", f"python scripts/reproduce.py {document.name} --figure '{label}' --profile paper")
        if figure and (out / "figures" / figure_file(figure)).exists():
            yield Block("image", (out / "figures" / figure_file(figure), figure.caption))
        elif figure:
            yield Block("text", "Not drawn: there are no records of it yet.")
        if figure and figure.seen:
            yield Block("text", figure.seen)
        if of_label:
            yield Block("table", (COLUMNS, [cells(row) for row in of_label]))
    for other in document.tables:
        if lines := other.rows(records):
            yield Block("subheading", other.title)
            yield Block("table", (other.columns, lines))
    if document.details:
        yield Block("subheading", "Where the document's text and its code disagree")
        yield Block("table", (("the text", "the code", "ours"), document.details))
    yield Block("subheading", "What the numbers were made with")
    yield Block("table", (_MADE, [_made(name, found) for name, found in records.items()]))


def _verdicts(rows: Sequence[Row]) -> list[str]:
    """How many rows have each verdict, the good ones first."""
    words = [*GOOD, "measured", "mixed", "differs", "does not hold", "not replicated"]
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
    """The table of the README: published numbers beside ours, where there is a record, with links to the reports."""
    head = ("document", "figure", *COLUMNS[:-1])
    lines = []
    for document in documents:
        rows = table(document, chosen(document, [COMMITTED / document.name]))
        link = f"[{document.name}](notebooks/{document.name}/report.md)"
        lines += [[link, row["figure"], *cells(row)[:-1]] for row in rows if row["published"] is not None and row["n"]]
    return markdown_table(head, lines)


# ------------------------------------------------------------------------------------- Markdown and HTML


def _markdown(block: Block) -> str:
    kind, content = block
    if kind == "image":
        file, caption = content
        return f"![{caption}](figures/{file.name})\n"
    if kind == "table":
        return markdown_table(content[0], [[cell.replace("|", r"\|") for cell in row] for row in content[1]])
    if kind == "list":
        return "".join(f"- {item}\n" for item in content)
    forms = {"heading": "# {}\n", "subheading": "## {}\n", "text": "{}\n", "code": "```bash\n{}\n```\n"}
    return forms[kind].format(content)


def _html(block: Block) -> str:
    kind, content = block
    if kind == "image":
        file, caption = content
        data = base64.b64encode(file.read_bytes()).decode()
        return f'<img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">'
    if kind == "table":
        head, rows = content
        lines = [_cells("th", head), *(_cells("td", row) for row in rows)]
        return f"<div><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"
    if kind == "list":
        return f"<ul>{''.join(f'<li>{html.escape(item)}</li>' for item in content)}</ul>"
    tag = {"heading": "h1", "subheading": "h2", "text": "p", "code": "pre"}[kind]
    return f"<{tag}>{html.escape(content)}</{tag}>"


def _cells(tag: str, texts: Iterable[str]) -> str:
    return "".join(f"<{tag}>{html.escape(text)}</{tag}>" for text in texts)


_HTML = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
img {{ max-width: 100%; }} div {{ overflow-x: auto; }} pre {{ background: #f4f4f4; padding: .5rem; overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: .85rem; }} td, th {{ padding: .2rem .6rem; text-align: left;
border-bottom: 1px solid #ddd; vertical-align: top; }}
</style>
{body}
</html>
"""
