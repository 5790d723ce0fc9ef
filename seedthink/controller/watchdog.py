"""Deadlines and signs of life.

`Countdown` is a deadline that counts only time in which this process ran: after Ctrl-Z and `fg` nothing has expired.
`Heartbeat` is a worker's thread that says in a file, every few seconds, what the worker is doing since when.
`Watchdog` is the deadline of in-process calls: it dumps all stacks, then raises in the main thread.
Stacks come from `faulthandler`, whose C code needs no interpreter lock: a worker stuck in a kernel shows its stack too.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from seedthink.controller.supervision import DeadlineError

LOOK = 2.0  # longest time between two looks at a countdown; a much longer gap means that this process was stopped
_TICK = 0.25  # seconds between two looks of the watchdog


class Countdown:
    """`seconds` of running time. Look at `left()` at least every `LOOK` seconds."""

    def __init__(self, seconds: float) -> None:
        self._left = seconds
        self._seen = time.monotonic()

    def left(self) -> float:
        """Return the seconds left, never below 0."""
        now = time.monotonic()
        self._left = max(self._left - min(now - self._seen, 2 * LOOK), 0.0)
        self._seen = now
        return self._left


class Heartbeat:
    """Writes `{"pid", "verb", "since"}` to a file every `seconds` from a daemon thread; the mtime is the beat."""

    def __init__(self, path: Path, seconds: float) -> None:
        self._path = path
        self._seconds = seconds
        self._doing = ("nothing", time.time())
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()

    def doing(self, verb: str) -> None:
        """Note what the worker does from now on."""
        self._doing = (verb, time.time())

    def _beat(self) -> None:
        while True:
            verb, since = self._doing
            with suppress(OSError):  # a full disk must not end the worker
                self._path.write_text(json.dumps({"pid": os.getpid(), "verb": verb, "since": since}), encoding="ascii")
            time.sleep(self._seconds)


def last_sign(path: Path) -> str:
    """Say in words what a worker's heartbeat file tells, e.g. "last heartbeat 3 s ago, in learn for 598 s"."""
    try:
        age = max(time.time() - path.stat().st_mtime, 0.0)
        state = json.loads(path.read_text(encoding="ascii"))
        return f"last heartbeat {age:.0f} s ago, in {state['verb']} for {time.time() - state['since']:.0f} s"
    except (OSError, ValueError, KeyError):
        return "no heartbeat seen"


def dump_on_signal(stream: IO[str]) -> None:
    """Let SIGUSR1 write the stacks of all threads to an open file, and a crash its own."""
    faulthandler.enable(file=stream, all_threads=True)
    faulthandler.register(signal.SIGUSR1, file=stream, all_threads=True)


class Watchdog:
    """Guards in-process calls from one daemon thread. Stacks go to the file `log`, or to stderr without one."""

    def __init__(self, log: Path | None = None) -> None:
        self._log = log
        self._message = ""
        self._running: Countdown | None = None  # of the guarded block
        self._expired: Countdown | None = None
        self._thread: threading.Thread | None = None

    @contextmanager
    def guard(self, message: str, seconds: float) -> Iterator[None]:
        """Raise DeadlineError(message) in the block after `seconds`.

        Code that never returns to the interpreter cannot be interrupted from within its process: then the message
        stands on stderr and in the log. A guard inside a guard, or off the main thread, changes nothing.
        """
        if self._running is not None or threading.current_thread() is not threading.main_thread():
            yield
            return
        if self._thread is None:
            # The handler stays: a signal sent just before the block ended must find it, not the default that kills.
            signal.signal(signal.SIGUSR2, self._raise)
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()
        self._message, self._running = message, Countdown(seconds)
        try:
            yield
        finally:
            self._running = None

    def _raise(self, number: int, frame: FrameType | None) -> None:
        if self._running is not None and self._running is self._expired:
            self._running = None
            raise DeadlineError(self._message)

    def _watch(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        while True:
            time.sleep(_TICK)
            running = self._running
            if running is None or running is self._expired or running.left() > 0:
                continue
            self._report()
            self._expired = running
            signal.pthread_kill(main, signal.SIGUSR2)

    def _report(self) -> None:
        line = f"{self._message}. If nothing follows: kill -9 {os.getpid()}, and start again to resume\n"
        sys.stderr.write(line)
        if self._log is None:
            faulthandler.dump_traceback(all_threads=True)
            return
        with self._log.open("a", encoding="utf-8") as log:
            log.write(line)
            log.flush()
            faulthandler.dump_traceback(file=log, all_threads=True)
