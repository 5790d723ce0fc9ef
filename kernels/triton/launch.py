"""What stands between an operator and its Triton kernels: configurations as data, argument checks, the launch.

Numbers of rows are not specialised (`do_not_specialize`) where a row's sums could depend on it: a row meets the same
instructions whatever stands beside it. Addresses are 64-bit where a row number enters.
An index that a CPU operator refuses by its value (a target, a position, a page) cannot be refused here without waiting
for the device: it is never read through, and its row becomes NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seedthink.errors import DeviceError

FLOATS = (torch.float32, torch.bfloat16)
INTERPRETED_PROCESSORS = 3  # of the "device" that TRITON_INTERPRET runs on: few, so that persistent loops go round


class Config(NamedTuple):
    """One way to launch a kernel. A tuner may move freely among the configurations of one numerics class.

    numerics: configurations of a kernel that share this word give the same bits.
    """

    numerics: str
    warps: int
    stages: int
    blocks: tuple[tuple[str, int], ...]  # the kernel's block sizes, by the names of its parameters

    def block(self, name: str) -> int:
        """One block size."""
        return dict(self.blocks)[name]

    def options(self) -> dict[str, int | bool]:
        """Keyword arguments of a launch. Fusing a multiply and an add changes bits, so no default decides it."""
        return {**dict(self.blocks), "num_warps": self.warps, "num_stages": self.stages, "enable_fp_fusion": True}


def config(numerics: str, *, warps: int, stages: int = 1, **blocks: int) -> Config:
    """A `Config` from keywords."""
    return Config(numerics, warps, stages, tuple(blocks.items()))


def launch(kernel: Any, grid: tuple[int, ...], *args: Any, config: Config, **constants: Any) -> None:
    """Run `kernel` over `grid`; nothing where the grid is empty."""
    if math.prod(grid) > 0:
        kernel[grid](*args, **constants, **config.options())


def check(name: str, x: Tensor, device: torch.device, dtypes: Sequence[torch.dtype], *sizes: int) -> None:
    """ValueError naming the argument unless x is dense, on `device`, of one of `dtypes` and of `sizes` (-1: any)."""
    if x.dtype not in dtypes:
        wanted = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise ValueError(f"{name}: expected dtype {wanted}, got {str(x.dtype).removeprefix('torch.')}")
    if x.device != device:
        raise ValueError(f"{name}: is on {x.device}, expected {device}")
    if x.dim() != len(sizes):
        raise ValueError(f"{name}: expected {len(sizes)} dimensions, got {x.dim()}")
    for dimension, (size, wanted_size) in enumerate(zip(x.shape, sizes, strict=True)):
        if wanted_size not in (-1, size):
            raise ValueError(f"{name}: dimension {dimension} is {size}, expected {wanted_size}")
    if not x.is_contiguous():
        raise ValueError(f"{name}: must be contiguous")


def ceil_div(count: int, block: int) -> int:
    """How many blocks cover `count`."""
    return -(-count // block)


def power_of_two(count: int) -> int:
    """The smallest power of two that is not below `count` (at least 1): Triton's tiles have such sides."""
    return 1 << max(0, count - 1).bit_length()


def processors(device: torch.device) -> int:
    """How many programs of a persistent kernel run at a time."""
    if device.type != "cuda":
        return INTERPRETED_PROCESSORS
    count: int = torch.cuda.get_device_properties(device).multi_processor_count
    return count


def check_fp8(device: torch.device) -> None:
    """DeviceError where the hardware has no conversion to E4M3."""
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 9):
        raise DeviceError(f"FP8 kernels need compute capability 8.9 or newer, {device} is older")
