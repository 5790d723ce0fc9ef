"""The gradient of packed causal attention on CUDA (contract: kernels/attention.py): no atomics, two runs agree.

With p = exp(scale q.k - lse) and delta = do.o of a row, ds = p (do.v - delta) scale; dq = ds k, dk = ds^T q,
dv = p^T do (Dao et al. 2022, arXiv:2205.14135). One kernel walks the keys of a tile of query rows, the other the query
rows that see a tile of keys: those of the keys' own sequence, then those of every sequence that has it as its prefix,
sequences in ascending order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.attention import check_heads, check_packed, tile_rows
from seedthink.kernels.triton.launch import Config, ceil_div, check, config, launch, power_of_two

# Of the kernel over query rows and of the kernel over keys, which has two results to hold.
HALF_CONFIGS = (
    config("wgmma, 64 keys", warps=8, stages=2, ROWS=64, KEYS=64),
    config("wgmma, 32 rows", warps=8, stages=2, ROWS=32, KEYS=64),
)
WIDE_CONFIGS = (config("mma, 32 keys", warps=8, stages=1, ROWS=32, KEYS=32),) * 2
SINGLE_CONFIGS = (config("float32, 16 keys", warps=8, stages=1, ROWS=16, KEYS=16),) * 2


@triton.jit
def gradient_of_scores(
    a: tl.tensor,
    b: tl.tensor,
    da: tl.tensor,
    db: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    seen: tl.tensor,
    scale: tl.tensor,
) -> tuple[tl.tensor, tl.tensor]:
    """(p, ds), zero where a row does not see a key: [rows, keys] of q, k, do, v, or [keys, rows] of k, q, v, do."""
    score = tl.dot(a, tl.trans(b), input_precision="ieee") * scale
    p = tl.where(seen, tl.exp(score - lse), 0.0)
    dp = tl.dot(da, tl.trans(db), input_precision="ieee")
    return p, tl.where(seen, p * (dp - delta) * scale, 0.0)


@triton.jit
def _query_gradient(
    do_ptr: tl.tensor,
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    bounds_ptr: tl.tensor,
    prefix_ptr: tl.tensor,
    dq_ptr: tl.tensor,
    B: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    COMPUTE: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SEQUENCES: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    head = tl.program_id(1)
    POSITIONS: tl.constexpr = ROWS // GROUP
    sequence, position, there = tile_rows(tl.program_id(0), bounds_ptr, B, SEQUENCES, POSITIONS)
    if there:
        own, own_end = tl.load(bounds_ptr + sequence), tl.load(bounds_ptr + sequence + 1)
        before = tl.load(prefix_ptr + sequence)
        prefix = tl.load(bounds_ptr + before, mask=before >= 0, other=0)
        shared = tl.load(bounds_ptr + before + 1, mask=before >= 0, other=0) - prefix
        r, h = tl.arange(0, ROWS), tl.arange(0, BLOCK_H)[None, :]
        token = own + position + r // GROUP
        live = (r < POSITIONS * GROUP) & (token < own_end)
        at = token.to(tl.int64) * heads * GROUP + head * GROUP + r % GROUP
        inside = live[:, None] & (h < H)
        q = tl.load(q_ptr + at[:, None] * H + h, mask=inside, other=0.0).to(COMPUTE)
        do = tl.load(do_ptr + at[:, None] * H + h, mask=inside, other=0.0).to(COMPUTE)
        lse, delta = tl.load(lse_ptr + at, mask=live, other=0.0), tl.load(delta_ptr + at, mask=live, other=0.0)
        visible = tl.where(live, shared + token - own + 1, 0)
        dq = tl.zeros((ROWS, BLOCK_H), tl.float32)
        for start in range(0, tl.max(visible, 0), KEYS):
            key = start + tl.arange(0, KEYS)
            row = tl.where(key < shared, prefix + key, own + key - shared).to(tl.int64)
            kv_at = ((row * heads + head) * H)[:, None] + h
            known = (key < shared + own_end - own)[:, None] & (h < H)
            k = tl.load(k_ptr + kv_at, mask=known, other=0.0).to(COMPUTE)
            v = tl.load(v_ptr + kv_at, mask=known, other=0.0).to(COMPUTE)
            seen = key[None, :] < visible[:, None]
            _, ds = gradient_of_scores(q, k, do, v, lse[:, None], delta[:, None], seen, scale)
            dq = tl.dot(ds.to(COMPUTE), k, dq, input_precision="ieee")
        tl.store(dq_ptr + at[:, None] * H + h, dq.to(dq_ptr.dtype.element_ty), mask=inside)


@triton.jit
def _key_value_gradient(
    do_ptr: tl.tensor,
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    delta_ptr: tl.tensor,
    bounds_ptr: tl.tensor,
    prefix_ptr: tl.tensor,
    dk_ptr: tl.tensor,
    dv_ptr: tl.tensor,
    B: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    COMPUTE: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SEQUENCES: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    head = tl.program_id(1)
    POSITIONS: tl.constexpr = ROWS // GROUP
    sequence, position, there = tile_rows(tl.program_id(0), bounds_ptr, B, SEQUENCES, KEYS)
    if there:
        own, own_end = tl.load(bounds_ptr + sequence), tl.load(bounds_ptr + sequence + 1)
        r, h = tl.arange(0, ROWS), tl.arange(0, BLOCK_H)[None, :]
        key = own + position + tl.arange(0, KEYS)
        known = (key < own_end)[:, None] & (h < H)
        kv_at = ((key.to(tl.int64) * heads + head) * H)[:, None] + h
        k = tl.load(k_ptr + kv_at, mask=known, other=0.0).to(COMPUTE)
        v = tl.load(v_ptr + kv_at, mask=known, other=0.0).to(COMPUTE)
        dk = tl.zeros((KEYS, BLOCK_H), tl.float32)
        dv = tl.zeros((KEYS, BLOCK_H), tl.float32)
        for b in range(0, B):
            itself = b == sequence
            first, last = tl.load(bounds_ptr + b), tl.load(bounds_ptr + b + 1)
            # Its own rows see a key from the key's position on; those of a sequence behind it see all of its keys.
            first = tl.where(itself, first + position, first)
            last = tl.where(itself | (tl.load(prefix_ptr + b) == sequence), last, first)
            for start in range(first, last, POSITIONS):
                token = start + r // GROUP
                live = (r < POSITIONS * GROUP) & (token < last)
                at = token.to(tl.int64) * heads * GROUP + head * GROUP + r % GROUP
                inside = live[:, None] & (h < H)
                q = tl.load(q_ptr + at[:, None] * H + h, mask=inside, other=0.0).to(COMPUTE)
                do = tl.load(do_ptr + at[:, None] * H + h, mask=inside, other=0.0).to(COMPUTE)
                lse = tl.load(lse_ptr + at, mask=live, other=0.0)
                delta = tl.load(delta_ptr + at, mask=live, other=0.0)
                causal = (key[:, None] <= token[None, :]) | (b != sequence)
                seen = live[None, :] & (key < own_end)[:, None] & causal
                p, ds = gradient_of_scores(k, q, v, do, lse[None, :], delta[None, :], seen, scale)
                dv = tl.dot(p.to(COMPUTE), do, dv, input_precision="ieee")
                dk = tl.dot(ds.to(COMPUTE), q, dk, input_precision="ieee")
        tl.store(dk_ptr + kv_at, dk.to(dk_ptr.dtype.element_ty), mask=known)
        tl.store(dv_ptr + kv_at, dv.to(dv_ptr.dtype.element_ty), mask=known)


def attend_packed_backward(
    do_TNH: Tensor,
    q_TNH: Tensor,
    k_TnH: Tensor,
    v_TnH: Tensor,
    o_TNH: Tensor,
    lse_TN: Tensor,
    cu_seqlens_B1: Tensor,
    prefix_B: Tensor,
    scale: float,
    half: bool,
    *,
    configs: tuple[Config, Config] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """(dq, dk, dv) in float32."""
    check_packed(q_TNH, k_TnH, v_TnH, cu_seqlens_B1, prefix_B)
    (tokens, heads, width), kv_heads, sequences = q_TNH.shape, k_TnH.shape[1], prefix_B.shape[0]
    for name, each in (("grad", do_TNH), ("o", o_TNH)):
        check(name, each, q_TNH.device, (torch.float32,), *q_TNH.shape)
    check("lse", lse_TN, q_TNH.device, (torch.float32,), tokens, heads)
    for_queries, for_keys = configs or default_configs(half, width)
    group = check_heads(heads, kv_heads, width, for_keys)
    delta_TN = (do_TNH * o_TNH).sum(-1)
    dq, dk, dv = torch.empty_like(q_TNH), torch.empty_like(k_TnH), torch.empty_like(v_TnH)
    constants = {
        "COMPUTE": tl.bfloat16 if half else tl.float32,
        "GROUP": group,
        "H": width,
        "BLOCK_H": power_of_two(width),
        "SEQUENCES": power_of_two(sequences),
    }
    given = (do_TNH, q_TNH, k_TnH, v_TnH, lse_TN, delta_TN, cu_seqlens_B1, prefix_B)
    sizes, most = (sequences, kv_heads, scale), min(tokens, sequences)
    query_tiles = ceil_div(tokens, for_queries.block("ROWS") // group) + most
    launch(_query_gradient, (query_tiles, kv_heads), *given, dq, *sizes, config=for_queries, **constants)
    key_tiles = ceil_div(tokens, for_keys.block("KEYS")) + most
    launch(_key_value_gradient, (key_tiles, kv_heads), *given, dk, dv, *sizes, config=for_keys, **constants)
    return dq, dk, dv


def default_configs(half: bool, head_width: int) -> tuple[Config, Config]:
    """By the products' dtype; wide heads need the registers of low tiles."""
    if not half:
        return SINGLE_CONFIGS
    return HALF_CONFIGS if head_width <= 128 else WIDE_CONFIGS
