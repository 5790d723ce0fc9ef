"""Every metric a run writes: what it means, what healthy looks like, and where to look when it rises.

The table is data (templates/metrics.toml). The HTML report shows it as tooltips, docs/metrics.md is written from it,
and tests hold both to it. Names follow verl's, so that dashboards made for it keep working.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

TABLE_FILE = Path(__file__).parent / "templates" / "metrics.toml"


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric, or a pattern of names. `keys` are the settings that move it most."""

    name: str
    unit: str
    meaning: str
    healthy: str
    if_rises: str
    keys: tuple[str, ...] = ()


@cache
def table() -> tuple[Entry, ...]:
    """Return every entry, in the order of the file."""
    rows = tomllib.loads(TABLE_FILE.read_text(encoding="utf-8"))["metric"]
    return tuple(Entry(**{**row, "keys": tuple(row.get("keys", ()))}) for row in rows)


def entry(name: str) -> Entry | None:
    """Return the first entry that documents a metric, or None."""
    return next((found for found in table() if fnmatchcase(name, found.name)), None)


def related(key: str) -> list[Entry]:
    """Return the metrics that a setting moves."""
    return [found for found in table() if key in found.keys]


def markdown() -> str:
    """Write the table as docs/metrics.md holds it."""
    lines = ["| metric | unit | meaning | healthy looks like | if it rises |", "|---|---|---|---|---|"]
    for found in table():
        lines.append(f"| `{found.name}` | {found.unit} | {found.meaning} | {found.healthy} | {found.if_rises} |")
    return "\n".join(lines) + "\n"
