"""Structured events, one file per process, and the spans that time each stage.

An event is one line `{"time", "process", "step", "event", ...}` in `events/PROCESS.jsonl`. A span is an event with a
duration; its seconds also sum up under `timing_s/NAME` until `take` hands them to the step's metrics.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seedthink.telemetry.jsonl import JsonLines


class Events:
    """The event file of one process. `step` is stamped on every event and set by whoever runs the loop."""

    def __init__(self, folder: Path, process: str) -> None:
        self.process = process
        self.step = 0
        self._lines = JsonLines(folder / f"{process}.jsonl")
        self._seconds: dict[str, float] = {}

    def emit(self, event: str, **fields: Any) -> None:
        """Write one event; `fields` are JSON values."""
        stamp = {"time": round(time.time(), 6), "process": self.process, "step": self.step, "event": event}
        self._lines.append(stamp | fields)

    @contextmanager
    def span(self, name: str, **fields: Any) -> Iterator[None]:
        """Time the block inside; it counts also when it raises, with the error's kind."""
        began = time.perf_counter()
        failed = ""
        try:
            yield
        except BaseException as error:
            failed = type(error).__name__
            raise
        finally:
            seconds = time.perf_counter() - began
            self._seconds[name] = self._seconds.get(name, 0.0) + seconds
            outcome = {"error": failed} if failed else {}
            self.emit("span", name=name, seconds=round(seconds, 6), **fields, **outcome)

    def take(self) -> dict[str, float]:
        """Return `timing_s/NAME` -> seconds since the last call, and start anew."""
        taken = {f"timing_s/{name}": seconds for name, seconds in self._seconds.items()}
        self._seconds = {}
        return taken

    def close(self) -> None:
        """Close the file."""
        self._lines.close()
