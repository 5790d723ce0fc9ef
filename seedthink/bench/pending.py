"""Operations that are being written: found by name, and said not to be built where they are missing."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from seedthink.bench.case import Missing


def built(module: str, name: str) -> Callable[..., Any]:
    """`seedthink.kernels.<module>.<name>`."""
    try:
        found: Callable[..., Any] = getattr(import_module(f"seedthink.kernels.{module}"), name)
    except (ImportError, AttributeError):
        raise Missing(f"not built: seedthink.kernels.{module}.{name}") from None
    return found
