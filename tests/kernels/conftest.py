"""The ways of a product that one machine can run: float32, its own bfloat16, and bfloat16 on emulated AMX tiles."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from seedthink import _C

HALVES = ["bfloat16", "bfloat16 on tiles"]


def _way(name: str) -> Iterator[torch.dtype]:
    _C.emulate_amx(name == HALVES[1])
    try:
        yield torch.float32 if name == "float32" else torch.bfloat16
    finally:
        _C.emulate_amx(False)


@pytest.fixture(params=["float32", *HALVES])
def compute(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """A compute dtype, and the process set to the way it is named after."""
    yield from _way(request.param)


@pytest.fixture(params=HALVES)
def half(request: pytest.FixtureRequest) -> Iterator[torch.dtype]:
    """The ways that round operands to bfloat16."""
    yield from _way(request.param)
