"""What online selectors learned, kept between processes: one JSON file per device, shared by all that run on it.

Written under a file lock by replacing it in one step, so that any number of processes may read and merge at any time. A
file that is corrupt, or of another device, driver or build of the kernels, is refused with one message and rebuilt.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seedthink.autotune.device import Identity
from seedthink.telemetry.jsonl import write_atomic

FORMAT = 1
State = dict[str, dict[str, Any]]
log = logging.getLogger("seedthink.autotune")


def default_path(here: Identity) -> Path:
    """`$XDG_CACHE_HOME/seedthink/tuning/<device>.json`, below ~/.cache where that is not set."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(cache) / "seedthink" / "tuning" / f"{here.slug}.json"


class Learned:
    """The file of one device. Places are those of `buckets.Place`, written as text; they begin with the operation."""

    def __init__(self, path: Path, here: Identity, sources: Mapping[str, str]) -> None:
        """sources: operation -> name of its native sources; what was learned under others is left out."""
        self.path, self._here, self._sources = path, here, dict(sources)
        self._refused = False

    def load(self) -> State:
        """What processes have learned so far; empty where there is nothing usable."""
        try:
            content = json.loads(self.path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"its format is {content['format']}, this version reads {FORMAT}")
            if other := self._here.differences(content["identity"]):
                raise ValueError("; ".join(other))
            return {
                place: _checked(record) for place, record in content["places"].items() if self._current(place, record)
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if not self._refused:
                log.warning("%s is refused and will be rebuilt: %s", self.path, error)
            self._refused = True
            return {}

    def merge(self, state: Mapping[str, Mapping[str, Any]]) -> State:
        """Add what this process learned, newer knowledge of an arm before older; returns what the file holds now."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _locked(self.path.with_suffix(".lock")):
            found = self.load()
            for place, record in state.items():
                found[place] = _newer(found.get(place), {**record, "sources": self._source_of(place)})
            content = {"format": FORMAT, "identity": self._here.as_dict(), "places": dict(sorted(found.items()))}
            write_atomic(self.path, json.dumps(content, indent=1) + "\n", durable=False)
        return found

    def _source_of(self, place: str) -> str:
        return self._sources.get(place.partition("/")[0], "")

    def _current(self, place: str, record: Mapping[str, Any]) -> bool:
        return record["sources"] == self._source_of(place)


def _newer(old: Mapping[str, Any] | None, new: Mapping[str, Any]) -> dict[str, Any]:
    """Per arm the later knowledge; the incumbent of whichever adopted last."""
    if old is None:
        return dict(new)
    arms = dict(old["arms"])
    for name, known in new["arms"].items():
        if name not in arms or known[2] >= arms[name][2]:
            arms[name] = known
    last = new if new["since"] >= old["since"] else old
    return {"incumbent": last["incumbent"], "since": last["since"], "arms": arms, "sources": new["sources"]}


def _checked(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record with its numbers as numbers. KeyError, TypeError or ValueError where it is not one."""
    arms = {str(name): [float(known[0]), int(known[1]), float(known[2])] for name, known in record["arms"].items()}
    incumbent, since = str(record["incumbent"]), float(record["since"])
    return {"incumbent": incumbent, "since": since, "arms": arms, "sources": str(record["sources"])}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a file's lock; the operating system lets go of it if the process dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
