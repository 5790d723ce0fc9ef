"""Quantisation to FP8 on CUDA: blocks of 1 x 128, of 128 x 128 and whole rows; with a residual; fused with a scatter.

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
SQUARE_CONFIGS = (config("exact", warps=8), config("exact", warps=16))
ROW_CONFIGS = (config("exact", warps=8, ROWS=1), config("exact", warps=4, ROWS=1), config("exact", warps=16, ROWS=1))


class Format(NamedTuple):
    """What a kernel knows of a format, whose largest number is 1.75 times a power of two."""

    top: float  # the largest number
    exponent: int  # of that power of two


FORMATS = {torch.float8_e4m3fn: Format(448.0, 8), torch.float8_e5m2: Format(57344.0, 15)}

UNFUSED = {"enable_fp_fusion": False}  # what the codes leave: a product is rounded before it is subtracted

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


@triton.jit
def decoded(codes: tl.tensor, EXPONENT: tl.constexpr) -> tl.tensor:
    """The float32 of codes that are numbers, from their bits: Triton 3.6 on sm_90 converts two of every four wrongly.

    EXPONENT of the format's largest number: 8 of E4M3, 15 of E5M2. A subnormal code becomes a subnormal float32 first.
    """
    mantissa: tl.constexpr = 3 if EXPONENT == 8 else 2
    bias: tl.constexpr = 7 if EXPONENT == 8 else 15
    bits = codes.to(tl.uint8, bitcast=True).to(tl.int32)
    magnitude = ((bits & 0x7F) << (23 - mantissa)).to(tl.float32, bitcast=True)
    power = tl.full(bits.shape, (127 - bias + 127) << 23, tl.int32).to(tl.float32, bitcast=True)
    value = magnitude * power
    return tl.where(bits >= 0x80, -value, value)


@triton.jit
def left_of(x: tl.tensor, codes: tl.tensor, scale: tl.tensor, EXPONENT: tl.constexpr) -> tl.tensor:
    """What the codes leave of x; nothing where x is not finite."""
    return tl.where(magnitude_bits(x) < 0x7F800000, x - decoded(codes, EXPONENT) * scale, 0.0)


@triton.jit
def kept_or(
    scale: tl.tensor, previous: tl.tensor, amax: tl.tensor, low: tl.tensor, high: tl.tensor, TOP: tl.constexpr
) -> tl.tensor:
    """The previous scale while amax stays within its band, else the new one."""
    normal = (previous >= 1.1754943508222875e-38) & (previous <= 3.4028234663852886e38)
    most = previous * TOP
    return tl.where(normal & (amax >= most * low) & (amax <= most * high), previous, scale)


@triton.jit(do_not_specialize=["rows"])
def _blocks(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    row_ptr: tl.tensor,
    code_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    left_ptr: tl.tensor,
    rows: tl.tensor,
    N: tl.tensor,
    K: tl.constexpr,
    TOP: tl.constexpr,
    EXPONENT: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    RESIDUAL: tl.constexpr,
    SCATTER: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """ROWS blocks of one row and BLOCK columns each. SCATTER: token t's codes go to the rows row[t, 0 .. K)."""
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    block, blocks = tl.program_id(1), tl.num_programs(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    live = (row < rows)[:, None] & (column < N)[None, :]
    at = row[:, None] * N + column[None, :]
    x = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + at, mask=live, other=0.0).to(tl.float32)
    amax = tl.max(finite_bits(x), axis=1).to(tl.float32, bitcast=True)
    scale = scale_for(amax, TOP, EXPONENT, POWER_OF_TWO)
    codes = over_scale(x, scale[:, None], POWER_OF_TWO).to(code_ptr.dtype.element_ty)
    if RESIDUAL:
        tl.store(left_ptr + at, left_of(x, codes, scale[:, None], EXPONENT).to(left_ptr.dtype.element_ty), mask=live)
    if SCATTER:
        for k in tl.static_range(K):
            to = tl.load(row_ptr + row * K + k, mask=row < rows, other=0).to(tl.int64)
            tl.store(code_ptr + to[:, None] * N + column[None, :], codes, mask=live)
            tl.store(scale_ptr + to * blocks + block, scale, mask=row < rows)
    else:
        tl.store(code_ptr + at, codes, mask=live)
        tl.store(scale_ptr + row * blocks + block, scale, mask=row < rows)


@triton.jit
def _squares(
    x_ptr: tl.tensor,
    residual_ptr: tl.tensor,
    previous_ptr: tl.tensor,
    code_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    left_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    headroom: tl.tensor,
    low: tl.tensor,
    high: tl.tensor,
    TOP: tl.constexpr,
    EXPONENT: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    RESIDUAL: tl.constexpr,
    STICKY: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """One block of BLOCK x BLOCK. STICKY: a block keeps its previous scale within a band (design.md, section 8)."""
    row = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    live = (row < M) & (column < N)
    x = tl.load(x_ptr + row * N + column, mask=live, other=0.0).to(tl.float32)
    if RESIDUAL:
        x += tl.load(residual_ptr + row * N + column, mask=live, other=0.0).to(tl.float32)
    amax = tl.max(tl.max(finite_bits(x), axis=1), axis=0).to(tl.float32, bitcast=True)
    scale = scale_for(amax * headroom, TOP, EXPONENT, POWER_OF_TWO)
    at = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    if STICKY:
        scale = kept_or(scale, tl.load(previous_ptr + at), amax, low, high, TOP)
    codes = over_scale(x, scale, POWER_OF_TWO and not STICKY).to(code_ptr.dtype.element_ty)
    tl.store(code_ptr + row * N + column, codes, mask=live)
    tl.store(scale_ptr + at, scale)
    if RESIDUAL:
        tl.store(
            left_ptr + row * N + column, left_of(x, codes, scale, EXPONENT).to(left_ptr.dtype.element_ty), mask=live
        )


def quantize_rows(
    x_MN: Tensor,
    width: int = 128,
    format: torch.dtype = torch.float8_e4m3fn,
    power_of_two_scale: bool = True,
    residual_MN: Tensor | None = None,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(codes_MN, scale float32 [M, ceil(N / width)], left_MN): x, or x + residual, is codes * scale + left.

    x float32 or bfloat16 [M, N]; width: 128, or N for a scale per row; residual float32 or bfloat16, with `left` of its
    dtype, or None and None. ValueError names the argument that does not fit.
    """
    rows, columns = _check(x_MN, format, residual_MN)
    if width not in (128, columns):
        raise ValueError(f"width: expected 128 or the row's {columns}, got {width}")
    if width > WIDEST:
        raise ValueError(f"x: rows of {columns} columns, expected at most {WIDEST}")
    config = config or (CONFIGS[0] if width == 128 else ROW_CONFIGS[0])
    blocks = ceil_div(columns, max(width, 1))
    codes_MN, scale = x_MN.new_empty((rows, columns), dtype=format), x_MN.new_empty((rows, blocks), dtype=torch.float32)
    left_MN = None if residual_MN is None else torch.empty_like(residual_MN)
    constants = constants_of(format, power_of_two_scale) | {"RESIDUAL": residual_MN is not None} | UNFUSED
    constants |= {"K": 1, "SCATTER": False, "BLOCK": power_of_two(width)}
    args = (x_MN, residual_MN, None, codes_MN, scale, left_MN, rows, columns)
    launch(_blocks, (ceil_div(rows, config.block("ROWS")), blocks), *args, config=config, **constants)
    return codes_MN, scale, left_MN


def quantize_squares(
    x_MN: Tensor,
    format: torch.dtype = torch.float8_e4m3fn,
    power_of_two_scale: bool = True,
    residual_MN: Tensor | None = None,
    previous_PQ: Tensor | None = None,
    band: tuple[float, float, float] = (1.0, 0.0, 1.0),
    *,
    config: Config = SQUARE_CONFIGS[0],
) -> tuple[Tensor, Tensor, Tensor | None]:
    """(codes_MN, scale_PQ float32, left_MN) of blocks of 128 x 128; the rest as of `quantize_rows`.

    previous_PQ: scales of an earlier call. band: (headroom, low, high). A new scale fits headroom * amax; a block keeps
    its previous one while low * most <= amax <= high * most, `most` being the largest number that it can express.
    """
    rows, columns = _check(x_MN, format, residual_MN)
    grid = (ceil_div(rows, 128), ceil_div(columns, 128))
    if previous_PQ is not None:
        check("previous", previous_PQ, x_MN.device, (torch.float32,), *grid)
    codes_MN, scale_PQ = x_MN.new_empty((rows, columns), dtype=format), x_MN.new_empty(grid, dtype=torch.float32)
    left_MN = None if residual_MN is None else torch.empty_like(residual_MN)
    constants = constants_of(format, power_of_two_scale) | {"RESIDUAL": residual_MN is not None, "BLOCK": 128} | UNFUSED
    args = (x_MN, residual_MN, previous_PQ, codes_MN, scale_PQ, left_MN, rows, columns, *band)
    launch(_squares, grid, *args, config=config, STICKY=previous_PQ is not None, **constants)
    return codes_MN, scale_PQ, left_MN


def quantize_permute(
    x_TN: Tensor,
    row_TK: Tensor,
    format: torch.dtype = torch.float8_e4m3fn,
    power_of_two_scale: bool = True,
    *,
    config: Config = CONFIGS[0],
) -> tuple[Tensor, Tensor]:
    """(codes_RN, scale float32 [R, ceil(N / 128)]): quantised over 1 x 128 once per token, written to its K rows.

    row_TK int32: every number below R = T * K once, as `Routing.row_TK` has them.
    """
    rows, columns = _check(x_TN, format, None)
    check("row", row_TK, x_TN.device, (torch.int32,), rows, -1)
    blocks = ceil_div(columns, 128)
    codes_RN = x_TN.new_empty((row_TK.numel(), columns), dtype=format)
    scale = x_TN.new_empty((row_TK.numel(), blocks), dtype=torch.float32)
    constants = constants_of(format, power_of_two_scale) | {"RESIDUAL": False, "SCATTER": True, "BLOCK": 128}
    args = (x_TN, None, row_TK, codes_RN, scale, None, rows, columns, row_TK.shape[1])
    launch(_blocks, (ceil_div(rows, config.block("ROWS")), blocks), *args, config=config, **constants)
    return codes_RN, scale


def constants_of(format: torch.dtype, power_of_two_scale: bool) -> dict[str, int | float | bool]:
    """What the device functions above take of a format. ValueError unless it is one that the kernels write."""
    if format not in FORMATS:
        raise ValueError(f"format: expected torch.float8_e4m3fn or torch.float8_e5m2, got {format}")
    top, exponent = FORMATS[format]
    return {"TOP": top, "EXPONENT": exponent, "POWER_OF_TWO": power_of_two_scale}


def _check(x_MN: Tensor, format: torch.dtype, residual_MN: Tensor | None) -> torch.Size:
    constants_of(format, True)
    check_fp8(x_MN.device)
    check("x", x_MN, x_MN.device, FLOATS, -1, -1)
    if residual_MN is not None:
        check("residual", residual_MN, x_MN.device, FLOATS, *x_MN.shape)
    return x_MN.shape
