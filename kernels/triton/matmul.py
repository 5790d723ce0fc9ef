"""The dense product on CUDA, with one order of the sum over K: forward, input gradient and weight gradient of `linear`.

y[m, n] = sum over k ascending of a[m, k] b[k, n]; both operands come with strides: the three products are one kernel.
K is never split and every configuration of one operand type uses the same tensor-core instruction (bfloat16: wgmma,
chains of 16 k, for which a tile needs 64 rows at least; fewer rows are filled up with zeros). An element's chain then
depends on K alone: not on how many rows stand beside it, nor on the tile. float32 operands are multiplied as such, on
the ordinary cores, never as TF32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.launch import Config, ceil_div, config, launch

HALF_CONFIGS = (
    config("wgmma, chains of 16", warps=8, stages=4, BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, GROUP=8),
    config("wgmma, chains of 16", warps=8, stages=3, BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, GROUP=8),
    config("wgmma, chains of 16", warps=4, stages=4, BLOCK_M=64, BLOCK_N=128, BLOCK_K=64, GROUP=8),
    config("wgmma, chains of 16", warps=4, stages=5, BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, GROUP=8),
)
SINGLE_CONFIGS = (
    config("float32, one chain", warps=8, stages=2, BLOCK_M=64, BLOCK_N=128, BLOCK_K=16, GROUP=8),
    config("float32, one chain", warps=4, stages=2, BLOCK_M=32, BLOCK_N=64, BLOCK_K=16, GROUP=8),
)
FEW_ROWS = 64  # at most one tile high: the weight's bytes decide, not the products


@triton.jit
def tile_of(
    program: tl.tensor, tiles_m: tl.tensor, tiles_n: tl.tensor, GROUP: tl.constexpr
) -> tuple[tl.tensor, tl.tensor]:
    """Neighbouring programs take GROUP tiles of rows before the next columns, so that both operands stay in L2."""
    first = program // (GROUP * tiles_n) * GROUP
    height = tl.minimum(tiles_m - first, GROUP)
    inside = program % (GROUP * tiles_n)
    return first + inside % height, inside // height


@triton.jit
def _matmul(
    a_ptr: tl.tensor,
    b_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    a_m: tl.tensor,
    a_k: tl.tensor,
    b_k: tl.tensor,
    b_n: tl.tensor,
    WHOLE_K: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    row, column = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    step = tl.arange(0, BLOCK_K)
    a_tile = a_ptr + row.to(tl.int64)[:, None] * a_m + step[None, :] * a_k
    b_tile = b_ptr + step[:, None] * b_k + column.to(tl.int64)[None, :] * b_n
    live_m, live_n = (row < M)[:, None], (column < N)[None, :]
    y_tile = y_ptr + row.to(tl.int64)[:, None] * N + column[None, :]
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if ADD:  # the chain goes on from what is there
        y = tl.load(y_tile, mask=live_m & live_n, other=0.0).to(tl.float32)
    for k in range(0, K, BLOCK_K):
        if WHOLE_K:
            a = tl.load(a_tile, mask=live_m, other=0.0)
            b = tl.load(b_tile, mask=live_n, other=0.0)
        else:
            a = tl.load(a_tile, mask=live_m & (k + step < K)[None, :], other=0.0)
            b = tl.load(b_tile, mask=live_n & (k + step < K)[:, None], other=0.0)
        y = tl.dot(a, b, y, input_precision="ieee")
        a_tile += BLOCK_K * a_k
        b_tile += BLOCK_K * b_k
    tl.store(y_tile, y.to(y_ptr.dtype.element_ty), mask=live_m & live_n)


def default_config(dtype: torch.dtype, rows: int) -> Config:
    """By the operands' dtype; low tiles where there are few rows."""
    if dtype == torch.float32:
        return SINGLE_CONFIGS[1 if rows <= FEW_ROWS else 0]
    return HALF_CONFIGS[3 if rows <= FEW_ROWS else 0]


def matmul(a_MK: Tensor, b_KN: Tensor, y_MN: Tensor, *, add: bool = False, config: Config | None = None) -> Tensor:
    """y = a b, or y += a b, for two-dimensional views of any strides; a and b of one dtype, y dense. Returns y."""
    (rows, depth), columns = a_MK.shape, b_KN.shape[1]
    chosen = config or default_config(a_MK.dtype, rows)
    tiles = ceil_div(rows, chosen.block("BLOCK_M")) * ceil_div(columns, chosen.block("BLOCK_N"))
    constants = {"WHOLE_K": depth % chosen.block("BLOCK_K") == 0, "ADD": add}
    args = (a_MK, b_KN, y_MN, rows, columns, depth, *a_MK.stride(), *b_KN.stride())
    launch(_matmul, (tiles,), *args, config=chosen, **constants)
    return y_MN
