"""A process that does one training step whenever it is its turn: `own_run.py`, or `trl_run.py --turns`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


class Contestant:
    """Started at once; the first turn takes the start-up too."""

    def __init__(self, name: str, script: str, arguments: Sequence[str], log: Path) -> None:
        self.name = name
        self.log = log
        read, write = os.pipe()
        self._replies = os.fdopen(read)
        command = [sys.executable, str(HERE / script), *arguments, "--report", str(write)]
        paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
        with log.open("w") as output:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=output, stderr=output, pass_fds=[write], env=environment
            )
        os.close(write)

    def turn(self, word: str = "step") -> dict[str, Any]:
        """One step; what the process reports of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{word}\n".encode())
        self._process.stdin.flush()
        reply = self._replies.readline()
        if not reply:
            raise SystemExit(f"{self.name} ended:\n{self.log.read_text()[-4000:]}")
        found: dict[str, Any] = json.loads(reply)
        return found

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
