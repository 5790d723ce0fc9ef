"""The block-scaled FP8 product on CUDA: activations in blocks of 1 x 128, weights in blocks of 128 x 128.

y[t, n] = sum over blocks q of 128 k: (sum over the block of x[t, k] w[n, k]) * x_scale[t, q] * w_scale[n // 128, q].
The tensor cores add a block's products with few bits; each block's sum is then scaled and added in float32, blocks in
order, so precision is lost inside 128 products at most and K alone decides the order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.fp8 import BY_NAME, FORMATS
from seedthink.kernels.triton.launch import Config, ceil_div, check, check_fp8, config, launch
from seedthink.kernels.triton.matmul import FEW_ROWS, tile_of

CONFIGS = (
    config("blocks of 128 k", warps=8, stages=4, BLOCK_M=128, BLOCK_N=128, GROUP=8),
    config("blocks of 128 k", warps=4, stages=4, BLOCK_M=64, BLOCK_N=128, GROUP=8),
    config("blocks of 128 k", warps=4, stages=5, BLOCK_M=64, BLOCK_N=64, GROUP=8),
)


@triton.jit(do_not_specialize=["M"])
def _fp8_matmul(
    x_ptr: tl.tensor,
    x_scale_ptr: tl.tensor,
    w_ptr: tl.tensor,
    w_scale_ptr: tl.tensor,
    y_ptr: tl.tensor,
    M: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    WHOLE_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
) -> None:
    tile_m, tile_n = tile_of(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    row, column = tile_m * BLOCK_M + tl.arange(0, BLOCK_M), tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    step, blocks = tl.arange(0, BLOCK_K), tl.cdiv(K, BLOCK_K)
    x_tile = x_ptr + row.to(tl.int64)[:, None] * K + step[None, :]
    w_tile = w_ptr + column.to(tl.int64)[None, :] * K + step[:, None]
    x_scale_tile = x_scale_ptr + row.to(tl.int64) * blocks
    w_scale_tile = w_scale_ptr + tile_n * BLOCK_N // 128 * blocks  # BLOCK_N divides 128: one scale for the tile
    live_m, live_n = row < M, column < N
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for block in range(0, blocks):
        if WHOLE_K:
            x = tl.load(x_tile, mask=live_m[:, None], other=0.0)
            w = tl.load(w_tile, mask=live_n[None, :], other=0.0)
        else:
            live_k = block * BLOCK_K + step < K
            x = tl.load(x_tile, mask=live_m[:, None] & live_k[None, :], other=0.0)
            w = tl.load(w_tile, mask=live_n[None, :] & live_k[:, None], other=0.0)
        scale = tl.load(x_scale_tile + block, mask=live_m, other=0.0) * tl.load(w_scale_tile + block)
        y += tl.dot(x, w) * scale[:, None]
        x_tile += BLOCK_K
        w_tile += BLOCK_K
    y_tile = y_ptr + row.to(tl.int64)[:, None] * N + column[None, :]
    tl.store(y_tile, y.to(y_ptr.dtype.element_ty), mask=live_m[:, None] & live_n[None, :])


def fp8_matmul(
    x_TK: Tensor,
    x_scale_TQ: Tensor,
    w_NK: Tensor,
    w_scale_PQ: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    config: Config | None = None,
) -> Tensor:
    """y_TN of `dtype` from codes and their scales. ValueError names the argument that does not fit."""
    check_fp8(x_TK.device)
    formats = tuple(FORMATS)
    check("x", x_TK, x_TK.device, formats, -1, -1)
    (rows, depth), columns = x_TK.shape, w_NK.shape[0]
    check("w", w_NK, x_TK.device, formats, -1, depth)
    check("x_scale", x_scale_TQ, x_TK.device, (torch.float32,), rows, ceil_div(depth, 128))
    check("w_scale", w_scale_PQ, x_TK.device, (torch.float32,), ceil_div(columns, 128), ceil_div(depth, 128))
    chosen = config or CONFIGS[2 if rows <= FEW_ROWS else 0]
    y_TN = x_TK.new_empty((rows, columns), dtype=dtype)
    tiles = ceil_div(rows, chosen.block("BLOCK_M")) * ceil_div(columns, chosen.block("BLOCK_N"))
    args = (x_TK, x_scale_TQ, w_NK, w_scale_PQ, y_TN, rows, columns, depth)
    launch(_fp8_matmul, (tiles,), *args, config=chosen, WHOLE_K=depth % 128 == 0, BLOCK_K=128)
    return y_TN


def operator_fp8_linear(
    x_TK: Tensor, x_scale_TQ: Tensor, w_NK: Tensor, w_scale_PQ: Tensor, x_format: str, w_format: str, fast: bool
) -> Tensor:
    """The operator of kernels/fp8_linear.py, which hands codes around as bytes."""
    x, w = x_TK.view(BY_NAME[x_format]), w_NK.view(BY_NAME[w_format])
    if not fast:
        return fp8_matmul(x, x_scale_TQ, w, w_scale_PQ)
    if torch_takes(x, w):
        return torch_matmul(x, x_scale_TQ, w, w_scale_PQ)
    return fp8_matmul(x, x_scale_TQ, w, w_scale_PQ, torch.bfloat16)


def torch_takes(x_TK: Tensor, w_NK: Tensor) -> bool:
    """Whether torch's block-scaled product takes these: E4M3, on Hopper, whole blocks, scales by fours along K."""
    whole = x_TK.shape[0] % 16 == 0 and x_TK.shape[1] % 512 == 0 and w_NK.shape[0] % 128 == 0 and x_TK.numel() > 0
    both = x_TK.dtype == w_NK.dtype == torch.float8_e4m3fn
    return whole and both and torch.cuda.get_device_capability(x_TK.device) == (9, 0)


def torch_matmul(x_TK: Tensor, x_scale_TQ: Tensor, w_NK: Tensor, w_scale_PQ: Tensor) -> Tensor:
    """y_TN in bfloat16 by torch's product. It wants scales of x with T innermost and scales of w with K innermost."""
    from torch.nn.functional import ScalingType, scaled_mm

    how = (x_scale_TQ.t().contiguous().t(), ScalingType.BlockWise1x128, w_scale_PQ.t(), ScalingType.BlockWise128x128)
    y_TN: Tensor = scaled_mm(x_TK, w_NK.t(), *how, output_dtype=torch.bfloat16)
    return y_TN
