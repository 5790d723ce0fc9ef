"""Products of rows that stand expert by expert with their expert's matrix, for kernels/triton/experts.py.

The schedule is read from the offsets on the device, so the host never waits for them: every program counts how many
tiles of BLOCK_M rows each expert has, and takes tiles p, p + programs, ... of that list. A tile has rows of one expert.
Tiles of the same rows are neighbours: one expert's matrix and a few of its rows fill L2 at a time.
The order of a row's sums is that of kernels/triton/matmul.py: K alone decides it, not the row's company.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.launch import Config, ceil_div, config, launch, power_of_two, processors
from seedthink.kernels.triton.swiglu import silu_times

HALF_CONFIGS = (  # the first one is the quickest at Qwen3-30B-A3B's shapes on an H200
    config("wgmma, chains of 16", warps=8, stages=5, BLOCK_M=128, BLOCK_N=256, BLOCK_K=32),
    config("wgmma, chains of 16", warps=8, stages=3, BLOCK_M=256, BLOCK_N=128, BLOCK_K=64),
    config("wgmma, chains of 16", warps=8, stages=4, BLOCK_M=128, BLOCK_N=128, BLOCK_K=64),
    config("wgmma, chains of 16", warps=4, stages=4, BLOCK_M=64, BLOCK_N=128, BLOCK_K=64),
    config("wgmma, chains of 16", warps=4, stages=5, BLOCK_M=64, BLOCK_N=64, BLOCK_K=64),
)
GATE_UP_CONFIGS = (  # two accumulators: half the columns, and fewer still where gate and up are stored beside act
    config("wgmma, chains of 16", warps=8, stages=4, BLOCK_M=128, BLOCK_N=64, BLOCK_K=64),
    config("wgmma, chains of 16", warps=4, stages=4, BLOCK_M=64, BLOCK_N=64, BLOCK_K=64),
)
ACT_CONFIGS = (config("wgmma, chains of 16", warps=8, stages=4, BLOCK_M=128, BLOCK_N=128, BLOCK_K=64), *GATE_UP_CONFIGS)
SINGLE_CONFIGS = (config("float32, one chain", warps=4, stages=2, BLOCK_M=32, BLOCK_N=64, BLOCK_K=32),)
GRADIENT_CONFIGS = (
    config("chains over rows", warps=8, stages=3, BLOCK_M=128, BLOCK_N=128, BLOCK_K=64),
    config("chains over rows", warps=4, stages=3, BLOCK_M=64, BLOCK_N=128, BLOCK_K=64),
)
FEW_ROWS = 64  # rows of an expert on average up to which low tiles are the default


@triton.jit
def tiles_before(offsets_ptr: tl.tensor, E: tl.tensor, EXPERTS: tl.constexpr, BLOCK_M: tl.constexpr) -> tl.tensor:
    """Tiles of all experts up to and including e, for each e; the last entries repeat the total."""
    e = tl.arange(0, EXPERTS)
    begin = tl.load(offsets_ptr + e, mask=e < E, other=0)
    end = tl.load(offsets_ptr + e + 1, mask=e < E, other=0)
    return tl.cumsum((end - begin + BLOCK_M - 1) // BLOCK_M, 0)


@triton.jit
def rows_of(
    tile: tl.tensor, tiles: tl.tensor, offsets_ptr: tl.tensor, BLOCK_M: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The expert of a tile (int64), the tile's rows, and which of them are the expert's."""
    expert = tl.sum((tiles <= tile).to(tl.int32), 0)
    inside = tile - tl.max(tl.where(tiles <= tile, tiles, 0), 0)
    row = tl.load(offsets_ptr + expert) + inside * BLOCK_M + tl.arange(0, BLOCK_M)
    return expert.to(tl.int64), row, row < tl.load(offsets_ptr + expert + 1)


@triton.jit
def _rows_times_matrices(
    a_ptr: tl.tensor,
    token_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    b_ptr: tl.tensor,
    y_ptr: tl.tensor,
    E: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    b_e: tl.tensor,
    b_k: tl.tensor,
    b_n: tl.tensor,
    GATHER: tl.constexpr,
    WHOLE_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """y[r] = a[r] b[expert of r], or of a[token[r]]."""
    tiles = tiles_before(offsets_ptr, E, EXPERTS, BLOCK_M)
    across, step = tl.cdiv(N, BLOCK_N), tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), tl.max(tiles, 0) * across, tl.num_programs(0)):
        expert, row, live = rows_of(tile // across, tiles, offsets_ptr, BLOCK_M)
        column = tile % across * BLOCK_N + tl.arange(0, BLOCK_N)
        source = row
        if GATHER:
            source = tl.load(token_ptr + row, mask=live, other=0)
        a_tile = a_ptr + source.to(tl.int64)[:, None] * K + step[None, :]
        b_tile = b_ptr + expert * b_e + step[:, None] * b_k + column[None, :] * b_n
        y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):
            if WHOLE_K:
                a = tl.load(a_tile, mask=live[:, None], other=0.0)
                b = tl.load(b_tile, mask=(column < N)[None, :], other=0.0)
            else:
                a = tl.load(a_tile, mask=live[:, None] & (k + step < K)[None, :], other=0.0)
                b = tl.load(b_tile, mask=(column < N)[None, :] & (k + step < K)[:, None], other=0.0)
            y = tl.dot(a, b, y, input_precision="ieee")
            a_tile += BLOCK_K
            b_tile += BLOCK_K * b_k
        y_tile = y_ptr + row.to(tl.int64)[:, None] * N + column[None, :]
        tl.store(y_tile, y.to(y_ptr.dtype.element_ty), mask=live[:, None] & (column < N)[None, :])


@triton.jit
def _gate_up(
    x_ptr: tl.tensor,
    token_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    act_ptr: tl.tensor,
    E: tl.tensor,
    D: tl.tensor,
    width: tl.tensor,
    KEEP: tl.constexpr,
    WHOLE_K: tl.constexpr,
    EXPERTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """act[r] = silu(gate) * up of x[token[r]]; KEEP: gate and up are stored too, for the gradient."""
    tiles = tiles_before(offsets_ptr, E, EXPERTS, BLOCK_M)
    across, step = tl.cdiv(width, BLOCK_N), tl.arange(0, BLOCK_K)
    for tile in range(tl.program_id(0), tl.max(tiles, 0) * across, tl.num_programs(0)):
        expert, row, live = rows_of(tile // across, tiles, offsets_ptr, BLOCK_M)
        column = tile % across * BLOCK_N + tl.arange(0, BLOCK_N)
        live_m, live_n = live[:, None], (column < width)[None, :]
        token = tl.load(token_ptr + row, mask=live, other=0).to(tl.int64)
        x_tile = x_ptr + token[:, None] * D + step[None, :]
        gate_tile = weight_ptr + (expert * 2 * width + column)[None, :] * D + step[:, None]
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, D, BLOCK_K):
            live_k = k + step < D
            if WHOLE_K:
                x = tl.load(x_tile, mask=live_m, other=0.0)
                gate_weight = tl.load(gate_tile, mask=live_n, other=0.0)
                up_weight = tl.load(gate_tile + width * D, mask=live_n, other=0.0)
            else:
                x = tl.load(x_tile, mask=live_m & live_k[None, :], other=0.0)
                gate_weight = tl.load(gate_tile, mask=live_n & live_k[:, None], other=0.0)
                up_weight = tl.load(gate_tile + width * D, mask=live_n & live_k[:, None], other=0.0)
            gate = tl.dot(x, gate_weight, gate, input_precision="ieee")
            up = tl.dot(x, up_weight, up, input_precision="ieee")
            x_tile += BLOCK_K
            gate_tile += BLOCK_K
        at = row.to(tl.int64)[:, None]
        if KEEP:
            hidden_tile = hidden_ptr + at * (2 * width) + column[None, :]
            tl.store(hidden_tile, gate.to(hidden_ptr.dtype.element_ty), mask=live_m & live_n)
            tl.store(hidden_tile + width, up.to(hidden_ptr.dtype.element_ty), mask=live_m & live_n)
        act = silu_times(gate, up).to(act_ptr.dtype.element_ty)
        tl.store(act_ptr + at * width + column[None, :], act, mask=live_m & live_n)


@triton.jit
def _matrix_gradients(
    p_ptr: tl.tensor,
    q_ptr: tl.tensor,
    token_ptr: tl.tensor,
    offsets_ptr: tl.tensor,
    y_ptr: tl.tensor,
    N: tl.tensor,
    K: tl.tensor,
    GATHER_P: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
) -> None:
    """y[e] = sum over e's rows ascending of p[r]^T q[r], one of the two being read at token[r]. Zero without rows."""
    expert, across = tl.program_id(1), tl.cdiv(K, BLOCK_N)
    n = tl.program_id(0) // across * BLOCK_M + tl.arange(0, BLOCK_M)
    k = tl.program_id(0) % across * BLOCK_N + tl.arange(0, BLOCK_N)
    end = tl.load(offsets_ptr + expert + 1)
    y = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(tl.load(offsets_ptr + expert), end, BLOCK_K):
        row = first + tl.arange(0, BLOCK_K)
        live = row < end
        token = tl.load(token_ptr + row, mask=live, other=0).to(tl.int64)
        if GATHER_P:
            p_row, q_row = token, row.to(tl.int64)
        else:
            p_row, q_row = row.to(tl.int64), token
        p = tl.load(p_ptr + p_row[None, :] * N + n[:, None], mask=live[None, :] & (n < N)[:, None], other=0.0)
        q = tl.load(q_ptr + q_row[:, None] * K + k[None, :], mask=live[:, None] & (k < K)[None, :], other=0.0)
        y = tl.dot(p, q, y, input_precision="ieee")
    y_tile = y_ptr + (expert.to(tl.int64) * N + n[:, None]) * K + k[None, :]
    tl.store(y_tile, y.to(y_ptr.dtype.element_ty), mask=(n < N)[:, None] & (k < K)[None, :])


def rows_times_matrices(
    a: Tensor,
    token_R: Tensor | None,
    offsets_E1: Tensor,
    b_EKN: Tensor,
    y_RN: Tensor,
    *,
    config: Config | None = None,
) -> Tensor:
    """y[r] = a[r] b[e] (or a[token_R[r]] b[e]) for the rows of each expert; b may be a transposed view. Returns y."""
    experts, depth, columns = b_EKN.shape
    chosen = config or default_config(HALF_CONFIGS, a.dtype, y_RN.shape[0], experts)
    args = (a, token_R, offsets_E1, b_EKN, y_RN, experts, columns, depth, *b_EKN.stride())
    constants = {"GATHER": token_R is not None, "WHOLE_K": depth % chosen.block("BLOCK_K") == 0}
    grid = _persistent(y_RN, experts, chosen)
    launch(_rows_times_matrices, grid, *args, config=chosen, EXPERTS=power_of_two(experts), **constants)
    return y_RN


def gate_up_act(
    x_TD: Tensor,
    token_R: Tensor,
    offsets_E1: Tensor,
    gate_up_E_2I_D: Tensor,
    hidden_R_2I: Tensor | None,
    act_RI: Tensor,
    *,
    config: Config | None = None,
) -> Tensor:
    """act of the rows' tokens; gate and up go to `hidden` where it is given. Returns act."""
    experts, width, depth = gate_up_E_2I_D.shape
    table = ACT_CONFIGS if hidden_R_2I is None else GATE_UP_CONFIGS
    chosen = config or default_config(table, x_TD.dtype, act_RI.shape[0], experts)
    args = (x_TD, token_R, offsets_E1, gate_up_E_2I_D, hidden_R_2I, act_RI, experts, depth, width // 2)
    constants = {"KEEP": hidden_R_2I is not None, "WHOLE_K": depth % chosen.block("BLOCK_K") == 0}
    grid = _persistent(act_RI, experts, chosen)
    launch(_gate_up, grid, *args, config=chosen, EXPERTS=power_of_two(experts), **constants)
    return act_RI


def matrix_gradients(
    p: Tensor, q: Tensor, token_R: Tensor, offsets_E1: Tensor, y_ENK: Tensor, gather_p: bool, config: Config | None
) -> Tensor:
    """y[e] = sum over rows of p^T q; p is read at the rows' tokens, or else q is. Returns y."""
    experts, columns, depth = y_ENK.shape
    chosen = config or (SINGLE_CONFIGS[0] if p.dtype == torch.float32 else GRADIENT_CONFIGS[0])
    grid = (ceil_div(columns, chosen.block("BLOCK_M")) * ceil_div(depth, chosen.block("BLOCK_N")), experts)
    args = (p, q, token_R, offsets_E1, y_ENK, columns, depth)
    launch(_matrix_gradients, grid, *args, config=chosen, GATHER_P=gather_p)
    return y_ENK


def default_config(table: tuple[Config, ...], dtype: torch.dtype, rows: int, experts: int) -> Config:
    """High tiles, or the lowest where an expert has few rows; how the rows are spread is not known here."""
    if dtype == torch.float32:
        return SINGLE_CONFIGS[0]
    return table[-1] if rows <= FEW_ROWS * experts else table[0]


def _persistent(y: Tensor, experts: int, config: Config) -> tuple[int]:
    """As many programs as run at a time, or as many tiles as there can be at most: each expert adds a short one."""
    rows, columns = y.shape
    most = (rows // config.block("BLOCK_M") + min(rows, experts)) * ceil_div(columns, config.block("BLOCK_N"))
    return (min(most, processors(y.device) * (8 // config.warps)),)
