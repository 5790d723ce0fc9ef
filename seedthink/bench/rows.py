"""The measured rows: what one says, and how a file of them is written and read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from seedthink.autotune.timing import Spread
from seedthink.errors import DataError

Status = Literal["ok", "FAIL", "left out"]


@dataclass(frozen=True, slots=True)
class Row:
    """One implementation of one operation at one shape and dtype. What was not measured is None."""

    op: str
    implementation: str
    ours: bool
    preset: str
    shape: Mapping[str, int | str]
    dtype: str
    device: str
    device_class: str  # of the bits: docs/kernels.md
    threads: int
    status: Status
    command: str  # that repeats this row
    reason: str = ""  # for a status that is not ok
    error: float | None = None  # largest, against float64
    tolerance: float | None = None
    seconds: Spread | None = None
    repeats: int = 0
    bytes: float = 0.0  # least that must be moved
    flops: float = 0.0
    peak_bytes: float | None = None  # memory that one call took
    copy_bytes_per_second: float | None = None  # ceilings of the same turns
    matmul_flops_per_second: float | None = None
    of_ceiling: float | None = None  # least time that the ceilings allow, over the time taken
    ratios: Mapping[str, Spread] | None = None  # of ours: peer -> how many times as long it takes
    cores_used_elsewhere: float | None = None

    @property
    def place(self) -> str:
        """The shape in words: "T=4096,D=2048"."""
        return ",".join(f"{name}={size}" for name, size in self.shape.items())

    @property
    def key(self) -> tuple[str, ...]:
        """What makes rows of two files the same measurement."""
        return self.op, self.implementation, self.place, self.dtype, self.device

    @property
    def gb_per_second(self) -> float | None:
        """Least bytes over the median."""
        return self.bytes / self.seconds.median / 1e9 if self.seconds and self.bytes else None

    @property
    def tflop_per_second(self) -> float | None:
        """FLOPs over the median."""
        return self.flops / self.seconds.median / 1e12 if self.seconds and self.flops else None


def written(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows as JSON objects, the rates among them for other readers."""
    return [
        {**asdict(row), "gb_per_second": row.gb_per_second, "tflop_per_second": row.tflop_per_second} for row in rows
    ]


def save(path: Path, rows: Sequence[Row], environment: Mapping[str, Any]) -> None:
    """Write {"environment", "rows"}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = {"environment": dict(environment), "rows": written(rows)}
    path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")


def load(path: Path) -> tuple[list[Row], dict[str, Any]]:
    """(rows, environment) of a file. DataError where it is none."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return [_row(entry) for entry in table["rows"]], table["environment"]
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no file of `seedthink bench kernels --json` ({error!r})") from None


def _row(entry: Mapping[str, Any]) -> Row:
    known = {each.name: entry[each.name] for each in fields(Row)}
    known["seconds"] = known["seconds"] and Spread(**known["seconds"])
    known["ratios"] = known["ratios"] and {peer: Spread(**value) for peer, value in known["ratios"].items()}
    return Row(**known)
