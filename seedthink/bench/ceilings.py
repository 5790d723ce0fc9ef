"""What this machine can do at best: copy memory, and multiply matrices of a dtype. Measured in turns with every case.

The copy moves as many bytes as the case does, so that a case that fits into a cache is held against a copy that does,
too; beyond MOST_BYTES the rate no longer depends on the size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from seedthink.bench.case import Missing, Work

LEAST_BYTES, MOST_BYTES = 1 << 16, {"cpu": 1 << 28, "cuda": 1 << 31}
SIDE = {"cpu": 1024, "cuda": 8192}  # of the square matrices: large enough for the full rate
COPY, MATMUL = "ceiling: copy", "ceiling: matmul"
Side = tuple[Callable[[], object], float]  # what to run, and what one call does: bytes or FLOPs


def ceilings_of(work: Work, device: torch.device) -> dict[str, Side]:
    """The ceilings that bound some work. Fewer FLOPs than bytes never do: machines multiply faster than they copy."""
    found = {COPY: copy(work.bytes, device)} if work.bytes else {}
    if work.flops > work.bytes:
        found[MATMUL] = matmul(work.rate, device)
    return found


def copy(moved: float, device: torch.device) -> Side:
    """A copy that reads and writes `moved` bytes in all, of random numbers."""
    count = int(min(max(moved, LEAST_BYTES), MOST_BYTES[device.type])) // 8
    source = torch.empty(count, device=device).normal_()
    target = torch.empty_like(source)
    return lambda: target.copy_(source), 8.0 * count


@functools.cache
def matmul(rate: str, device: torch.device) -> Side:
    """A product of square matrices of random numbers of a dtype."""
    side = SIDE[device.type]
    a, b = (torch.empty(side, side, device=device).normal_() for _ in range(2))
    if rate.startswith("float8"):
        if device.type != "cuda":
            raise Missing("no CPU multiplies FP8 numbers")
        one, codes = torch.ones((), device=device), [x.to(getattr(torch, rate)) for x in (a, b)]
        return lambda: torch._scaled_mm(codes[0], codes[1].T, one, one, out_dtype=torch.bfloat16), 2.0 * side**3
    a, b = (x.to(getattr(torch, rate)) for x in (a, b))
    return lambda: a @ b, 2.0 * side**3
