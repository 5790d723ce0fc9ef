"""`seedthink compare`: several runs side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from seedthink.cli.arguments import Parser

EXAMPLES = """Examples:
  seedthink compare runs/vapo runs/grpo
  seedthink compare runs/* --html compare.html
  seedthink compare runs/a runs/b --settings"""

COLUMNS = ("label", "command", "before", "after", "gain", "steps", "time", "rate", "memory")
HEADS = ("run", "made by", "before", "after", "points", "steps", "time", "tok/s", "GiB")


def run(arguments: Sequence[str]) -> int:
    """Print a table of the runs; optionally their settings that differ, and a page with curves."""
    parser = Parser("seedthink compare", EXAMPLES)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--html", metavar="FILE", help="write a page with accuracy over time and over steps")
    parser.add_argument("--settings", action="store_true", help="list the settings that differ")
    chosen = parser.parse_args(arguments)
    from seedthink.report.compare import differences, table, write_comparison
    from seedthink.report.run_data import principal, read_run

    runs = [principal(read_run(path)) for path in chosen.runs]
    print(in_columns(table(runs)))
    if chosen.settings:
        for key, values in differences(runs):
            print(f"{key}: {' | '.join(values)}")
    if chosen.html:
        print(write_comparison(runs, Path(chosen.html)))
    return 0


def in_columns(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows as aligned columns; a column that is empty everywhere is left out."""
    kept = [(head, name) for head, name in zip(HEADS, COLUMNS, strict=True) if any(row[name] for row in rows)]
    widths = [max(len(head), *(len(row[name]) for row in rows)) for head, name in kept]
    lines = [[head for head, _ in kept]] + [[row[name] for _, name in kept] for row in rows]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )
