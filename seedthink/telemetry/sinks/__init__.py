"""Trackers as readers of a run folder: training never knows them, so they can be fed during a run or years later."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from seedthink.telemetry.jsonl import iterate

STAMPS = ("stage", "step", "seconds")


def numbers(run: Path) -> Iterator[tuple[str, int, dict[str, float]]]:
    """Yield (stage, step, metrics) of every line of a run's metrics.jsonl, numbers only."""
    for row in iterate(run / "metrics.jsonl"):
        kept = {name: value for name, value in row.items() if name not in STAMPS and isinstance(value, int | float)}
        yield row["stage"], int(row["step"]), kept
