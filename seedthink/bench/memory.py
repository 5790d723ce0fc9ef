"""Memory: what is free, what one call takes at its peak, and an allocator that keeps what was freed.

torch's CUDA allocator keeps freed blocks, the C library hands large ones back to the system, and the next call pays for
fresh pages: with outputs of 100 MB that costs more than many kernels. While benchmarking it keeps them, for every side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from seedthink.bench.case import Outputs, Run

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
DEFAULT_MMAP_MAX, DEFAULT_TRIM_BYTES = 65536, 128 << 10


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Have the C library keep freed memory meanwhile; yields whether it does (glibc alone can)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        yield False
        return
    try:
        yield bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
    finally:
        mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        mallopt(M_TRIM_THRESHOLD, DEFAULT_TRIM_BYTES)
        _give_back()


def free_bytes(device: torch.device) -> float:
    """Bytes that can be taken without swapping; infinite where it cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    try:
        _give_back()
        return _kib(Path("/proc/meminfo"), "MemAvailable") * 1024.0
    except OSError:
        return float("inf")


def peak_of(run: Run, device: torch.device) -> tuple[Outputs, float | None]:
    """(outputs, bytes that one call took, its outputs included); None where the system does not tell."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        made = run()
        torch.cuda.synchronize(device)
        return made, float(torch.cuda.max_memory_allocated(device) - before)
    before_kib = _resident_kib_from_here()
    made = run()
    if before_kib is None:
        return made, None
    return made, max(0.0, _kib(STATUS, "VmHWM") - before_kib) * 1024.0


def _resident_kib_from_here() -> float | None:
    """The resident set, its recorded peak set back to it."""
    try:
        _give_back()
        CLEAR.write_text("5")
        return _kib(STATUS, "VmRSS")
    except OSError:
        return None


def _give_back() -> None:
    """Return freed pages to the system, so that they are neither free nor held twice."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return


def _kib(path: Path, name: str) -> float:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1])
    raise OSError(f"{path} has no {name}")
