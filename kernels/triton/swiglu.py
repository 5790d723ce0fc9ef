"""SwiGLU on CUDA, there and back, and with its output quantised to FP8 (contract: kernels/activation.py).

Elementwise: tiles move memory and never bits. The quantised variant scales blocks of 1 x 128 as kernels/triton/fp8.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.fp8 import constants_of, finite_bits, over_scale, scale_for
from seedthink.kernels.triton.launch import FLOATS, Config, ceil_div, check, check_fp8, config, launch

CONFIGS = (
    config("elementwise", warps=4, ROWS=4, BLOCK=256),
    config("elementwise", warps=4, ROWS=1, BLOCK=1024),
    config("elementwise", warps=4, ROWS=2, BLOCK=1024),
    config("elementwise", warps=8, ROWS=16, BLOCK=128),
)
QUANTIZE_CONFIGS = (
    config("exact", warps=4, ROWS=8),
    config("exact", warps=4, ROWS=16),
    config("exact", warps=8, ROWS=32),
)


@triton.jit
def silu_times(gate: tl.tensor, up: tl.tensor) -> tl.tensor:
    """silu(gate) * up."""
    return gate * tl.sigmoid(gate) * up


@triton.jit(do_not_specialize=["rows"])
def _forward(
    gate_up_ptr: tl.tensor,
    y_ptr: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    live = (row < rows) & (column < width)
    gate_ptr = gate_up_ptr + row * (2 * width) + column
    gate = tl.load(gate_ptr, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=live, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * width + column, silu_times(gate, up).to(y_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    dy_ptr: tl.tensor,
    gate_up_ptr: tl.tensor,
    dgate_up_ptr: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)[:, None]
    column = (tl.program_id(1) * BLOCK + tl.arange(0, BLOCK))[None, :]
    live = (row < rows) & (column < width)
    at = row * (2 * width) + column
    gate = tl.load(gate_up_ptr + at, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + at + width, mask=live, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + row * width + column, mask=live, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    dgate = dy * up * (share * (1.0 + gate * (1.0 - share)))
    tl.store(dgate_up_ptr + at, dgate.to(dgate_up_ptr.dtype.element_ty), mask=live)
    tl.store(dgate_up_ptr + at + width, (dy * gate * share).to(dgate_up_ptr.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=["rows"])
def _quantize(
    gate_up_ptr: tl.tensor,
    code_ptr: tl.tensor,
    scale_ptr: tl.tensor,
    rows: tl.tensor,
    width: tl.tensor,
    TOP: tl.constexpr,
    EXPONENT: tl.constexpr,
    POWER_OF_TWO: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    block = tl.program_id(1)
    column = block * BLOCK + tl.arange(0, BLOCK)
    live = (row < rows)[:, None] & (column < width)[None, :]
    gate_ptr = gate_up_ptr + row[:, None] * (2 * width) + column[None, :]
    gate = tl.load(gate_ptr, mask=live, other=0.0).to(tl.float32)
    up = tl.load(gate_ptr + width, mask=live, other=0.0).to(tl.float32)
    y = silu_times(gate, up).to(gate_up_ptr.dtype.element_ty).to(tl.float32)  # as the operation alone stores it
    amax = tl.max(finite_bits(y), axis=1).to(tl.float32, bitcast=True)
    scale = scale_for(amax, TOP, EXPONENT, POWER_OF_TWO)
    codes = over_scale(y, scale[:, None], POWER_OF_TWO).to(code_ptr.dtype.element_ty)
    tl.store(code_ptr + row[:, None] * width + column[None, :], codes, mask=live)
    tl.store(scale_ptr + row * tl.num_programs(1) + block, scale, mask=row < rows)


def forward(gate_up_T_2I: Tensor, *, config: Config = CONFIGS[0]) -> Tensor:
    """y_TI; float32 or bfloat16, computed in float32."""
    rows, width = _sizes(gate_up_T_2I)
    y_TI = gate_up_T_2I.new_empty((rows, width))
    launch(_forward, _grid(rows, width, config), gate_up_T_2I, y_TI, rows, width, config=config)
    return y_TI


def backward(dy_TI: Tensor, gate_up_T_2I: Tensor, *, config: Config = CONFIGS[0]) -> Tensor:
    """The gradient of gate_up."""
    rows, width = _sizes(gate_up_T_2I)
    check("dy", dy_TI, gate_up_T_2I.device, (gate_up_T_2I.dtype,), rows, width)
    dgate_up = torch.empty_like(gate_up_T_2I)
    launch(_backward, _grid(rows, width, config), dy_TI, gate_up_T_2I, dgate_up, rows, width, config=config)
    return dgate_up


def quantized(
    gate_up_T_2I: Tensor,
    format: torch.dtype = torch.float8_e4m3fn,
    power_of_two_scale: bool = True,
    *,
    config: Config = QUANTIZE_CONFIGS[0],
) -> tuple[Tensor, Tensor]:
    """(codes_TI of `format`, scale float32 [T, ceil(I / 128)]): the bits of `forward`, then of `quantize_rows`."""
    check_fp8(gate_up_T_2I.device)
    rows, width = _sizes(gate_up_T_2I)
    blocks = ceil_div(width, 128)
    codes_TI = gate_up_T_2I.new_empty((rows, width), dtype=format)
    scale = gate_up_T_2I.new_empty((rows, blocks), dtype=torch.float32)
    grid = (ceil_div(rows, config.block("ROWS")), blocks)
    constants = constants_of(format, power_of_two_scale) | {"BLOCK": 128}
    launch(_quantize, grid, gate_up_T_2I, codes_TI, scale, rows, width, config=config, **constants)
    return codes_TI, scale


def _sizes(gate_up_T_2I: Tensor) -> tuple[int, int]:
    check("gate_up", gate_up_T_2I, gate_up_T_2I.device, FLOATS, -1, -1)
    rows, columns = gate_up_T_2I.shape
    if columns % 2:
        raise ValueError(f"gate_up: the width {columns} must be even")
    return rows, columns // 2


def _grid(rows: int, width: int, config: Config) -> tuple[int, int]:
    return ceil_div(rows, config.block("ROWS")), ceil_div(width, config.block("BLOCK"))
