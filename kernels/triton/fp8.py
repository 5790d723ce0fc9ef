"""Quantisation to FP8 by Triton: blocks of 1 x 128 and whole rows, and what norms and SwiGLU that end in FP8 share.

The arithmetic of csrc/fp8, bit for bit. A block's scale is its largest finite magnitude over the largest number of the
format, as it is or rounded up to a power of two, never below the smallest normal number; codes are x / scale, rounded
to nearest even and saturated. A power of two comes from exponent bits (log2 and exp2 are not exact) and is chosen
before it is used, never after. NaN and infinity become the code NaN and do not count for the scale.
The hardware's conversion to E4M3 exists from sm_89 on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.launch import FLOATS, Config, ceil_div, check, check_fp8, config, launch, power_of_two

WIDEST = 16384  # columns of a row that is one block

# A maximum does not depend on the order, so tiles and warps move no bits here.
CONFIGS = (
    config("exact", warps=4, ROWS=16),
    config("exact", warps=4, ROWS=8),
    config("exact", warps=8, ROWS=32),
)
ROW_CONFIGS = (config("exact", warps=8, ROWS=1), config("exact", warps=4, ROWS=1), config("exact", warps=16, ROWS=1))


class Format(NamedTuple):
    """What a kernel knows of a format, whose largest number is 1.75 times a power of two."""

    top: float  # the largest number
    exponent: int  # of that power of two


FORMATS = {torch.float8_e4m3fn: Format(448.0, 8), torch.float8_e5m2: Format(57344.0, 15)}

BY_NAME = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}


@triton.jit
def magnitude_bits(x: tl.tensor) -> tl.tensor:
    """The bits of |x|: as integers they order floats, infinity above all of them and NaN above infinity."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def finite_bits(x: tl.tensor) -> tl.tensor:
    """The bits of |x|, or 0 for NaN and infinity."""
    bits = magnitude_bits(x)
    return tl.where(bits < 0x7F800000, bits, 0)


@triton.jit
def scale_for(amax: tl.tensor, TOP: tl.constexpr, EXPONENT: tl.constexpr, POWER_OF_TWO: tl.constexpr) -> tl.tensor:
    """The scale under which numbers up to amax fit: amax / TOP, or the power of two that is not below it."""
    held = tl.minimum(tl.maximum(amax, TOP * 1.1754943508222875e-38), 3.4028234663852886e38)
    if POWER_OF_TWO:
        # amax = m 2^e needs 2^(e - EXPONENT), or twice that where m > 1.75: the carry of .25 less one bit tells which.
        field = ((held.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23) - EXPONENT
        scale = (tl.minimum(tl.maximum(field, 1), 254) << 23).to(tl.float32, bitcast=True)
    else:
        scale = tl.div_rn(held, TOP)
    return scale


@triton.jit
def over_scale(x: tl.tensor, scale: tl.tensor, POWER_OF_TWO: tl.constexpr) -> tl.tensor:
    """x / scale, NaN where x is not finite. POWER_OF_TWO: by an exact reciprocal, the bits being the same."""
    if POWER_OF_TWO:
        y = x * (0x7F000000 - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
    else:
        y = tl.div_rn(x, scale)
    return tl.where(magnitude_bits(x) < 0x7F800000, y, float("nan"))


@triton.jit(do_not_specialize=["rows"])
def _blocks(
    x_ptr: tl.tensor,
    code_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    rows: tl.tensor,
    N: tl.tensor,
    TOP: tl.constexpr,
    EXPONENT: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """ROWS blocks of one row and BLOCK columns each."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    live = (row < rows)[:, None] & (column < N)[None, :]
    at = row[:, None] * N + column[None, :]
    x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    amax = tl.max(finite_bits(x), axis=1).to(tl.float32, bitcast=True)
    scale = scale_for(amax, TOP, EXPONENT, POWER_OF_TWO)
    codes = over_scale(x, scale[:, None], POWER_OF_TWO).to(code_ptr.dtype.element_ty)
    tl.store(code_ptr + at, codes, mask=live)
    tl.store(scale_ptr + row * blocks + block, scale, mask=row < rows)


def quantize_rows(
    x_MN: Tensor,
    width: int = 128,
    format: torch.dtype = torch.float8_e4m3fn,
    power_of_two_scale: bool = True,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """(codes_MN, scale float32 [M, ceil(N / width)]) of x, float32 or bfloat16 [M, N].

    width: 128, or N for a scale per row. ValueError names the argument that does not fit.
    """
    rows, columns = _check(x_MN, format)
    if width not in (128, columns):
        raise ValueError(f"width: expected 128 or the row's {columns}, got {width}")
    if width > WIDEST:
        raise ValueError(f"x: rows of {columns} columns, expected at most {WIDEST}")
    config = config or (CONFIGS[0] if width == 128 else ROW_CONFIGS[0])
    blocks = ceil_div(columns, max(width, 1))
    codes_MN, scale = x_MN.new_empty((rows, columns), dtype=format), x_MN.new_empty((rows, blocks), dtype=torch.float32)
    constants = constants_of(format, power_of_two_scale) | {"BLOCK": power_of_two(width)}
    args = (x_MN, codes_MN, scale, rows, columns)
    launch(_blocks, (ceil_div(rows, config.block("ROWS")), blocks), *args, config=config, **constants)
    return codes_MN, scale


def constants_of(format: torch.dtype, power_of_two_scale: bool) -> dict[str, int | float | bool]:
    """What the device functions above take of a format. ValueError unless it is one that the kernels write."""
    if format not in FORMATS:
        raise ValueError(f"format: expected torch.float8_e4m3fn or torch.float8_e5m2, got {format}")
    top, exponent = FORMATS[format]
    return {"TOP": top, "EXPONENT": exponent, "POWER_OF_TWO": power_of_two_scale}


def _check(x_MN: Tensor, format: torch.dtype) -> torch.Size:
    constants_of(format, True)
    check_fp8(x_MN.device)
    check("x", x_MN, x_MN.device, FLOATS, -1, -1)
    return x_MN.shape
