"""reproduce.py: the figures and numbers of a document, made again, beside what it published."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from vae.commands.base import Parser, command, positive
from vae.errors import UsageError


def _parser() -> Parser:
    parser = Parser(
        "reproduce",
        "Make the figures and numbers of a document again: train what no record holds yet, draw its figures, and\n"
        "write a report with the published numbers beside ours (DIR/report.html, DIR/report.md). What was\n"
        "stopped goes on.",
        "laird --profile quick",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="the document; --list shows which there are")
    parser.add_argument("--list", action="store_true", help="the documents, and how long each takes")
    parser.add_argument("--figure", metavar="F", help="only what this needs, such as 4.1 or 'table 4.3'")
    parser.add_argument(
        "--profile",
        choices=("quick", "paper"),
        default="quick",
        help="quick (default): one short run for each setting that has no record, to see that all works. paper: the "
        "full settings, several seeds",
    )
    parser.add_argument("--out", metavar="DIR", help="where everything is written (default: runs/reproduce/NAME)")
    parser.add_argument("--processes", type=positive, metavar="N", help="how many runs to train at a time")
    parser.add_argument("--retrain", action="store_true", help="do not count the records that the repository holds")
    parser.add_argument("--table", action="store_true", help="only print the numbers of the records; trains nothing")
    parser.add_argument("--show", metavar="EXPERIMENT", help="print the command that trains it, and train nothing")
    parser.add_argument("--json", action="store_true", help="print only one JSON object, the rows of the table")
    return parser


@command
def main(argv: Sequence[str] | None = None) -> None:
    """Reproduce a document."""
    args = _parser().parse_args(argv)
    if not args.name and not args.list and not args.table:
        raise UsageError("reproduce.py: name a document (--list shows which there are); see reproduce.py --help")
    if (args.json or args.figure) and not args.name:
        raise UsageError("reproduce.py: --json and --figure are for one document; name it")

    from vae.reproduce import DOCUMENTS, records, running
    from vae.reproduce.report import COLUMNS, cells, results
    from vae.reproduce.table import of_figure, table
    from vae.text import markdown_table

    if args.list:
        for document in DOCUMENTS.values():
            minutes = max(1.0, sum(e.minutes * len(e.seeds) for e in document.experiments))
            length = f"{minutes / 60:.1f} hours" if minutes > 90 else f"{minutes:.0f} min"
            print(f"{document.name:12}{document.title}; {length} of one thread")
        return
    if args.name is None:
        print(results(DOCUMENTS.values()), end="")
        return
    if args.name not in DOCUMENTS:
        raise UsageError(f"{args.name}: there is no such document; there are {', '.join(DOCUMENTS)}")
    document = DOCUMENTS[args.name]
    if args.show:
        print(shlex.join(running.command(document, args.show, args.profile)))
        return
    files: list[Path] = []
    if args.table:
        found = records.chosen(document, running.folders(document, args.out))
        rows = of_figure(document, table(document, found), args.figure)
    else:
        out = Path(args.out or f"runs/reproduce/{args.name}")
        how = {"figure": args.figure, "processes": args.processes, "again": args.retrain, "say": _say}
        rows, files = running.reproduce(document, profile=args.profile, out=out, **how)
    if args.json:
        print(json.dumps(rows, allow_nan=False))
    else:
        print(markdown_table(("figure", *COLUMNS), [[row["figure"], *cells(row)] for row in rows]), end="")
        print(*files, sep="\n", end="\n" if files else "")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
