"""Append-only JSON lines that survive a crash at any byte.

A line counts once its newline is on disk. Readers leave a torn last line out, writers cut it off before they append,
so a killed process costs at most the line it was writing. Numbers that JSON cannot hold (nan, inf) are written as null.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from seedthink.errors import DataError, RunError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn what the system says against writing `path` (no space, no permission, no folder) into a RunError."""
    try:
        yield
    except OSError as error:
        cause = f" ({error.filename})" if error.filename and str(error.filename) != str(path) else ""
        raise RunError(
            f"cannot write {path}: {error.strerror}{cause}. What was saved before is untouched; mend that or choose "
            "another folder, then start again"
        ) from error


class JsonLines:
    """A file opened for appending; one object per line, on disk when `append` returns."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            mend(path)
            self._file = path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one line and hand it to the operating system. RunError where that fails."""
        with writing(self.path):
            self._file.write(dumps(row) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file; a second call does nothing. What a full disk has refused before is given up."""
        with suppress(OSError):
            self._file.close()


def dumps(row: Any) -> str:
    """Return compact JSON on one line; nan and inf become null, which every reader understands."""
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except ValueError:
        return json.dumps(_finite(row), ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read every whole line; a missing file holds none. DataError names file and line of a broken one."""
    return list(iterate(path))


def iterate(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file one by one, leaving a torn last line out."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield _object(path, number, line)


def mend(path: Path) -> None:
    """Cut a torn last line off, in place."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        end = file.seek(0, os.SEEK_END)
        at = end
        while at > 0:
            start = max(0, at - 65536)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at < end:
            file.truncate(at)


def keep_until(path: Path, beyond: Callable[[Mapping[str, Any]], bool]) -> dict[str, Any] | None:
    """Cut a file before the first line that is `beyond`; return the last line that stays, or None.

    DataError names file and line of one that is no JSON object.
    """
    mend(path)
    if not path.exists():
        return None
    last: dict[str, Any] | None = None
    with path.open("rb+") as file:
        at = 0
        for number, line in enumerate(file, start=1):
            row = _object(path, number, line)
            if beyond(row):
                file.truncate(at)
                break
            at += len(line)
            last = row
    return last


def write_atomic(path: Path, text: str, *, durable: bool = True) -> None:
    """Replace a file in one step: readers see the old text or the new one, never half of either. RunError else.

    `durable` waits for the disk, so that this also holds when the machine, not only the process, goes down.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with beside.open("w", encoding="utf-8") as file:
                file.write(text)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            beside.replace(path)
        except OSError:
            with suppress(OSError):
                beside.unlink(missing_ok=True)
            raise


def _object(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path} line {number} is not JSON ({error}); delete that line to go on") from None
    if not isinstance(row, dict):
        raise DataError(f"{path} line {number} is no JSON object; delete that line to go on")
    return row


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
