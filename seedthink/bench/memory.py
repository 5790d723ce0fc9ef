"""Memory: what is free, and what one call takes at its peak."""

from __future__ import annotations

from pathlib import Path

import torch

from seedthink.bench.case import Outputs, Run

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def free_bytes(device: torch.device) -> float:
    """Bytes that can be taken without swapping; infinite where it cannot be told."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    meminfo = Path("/proc/meminfo")
    return _kib(meminfo, "MemAvailable") * 1024.0 if meminfo.exists() else float("inf")


def peak_of(run: Run, device: torch.device) -> tuple[Outputs, float | None]:
    """(outputs, bytes above what was held before) of one call; None where the system does not tell.

    On a CPU it is the resident set's peak, which the kernel resets on request: pages that the allocator kept from an
    earlier call are not seen, so small numbers say little.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        made = run()
        torch.cuda.synchronize(device)
        return made, float(torch.cuda.max_memory_allocated(device) - before)
    try:
        CLEAR.write_text("5")
        before = _kib(STATUS, "VmRSS")
        made = run()
        return made, max(0.0, _kib(STATUS, "VmHWM") - before) * 1024.0
    except OSError:
        return run(), None


def _kib(path: Path, name: str) -> float:
    for line in path.read_text().splitlines():
        if line.startswith(f"{name}:"):
            return float(line.split()[1])
    raise OSError(f"{path} has no {name}")
