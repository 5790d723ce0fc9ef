"""Rotary position embedding on CUDA, half-split, into fresh memory or in place (contract: kernels/rope.py).

A program turns some heads of one token and reads the token's angles once. A position outside the table is not read
through: the token's heads become NaN.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.launch import FLOATS, Config, ceil_div, check, config, launch, power_of_two

CONFIGS = (
    config("elementwise", warps=4, HEADS=16),
    config("elementwise", warps=2, HEADS=8),
    config("elementwise", warps=8, HEADS=32),
)


@triton.jit(do_not_specialize=["positions"])
def _turn(
    x_ptr: tl.tensor,
    table_ptr: tl.tensor,
    position_ptr: tl.tensor,
    y_ptr: tl.tensor,
    positions: tl.tensor,
    N: tl.tensor,
    H: tl.constexpr,
    BACK: tl.constexpr,
    HEADS: tl.constexpr,
    HALF: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    pair = tl.arange(0, HALF)
    position = tl.load(position_ptr + token)
    known = (position >= 0) & (position < positions)
    angle_ptr = table_ptr + tl.where(known, position, 0).to(tl.int64) * H + pair
    cos = tl.where(known, tl.load(angle_ptr, mask=pair < H // 2, other=0.0), float("nan"))[None, :]
    sin = tl.load(angle_ptr + H // 2, mask=pair < H // 2, other=0.0)[None, :]
    if BACK:
        sin = -sin
    live = (head < N)[:, None] & (pair < H // 2)[None, :]
    at = (token * N + head)[:, None] * H + pair[None, :]
    low = tl.load(x_ptr + at, mask=live, other=0.0).to(tl.float32)
    high = tl.load(x_ptr + at + H // 2, mask=live, other=0.0).to(tl.float32)
    tl.store(y_ptr + at, (low * cos - high * sin).to(y_ptr.dtype.element_ty), mask=live)
    tl.store(y_ptr + at + H // 2, (high * cos + low * sin).to(y_ptr.dtype.element_ty), mask=live)


def turn(
    x_TNH: Tensor, table: Tensor, positions_T: Tensor, back: bool = False, *, config: Config = CONFIGS[0]
) -> Tensor:
    """Every head of token t turned by the angles of positions_T[t], or back by them. x float32 or bfloat16."""
    y_TNH = torch.empty_like(x_TNH)
    _launch(x_TNH, table, positions_T, back, y_TNH, config)
    return y_TNH


def turn_(
    x_TNH: Tensor, table: Tensor, positions_T: Tensor, back: bool = False, *, config: Config = CONFIGS[0]
) -> Tensor:
    """`turn` in place: half the memory traffic, for the engine's own buffers. Returns x."""
    _launch(x_TNH, table, positions_T, back, x_TNH, config)
    return x_TNH


def _launch(x_TNH: Tensor, table: Tensor, positions_T: Tensor, back: bool, y_TNH: Tensor, config: Config) -> None:
    check("x", x_TNH, x_TNH.device, FLOATS, -1, -1, -1)
    tokens, heads, width = x_TNH.shape
    if width % 2:
        raise ValueError(f"x: the head's width {width} must be even")
    check("table", table, x_TNH.device, (torch.float32,), -1, width)
    check("positions", positions_T, x_TNH.device, (torch.int32,), tokens)
    grid = (tokens, ceil_div(heads, config.block("HEADS")))
    constants = {"H": width, "BACK": back, "HALF": power_of_two(width // 2)}
    launch(_turn, grid, x_TNH, table, positions_T, y_TNH, table.shape[0], heads, config=config, **constants)
