"""The logger of this project: named, never the root, a file per process, quiet on the terminal.

Everything from INFO upwards goes to `logs/PROCESS.log`; the terminal shows warnings, and with -v also INFO.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from pathlib import Path

from seedthink.telemetry.jsonl import writing

LOGGER = logging.getLogger("seedthink")
LOGGER.addHandler(logging.NullHandler())
LOGGER.propagate = False


class _LogFile(logging.FileHandler):
    """A log that a full disk does not fill the terminal with traces about: the run itself says that it cannot write."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Leave the record out."""

    def close(self) -> None:
        """Close the file; what the disk has no room for is given up."""
        with suppress(OSError):
            super().close()


def configure(folder: Path | None, process: str, verbose: bool = False) -> None:
    """Send this process's log to `folder/PROCESS.log` and its warnings to standard error; replaces earlier handlers."""
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
        handler.close()
    LOGGER.setLevel(logging.INFO)
    if folder is not None:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            to_file = _LogFile(folder / f"{process}.log", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOGGER.addHandler(to_file)
    to_terminal = logging.StreamHandler()
    to_terminal.setLevel(logging.INFO if verbose else logging.WARNING)
    to_terminal.setFormatter(logging.Formatter(f"{process}: %(message)s"))
    LOGGER.addHandler(to_terminal)
