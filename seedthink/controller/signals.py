"""Ctrl-C once: finish the step, save, leave. Twice: leave now.

`StopSignal` turns the first SIGINT or SIGTERM (what Slurm and Kubernetes send) into a flag that the loop reads between
steps; the second SIGINT raises KeyboardInterrupt where the program stands. A command without steps stops at once, and
at SIGTERM too it does so in order, so that it leaves no process behind.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


def _to_stderr(line: str) -> None:
    os.write(2, f"{line}\n".encode())  # a handler may interrupt a print; sys.stderr is not reentrant


class StopSignal:
    """Context manager; `requested` turns True at the first signal. Outside the main thread it never does."""

    def __init__(self, say: Callable[[str], None] = _to_stderr, *, at_once: bool = False) -> None:
        self.requested = False
        self._at_once = at_once
        self._say = say
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._at_once or (self.requested and number == signal.SIGINT):
            self.requested = True
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            self._say("stopping: this step is finished and saved first; Ctrl-C again leaves at once")
