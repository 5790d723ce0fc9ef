"""The logger of this project: named, never the root, a file per process, quiet on the terminal.

Everything from INFO upwards goes to `logs/PROCESS.log`; the terminal shows warnings, and with -v also INFO.
"""

from __future__ import annotations

import logging
from pathlib import Path

LOGGER = logging.getLogger("seedthink")
LOGGER.addHandler(logging.NullHandler())
LOGGER.propagate = False


def configure(folder: Path | None, process: str, verbose: bool = False) -> None:
    """Send this process's log to `folder/PROCESS.log` and its warnings to standard error; replaces earlier handlers."""
    for handler in list(LOGGER.handlers):
        LOGGER.removeHandler(handler)
        handler.close()
    LOGGER.setLevel(logging.INFO)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(folder / f"{process}.log", encoding="utf-8")
        to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        LOGGER.addHandler(to_file)
    to_terminal = logging.StreamHandler()
    to_terminal.setLevel(logging.INFO if verbose else logging.WARNING)
    to_terminal.setFormatter(logging.Formatter(f"{process}: %(message)s"))
    LOGGER.addHandler(to_terminal)
