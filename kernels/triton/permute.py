"""Rows of tokens to the order of experts and back on CUDA (contract: kernels/permute.py and `Routing`).

Permute reads a token's row once and writes it to its K places. Combine reads a token's K rows in ascending k, which is
the order of experts, adds them in float32 and writes once. Every address is written by one program: no atomics, no
zero-fill, the same bits on every run, and a token's bits are its own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.launch import FLOATS, Config, ceil_div, check, config, launch, power_of_two

WIDEST = 16384  # columns of a row whose K dot products one program takes

CONFIGS = (
    config("by k", warps=4, BLOCK=1024),
    config("by k", warps=4, BLOCK=2048),
    config("by k", warps=8, BLOCK=4096),
    config("by k", warps=2, BLOCK=512),
)
GRADIENT_CONFIGS = (config("tree of 8 warps", warps=8), config("tree of 4 warps", warps=4))


@triton.jit
def _permute(
    x_ptr: tl.tensor, row_ptr: tl.tensor, y_ptr: tl.tensor, D: tl.tensor, K: tl.constexpr, BLOCK: tl.constexpr
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + token * D + column, mask=column < D)
    for k in tl.static_range(K):
        to = tl.load(row_ptr + token * K + k).to(tl.int64)
        tl.store(y_ptr + to * D + column, x, mask=column < D)


@triton.jit
def _combine(
    y_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    row_ptr: tl.tensor,
    out_ptr: tl.tensor,
    D: tl.tensor,
    K: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for k in tl.static_range(K):
        row = tl.load(row_ptr + token * K + k).to(tl.int64)
        y = tl.load(y_ptr + row * D + column, mask=column < D, other=0.0).to(tl.float32)
        if WEIGHTED:
            y *= tl.load(weight_ptr + token * K + k)
        total += y
    tl.store(out_ptr + token * D + column, total.to(out_ptr.dtype.element_ty), mask=column < D)


@triton.jit
def _combine_backward(
    dout_ptr: tl.tensor,
    y_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    row_ptr: tl.tensor,
    dy_ptr: tl.tensor,
    dweight_ptr: tl.tensor,
    D: tl.tensor,
    K: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    dout = tl.load(dout_ptr + token * D + column, mask=column < D, other=0.0).to(tl.float32)
    for k in range(K):
        row = tl.load(row_ptr + token * K + k).to(tl.int64)
        y = tl.load(y_ptr + row * D + column, mask=column < D, other=0.0).to(tl.float32)
        tl.store(dweight_ptr + token * K + k, tl.sum(dout * y, axis=0))
        dy = dout * tl.load(weight_ptr + token * K + k)
        tl.store(dy_ptr + row * D + column, dy.to(dy_ptr.dtype.element_ty), mask=column < D)


def permute(x_TD: Tensor, row_TK: Tensor, *, config: Config = CONFIGS[0]) -> Tensor:
    """x_RD with row row_TK[t, k] = x_TD[t], any dtype of 2 or 4 bytes; row_TK int32 holds every number below R once."""
    check("x", x_TD, x_TD.device, FLOATS, -1, -1)
    tokens, width = x_TD.shape
    check("row", row_TK, x_TD.device, (torch.int32,), tokens, -1)
    x_RD = x_TD.new_empty((row_TK.numel(), width))
    grid = (tokens, ceil_div(width, config.block("BLOCK")))
    launch(_permute, grid, x_TD, row_TK, x_RD, width, config=config, K=row_TK.shape[1])
    return x_RD


def combine(y_RD: Tensor, weight_TK: Tensor | None, row_TK: Tensor, *, config: Config = CONFIGS[0]) -> Tensor:
    """y_TD = sum over k ascending of weight_TK[t, k] * y_RD[row_TK[t, k]], in float32. No weight: the plain sum."""
    tokens, k, width = _check_rows(y_RD, weight_TK, row_TK)
    y_TD = y_RD.new_empty((tokens, width))
    grid = (tokens, ceil_div(width, config.block("BLOCK")))
    constants = {"K": k, "WEIGHTED": weight_TK is not None}
    launch(_combine, grid, y_RD, weight_TK, row_TK, y_TD, width, config=config, **constants)
    return y_TD


def combine_backward(
    dout_TD: Tensor, y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, *, config: Config = GRADIENT_CONFIGS[0]
) -> tuple[Tensor, Tensor]:
    """(dy_RD, dweight_TK) of `combine`."""
    tokens, k, width = _check_rows(y_RD, weight_TK, row_TK)
    check("dout", dout_TD, y_RD.device, (y_RD.dtype,), tokens, width)
    if width > WIDEST:
        raise ValueError(f"y: rows of {width} columns, expected at most {WIDEST}")
    dy_RD, dweight_TK = torch.empty_like(y_RD), torch.empty_like(weight_TK)
    args = (dout_TD, y_RD, weight_TK, row_TK, dy_RD, dweight_TK, width)
    launch(_combine_backward, (tokens,), *args, config=config, K=k, BLOCK=power_of_two(width))
    return dy_RD, dweight_TK


def _check_rows(y_RD: Tensor, weight_TK: Tensor | None, row_TK: Tensor) -> tuple[int, int, int]:
    check("row", row_TK, y_RD.device, (torch.int32,), -1, -1)
    check("y", y_RD, y_RD.device, FLOATS, row_TK.numel(), -1)
    if weight_TK is not None:
        check("weight", weight_TK, y_RD.device, (torch.float32,), *row_TK.shape)
    return *row_TK.shape, y_RD.shape[1]
