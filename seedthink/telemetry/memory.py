"""Memory of a process tree as the sum of PSS: each shared page counts once, divided among those who map it.

RSS counts a shared page in every process and would report several times the truth for forkserver and Ray workers. PSS
is read from /proc/PID/smaps_rollup (Linux 4.14 or newer). A peak between two samples goes unseen; a sample of a large
process takes milliseconds, so the sampler waits at least a hundred times as long as a sample takes.
"""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")


def tree(root: int, proc: Path = PROC) -> list[int]:
    """Return the ids of `root` and all its descendants that live now."""
    children: dict[int, list[int]] = {}
    for entry in proc.iterdir():
        if entry.name.isdigit():
            try:
                # The command name in parentheses may hold spaces; the parent's id is the second word after it.
                after = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(after[1]), []).append(int(entry.name))
            except (OSError, IndexError, ValueError):
                continue
    found, at = [root], 0
    while at < len(found):
        found += children.get(found[at], [])
        at += 1
    return found


def pss_bytes(pid: int, proc: Path = PROC) -> int:
    """Return the PSS of one process in bytes; 0 when it has gone or may not be read."""
    try:
        for line in (proc / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def tree_bytes(root: int | None = None, proc: Path = PROC) -> int:
    """Return the summed PSS of a process tree in bytes; `root` defaults to this process."""
    return sum(pss_bytes(pid, proc) for pid in tree(root or os.getpid(), proc))


def limit_bytes(proc: Path = PROC, cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the most memory that processes here may have together: the machine's, or their control group's."""
    lines = (proc / "meminfo").read_text().splitlines()
    whole = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemTotal:"))
    with suppress(OSError, ValueError):  # "max" where the group has no limit, no file where there is no group
        return min(whole, int((cgroup / "memory.max").read_text()))
    return whole


class MemorySampler:
    """Watches the process tree from a thread of its own; `peak_bytes` is the largest sum seen."""

    def __init__(self, interval_seconds: float = 1.0, root: int | None = None) -> None:
        self.peak_bytes = 0
        self._interval = interval_seconds
        self._root = root or os.getpid()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="memory-sampler", daemon=True)

    def __enter__(self) -> MemorySampler:
        self._thread.start()
        return self

    def __exit__(self, *reason: object) -> None:
        self.sample()
        self._stop.set()
        self._thread.join()

    def sample(self) -> int:
        """Take one sample now; returns the present sum in bytes."""
        now = tree_bytes(self._root)
        self.peak_bytes = max(self.peak_bytes, now)
        return now

    def _watch(self) -> None:
        wait = 0.0
        while not self._stop.wait(wait):
            began = time.perf_counter()
            self.sample()
            wait = max(self._interval, 100 * (time.perf_counter() - began))
