"""Compiles for sm_90, on a machine without a device, what a host function would launch on one.

The host function runs on tensors of the device "meta", which have no memory, so it is the real call with the real
arguments; Triton asks a driver which device there is, and is told of one that nobody has.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


@dataclass(frozen=True)
class Compiled:
    """One kernel as the device would run it."""

    kernel: str
    ptx: str
    registers: int
    stack: int  # bytes of a thread that did not fit its registers
    shared: int  # bytes of a program


class AbsentDevice:
    """A driver whose only device cannot run anything."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def compiled_by(call: Callable[[], Any], folder: Path) -> list[Compiled]:
    """The kernels that `call` launches, in order; `folder` takes the cubins."""
    found: list[Compiled] = []
    with _offline(found, folder):
        call()
    return found


@contextmanager
def _offline(found: list[Compiled], folder: Path) -> Iterator[None]:
    def at(kernel: Any, grid: Any) -> Callable[..., None]:
        def compile_only(*args: Any, **options: Any) -> None:
            dtypes = [arg.dtype if isinstance(arg, Tensor) else arg for arg in args]
            built = kernel.warmup(*dtypes, grid=grid, **options)
            cubin = folder / f"{len(found)}.cubin"
            cubin.write_bytes(built.asm["cubin"])
            found.append(Compiled(kernel.__name__, built.asm["ptx"], *resources(cubin), built.metadata.shared))

        return compile_only

    triton.runtime.driver.set_active(AbsentDevice())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KernelInterface, "__getitem__", at)
        yield


@contextmanager
def launching_nothing() -> Iterator[None]:
    """Host functions check, allocate and return; their kernels are left out."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KernelInterface, "__getitem__", lambda kernel, grid: lambda *args, **options: None)
        yield


def resources(cubin: Path) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread."""
    command = [str(TOOLS / "cuobjdump"), "--dump-resource-usage", str(cubin)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    usage = re.search(r"REG:(\d+) STACK:(\d+)", text)
    assert usage is not None, text
    return int(usage[1]), int(usage[2])


def meta(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """A tensor without memory."""
    return torch.empty(shape, dtype=dtype, device="meta")
