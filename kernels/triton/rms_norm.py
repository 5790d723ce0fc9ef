"""RMSNorm on CUDA, alone or of a sum, there and back, or straight to FP8 (contract: kernels/norm.py).

Forward: one program holds one row, so x is read once. Backward: a program walks a fixed share of the rows, writes their
dx and keeps their part of the weight's gradient; a second kernel adds the parts in order. No atomics: two runs agree.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.fp8 import constants_of, finite_bits, over_scale, scale_for
from seedthink.kernels.triton.launch import FLOATS, Config, ceil_div, check, check_fp8, config, launch, power_of_two

WIDEST = 16384  # columns: what one program's registers hold
PARTS = 512  # programs of the backward, where there are rows enough
FEWEST_ROWS = 16  # rows below which a part is not worth its own line of memory

# A row's sum is a tree over threads, so every number of warps is a numerics class of its own.
CONFIGS = tuple(config(f"tree of {warps} warps", warps=warps) for warps in (1, 2, 4, 8, 16))
SUM_CONFIGS = (config("32 chains, then a tree", warps=4, ROWS=32, BLOCK=32),)


def default_config(width: int) -> Config:
    """Sixteen columns for each thread, which are two vector loads of bfloat16."""
    warps = min(16, max(1, power_of_two(width) // 512))
    return next(each for each in CONFIGS if each.warps == warps)


@triton.jit
def _forward(
    x_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    D: tl.tensor,
    eps: tl.tensor,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    live = column < D
    x = tl.load(x_ptr + row * D + column, mask=live, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta_ptr + row * D + column, mask=live, other=0.0).to(tl.float32)
        total = x.to(sum_ptr.dtype.element_ty)  # the norm sees what is stored, as if it were a call of its own
        tl.store(sum_ptr + row * D + column, total, mask=live)
        x = total.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(x * x, axis=0) / D + eps)
    weight = tl.load(weight_ptr + column, mask=live, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * D + column, (x * rstd * weight).to(y_ptr.dtype.element_ty), mask=live)
    tl.store(rstd_ptr + row, rstd)


@triton.jit
def _quantize(
    x_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    sum_ptr: tl.tensor,
    code_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    D: tl.tensor,
    eps: tl.tensor,
    ADD: tl.constexpr,
    TOP: tl.constexpr,
    EXPONENT: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    BLOCKS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row, blocks = tl.program_id(0).to(tl.int64), tl.cdiv(D, BLOCK)
    block = tl.arange(0, BLOCKS)
    column = block[:, None] * BLOCK + tl.arange(0, BLOCK)[None, :]
    live = column < D
    x = tl.load(x_ptr + row * D + column, mask=live, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(delta_ptr + row * D + column, mask=live, other=0.0).to(tl.float32)
        total = x.to(sum_ptr.dtype.element_ty)
        tl.store(sum_ptr + row * D + column, total, mask=live)
        x = total.to(tl.float32)
    rstd = 1.0 / tl.sqrt(tl.sum(tl.sum(x * x, axis=1), axis=0) / D + eps)
    weight = tl.load(weight_ptr + column, mask=live, other=0.0).to(tl.float32)
    y = (x * rstd * weight).to(x_ptr.dtype.element_ty).to(tl.float32)
    amax = tl.max(finite_bits(y), axis=1).to(tl.float32, bitcast=True)
    scale = scale_for(amax, TOP, EXPONENT, POWER_OF_TWO)
    codes = over_scale(y, scale[:, None], POWER_OF_TWO).to(code_ptr.dtype.element_ty)
    tl.store(code_ptr + row * D + column, codes, mask=live)
    tl.store(scale_ptr + row * blocks + block, scale, mask=block < blocks)


@triton.jit(do_not_specialize=["rows", "rows_each"])
def _backward(
    dsum_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    x_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    rstd_ptr: tl.tensor,
    dx_ptr: tl.tensor,
    part_ptr: tl.tensor,
    rows: tl.tensor,
    rows_each: tl.tensor,
    D: tl.tensor,
    ADD: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    part = tl.program_id(0)
    column = tl.arange(0, BLOCK)
    live = column < D
    dweight = tl.zeros((BLOCK,), tl.float32)
    first = part * rows_each
    start = first.to(tl.int64) * D
    for row in range(first, tl.minimum(first + rows_each, rows)):
        dy = tl.load(dy_ptr + start + column, mask=live, other=0.0).to(tl.float32)
        x = tl.load(x_ptr + start + column, mask=live, other=0.0).to(tl.float32)
        weight = tl.load(weight_ptr + column, mask=live, other=0.0).to(tl.float32)
        rstd = tl.load(rstd_ptr + row)
        mean = tl.sum(dy * weight * x, axis=0) * rstd * rstd * rstd / D
        if BLOCK > 8192:  # the rows would not stay in the registers: they are read again, out of L2
            dy = tl.load(dy_ptr + start + column, mask=live, other=0.0, cache_modifier=".cg").to(tl.float32)
            x = tl.load(x_ptr + start + column, mask=live, other=0.0, cache_modifier=".cg").to(tl.float32)
            weight = tl.load(weight_ptr + column, mask=live, other=0.0, cache_modifier=".cg").to(tl.float32)
        dx = dy * weight * rstd - x * mean
        dweight += dy * x * rstd
        if ADD:
            dx += tl.load(dsum_ptr + start + column, mask=live, other=0.0).to(tl.float32)
        tl.store(dx_ptr + start + column, dx.to(dx_ptr.dtype.element_ty), mask=live)
        start += D
    tl.store(part_ptr + part.to(tl.int64) * D + column, dweight, mask=live)


@triton.jit(do_not_specialize=["count"])
def _sum_parts(
    part_ptr: tl.tensor, out_ptr: tl.tensor, count: tl.tensor, D: tl.tensor, ROWS: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, count, ROWS):
        part = first + tl.arange(0, ROWS)
        live = (part < count)[:, None] & (column < D)[None, :]
        total += tl.load(part_ptr + part.to(tl.int64)[:, None] * D + column[None, :], mask=live, other=0.0)
    tl.store(out_ptr + column, tl.sum(total, axis=0).to(out_ptr.dtype.element_ty), mask=column < D)


def forward(x_TD: Tensor, weight_D: Tensor, eps: float, *, config: Config | None = None) -> tuple[Tensor, Tensor]:
    """(y_TD, rstd_T); x float32 or bfloat16, statistics float32."""
    y_TD, rstd_T = torch.empty_like(x_TD), _check_rows(x_TD, weight_D)
    _launch_forward(x_TD, None, weight_D, eps, None, y_TD, rstd_T, config)
    return y_TD, rstd_T


def add_forward(
    x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float, *, config: Config | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """(sum_TD, y_TD, rstd_T) of x + delta."""
    rstd_T = _check_rows(x_TD, weight_D)
    check("delta", delta_TD, x_TD.device, (x_TD.dtype,), *x_TD.shape)
    sum_TD, y_TD = torch.empty_like(x_TD), torch.empty_like(x_TD)
    _launch_forward(x_TD, delta_TD, weight_D, eps, sum_TD, y_TD, rstd_T, config)
    return sum_TD, y_TD, rstd_T


def quantized(
    x_TD: Tensor,
    delta_TD: Tensor | None,
    weight_D: Tensor,
    eps: float,
    format: torch.dtype = torch.float8_e4m3fn,
    power_of_two_scale: bool = True,
    *,
    config: Config | None = None,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """(sum_TD, codes_TD of `format`, scale float32 [T, ceil(D / 128)]): the norm of x, or of x + delta, over 1 x 128.

    Quantised is what `forward` would store, up to a last bit: here a row's sum goes block by block. sum is None without
    delta.
    """
    check_fp8(x_TD.device)
    _check_rows(x_TD, weight_D)
    if delta_TD is not None:
        check("delta", delta_TD, x_TD.device, (x_TD.dtype,), *x_TD.shape)
    rows, width = x_TD.shape
    blocks = ceil_div(width, 128)
    sum_TD = None if delta_TD is None else torch.empty_like(x_TD)
    codes_TD, scale = x_TD.new_empty((rows, width), dtype=format), x_TD.new_empty((rows, blocks), dtype=torch.float32)
    constants = constants_of(format, power_of_two_scale)
    constants |= {"ADD": delta_TD is not None, "BLOCKS": power_of_two(blocks), "BLOCK": 128}
    args = (x_TD, delta_TD, weight_D, sum_TD, codes_TD, scale, width, eps)
    launch(_quantize, (rows,), *args, config=config or default_config(width), **constants)
    return sum_TD, codes_TD, scale


def _launch_forward(
    x_TD: Tensor,
    delta_TD: Tensor | None,
    weight_D: Tensor,
    eps: float,
    sum_TD: Tensor | None,
    y_TD: Tensor,
    rstd_T: Tensor,
    config: Config | None,
) -> None:
    """delta and sum together, or neither."""
    rows, width = x_TD.shape
    chosen, constants = config or default_config(width), {"ADD": delta_TD is not None, "BLOCK": power_of_two(width)}
    args = (x_TD, delta_TD, weight_D, sum_TD, y_TD, rstd_T, width, eps)
    launch(_forward, (rows,), *args, config=chosen, **constants)


def backward(
    dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, *, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """(dx_TD, dweight_D)."""
    return _gradients(None, dy_TD, x_TD, weight_D, rstd_T, config)


def add_backward(
    dsum_TD: Tensor, dy_TD: Tensor, sum_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, *, config: Config | None = None
) -> tuple[Tensor, Tensor]:
    """(dx_TD, dweight_D), where dx takes what comes through the sum as well."""
    check("dsum", dsum_TD, sum_TD.device, (sum_TD.dtype,), *sum_TD.shape)
    return _gradients(dsum_TD, dy_TD, sum_TD, weight_D, rstd_T, config)


def _gradients(
    dsum_TD: Tensor | None, dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor, config: Config | None
) -> tuple[Tensor, Tensor]:
    _check_rows(x_TD, weight_D)
    rows, width = x_TD.shape
    check("dy", dy_TD, x_TD.device, (x_TD.dtype,), rows, width)
    check("rstd", rstd_T, x_TD.device, (torch.float32,), rows)
    dx_TD, dweight_D = torch.empty_like(x_TD), torch.empty_like(weight_D)
    rows_each = max(FEWEST_ROWS, ceil_div(rows, PARTS))
    part_PD = x_TD.new_empty((ceil_div(rows, rows_each), width), dtype=torch.float32)
    args = (dsum_TD, dy_TD, x_TD, weight_D, rstd_T, dx_TD, part_PD, rows, rows_each, width)
    constants = {"ADD": dsum_TD is not None, "BLOCK": power_of_two(width)}
    launch(_backward, (part_PD.shape[0],), *args, config=config or default_config(width), **constants)
    adding = SUM_CONFIGS[0]
    launch(
        _sum_parts, (ceil_div(width, adding.block("BLOCK")),), part_PD, dweight_D, len(part_PD), width, config=adding
    )
    return dx_TD, dweight_D


def _check_rows(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    """Checks what every entry takes; returns room for the rows' statistics."""
    check("x", x_TD, x_TD.device, FLOATS, -1, -1)
    rows, width = x_TD.shape
    check("weight", weight_D, x_TD.device, FLOATS, width)
    if width > WIDEST:
        raise ValueError(f"x: rows of {width} columns, expected at most {WIDEST}")
    return x_TD.new_empty((rows,), dtype=torch.float32)
