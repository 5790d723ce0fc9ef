"""Tables of measured configurations, `kernels/tables/<device>.json`: written by the search, read at start.

A table is data. It is used where its identity is this machine's; an entry is used where the sources of its operation
are those of this build. Anything else is left out, said once, and never an error: the built-in configuration works.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import inf, log2
from pathlib import Path
from typing import Any

from seedthink.autotune.buckets import Bucket, bucket, bucket_distance, distance
from seedthink.autotune.device import Identity
from seedthink.autotune.spaces import SPACES
from seedthink.kernels.selector import BUILT_IN, EXACT, Config, Key, Load
from seedthink.telemetry.jsonl import write_atomic

FORMAT = 1
FARTHEST_DIMS = 2.0  # octaves of all sizes together beyond which an entry says nothing about other sizes
SHIPPED = Path(__file__).resolve().parents[1] / "kernels" / "tables"
log = logging.getLogger("seedthink.autotune")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One measured point. `values` empty: the built-in configuration stays. Seconds: of the operation's own loops.

    p20 and p80 are of the adopted configuration's samples, `built_in_seconds` is the median beside it.
    """

    op: str
    dtype: str
    dims: tuple[int, ...]
    load: Load
    values: Mapping[str, int]
    numerics: str
    seconds: float
    p20: float
    p80: float
    repeats: int
    built_in_seconds: float
    p_value: float
    sources: str

    @property
    def config(self) -> Config:
        """What to run."""
        if not self.values:
            return BUILT_IN
        return Config(" ".join(f"{name}={value}" for name, value in self.values.items()), self.values, self.numerics)


@dataclass(slots=True)
class Table:
    """Entries by operation and dtype, and what they were measured under."""

    identity: Mapping[str, Any]
    entries: list[Entry]
    facts: Mapping[str, Any] = field(default_factory=dict)
    _known: dict[tuple[Any, ...], Config] = field(default_factory=dict, repr=False)

    def choose(self, key: Key, numerics: str | None = EXACT) -> Config:
        """The nearest entry's configuration; the built-in one where none is near.

        Sizes count first, then the load, both in octaves. Entries of another numerics class are passed over; None takes
        every class. Nearest buckets are remembered, so that a choice costs a look into a dictionary.
        """
        matters = SPACES[key.op].loads if key.op in SPACES else ()
        here = bucket(key.load, matters)
        place = (key.op, key.dtype, key.dims, here, numerics)
        found = self._known.get(place)
        if found is None:
            found = self._known[place] = self._nearest(key, here, matters, numerics)
        return found

    def _nearest(self, key: Key, here: Bucket, matters: tuple[str, ...], numerics: str | None) -> Config:
        best, chosen = (inf, inf, inf), BUILT_IN
        for entry in self.entries:
            if (entry.op, entry.dtype) != (key.op, key.dtype) or (numerics and entry.numerics != numerics):
                continue
            sizes = distance(key.dims, entry.dims)
            if sizes > FARTHEST_DIMS:
                continue
            off_centre = abs(log2(max(1, entry.load.tokens)) - here.tokens)
            far = (sizes, bucket_distance(here, bucket(entry.load, matters)), off_centre)
            if far < best:
                best, chosen = far, entry.config
        return chosen


def write(path: Path, table: Table) -> None:
    """Replace the file in one step; entries one a line, sorted, so that a difference can be read."""
    rows = sorted(table.entries, key=lambda e: (e.op, e.dtype, e.dims, e.load))
    lines = ",\n  ".join(json.dumps(_as_dict(entry), sort_keys=True) for entry in rows)
    head = json.dumps({"format": FORMAT, "identity": dict(table.identity), **table.facts}, indent=1)
    write_atomic(path, head[:-2] + f',\n "entries": [\n  {lines}\n ]\n}}\n')


def read(path: Path, here: Identity, sources: Mapping[str, str]) -> Table | None:
    """The usable part of a file; None, said once in the log, where it is corrupt or belongs to another machine."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, this version reads {FORMAT}")
        entries = [_entry(row) for row in content.pop("entries")]
        of = content.pop("identity")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s is not used, its configurations are built in: %s. `seedthink tune` writes it anew", path, error)
        return None
    if other := here.differences(of):
        log.warning("%s is not used: it was measured elsewhere (%s)", path, "; ".join(other))
        return None
    used = [entry for entry in entries if sources.get(entry.op) == entry.sources]
    if len(used) < len(entries):
        stale = sorted({entry.op for entry in entries} - {entry.op for entry in used})
        log.info(
            "%s: the kernels of %s have changed since; `seedthink tune` measures them anew", path, ", ".join(stale)
        )
    return Table(of, used, content)


def shipped(here: Identity, sources: Mapping[str, str], folder: Path = SHIPPED) -> Table | None:
    """The table of this machine that came with the package, or None."""
    return read(folder / f"{here.slug}.json", here, sources)


def merged(old: Table | None, new: Iterable[Entry]) -> list[Entry]:
    """Old entries with those of the same point replaced."""
    points = {(e.op, e.dtype, e.dims, e.load): e for e in (old.entries if old else [])}
    points |= {(e.op, e.dtype, e.dims, e.load): e for e in new}
    return list(points.values())


def _as_dict(entry: Entry) -> dict[str, Any]:
    row = asdict(entry)
    row["load"] = entry.load._asdict()
    row["dims"] = list(entry.dims)
    for name in ("seconds", "p20", "p80", "built_in_seconds", "p_value"):
        row[name] = float(f"{row[name]:.4g}")
    return row


def _entry(row: Mapping[str, Any]) -> Entry:
    values = {str(name): int(value) for name, value in row["values"].items()}
    load = Load(int(row["load"]["tokens"]), float(row["load"]["imbalance"]), float(row["load"]["cache_fill"]))
    return Entry(**{**row, "dims": tuple(int(d) for d in row["dims"]), "load": load, "values": values})
