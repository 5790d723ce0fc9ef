"""Causal attention on CUDA: packed sequences, and query rows over keys in pages (contract: kernels/attention.py).

A tile is up to ROWS query rows of one key-value head: some positions, each with all query heads that share the head.
Which sequence a tile belongs to is read from the bounds on the device. Packed and paged calls make the same walk
(kernels/triton/attention_walk.py), so they agree bit for bit; few rows over long caches split the walk over programs.
bfloat16: q and the softmax weights are rounded too, as products on tensor cores need; sums are float32.
Its gradient stands in kernels/triton/attention_backward.py.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.attention_walk import factors, walk
from seedthink.kernels.triton.launch import Config, ceil_div, check, config, launch, power_of_two

PAGE_SIZE = tl.constexpr(16)
MOST_PARTS = 1 << 26  # float32 cells of the split walk's workspace (256 MiB); beyond it a program walks all splits

HALF_CONFIGS = (config("wgmma, 64 keys in splits of 512", warps=8, stages=2, ROWS=64, KEYS=64, SPLIT=512),)
WIDE_CONFIGS = (config("mma, 32 keys in splits of 512", warps=8, stages=2, ROWS=32, KEYS=32, SPLIT=512),)
SINGLE_CONFIGS = (config("float32, 32 keys in splits of 512", warps=8, stages=1, ROWS=16, KEYS=32, SPLIT=512),)
WIDE_SINGLE_CONFIGS = (config("float32, 16 keys in splits of 512", warps=8, stages=1, ROWS=16, KEYS=16, SPLIT=512),)
JOIN_CONFIGS = (config("in order", warps=1),)


@triton.jit
def tile_rows(
    tile: tl.tensor, bounds_ptr: tl.tensor, B: tl.tensor, SEQUENCES: tl.constexpr, POSITIONS: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The sequence of a tile, the first of its own positions in the tile, and whether there is such a tile."""
    b = tl.arange(0, SEQUENCES)
    begin = tl.load(bounds_ptr + b, mask=b < B, other=0)
    end = tl.load(bounds_ptr + b + 1, mask=b < B, other=0)
    tiles = tl.cumsum((end - begin + POSITIONS - 1) // POSITIONS, 0)
    sequence = tl.sum((tiles <= tile).to(tl.int32), 0)
    inside = tile - tl.max(tl.where(tiles <= tile, tiles, 0), 0)
    return sequence, inside * POSITIONS, tile < tl.max(tiles, 0)


@triton.jit
def _attend(
    q_ptr: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    table_ptr: tl.tensor,
    bounds_ptr: tl.tensor,
    before_ptr: tl.tensor,
    o_ptr: tl.tensor,
    lse_ptr: tl.tensor,
    part_ptr: tl.tensor,
    B: tl.tensor,
    pages: tl.tensor,
    width: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    PAGED: tl.constexpr,
    APART: tl.constexpr,
    COMPUTE: tl.constexpr,
    GROUP: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    SEQUENCES: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
    SPLIT: tl.constexpr,
) -> None:
    """before: a sequence's prefix sequence (packed) or its length in the pages. APART: this program does one split."""
    head = tl.program_id(1)
    POSITIONS: tl.constexpr = ROWS // GROUP
    sequence, position, there = tile_rows(tl.program_id(0), bounds_ptr, B, SEQUENCES, POSITIONS)
    if there:
        own, own_end = tl.load(bounds_ptr + sequence), tl.load(bounds_ptr + sequence + 1)
        before = tl.load(before_ptr + sequence)
        prefix, shared = 0, 0
        if PAGED:
            earlier = before - (own_end - own)
            table_ptr += sequence.to(tl.int64) * width
        else:
            prefix = tl.load(bounds_ptr + before, mask=before >= 0, other=0)
            shared = tl.load(bounds_ptr + before + 1, mask=before >= 0, other=0) - prefix
            earlier = shared
        r, h = tl.arange(0, ROWS), tl.arange(0, BLOCK_H)
        token = own + position + r // GROUP
        live = (r < POSITIONS * GROUP) & (token < own_end)
        at = token.to(tl.int64) * heads * GROUP + head * GROUP + r % GROUP
        q_tile = q_ptr + at[:, None] * H + h[None, :]
        q = tl.load(q_tile, mask=live[:, None] & (h < H)[None, :], other=0.0).to(COMPUTE)
        visible = tl.where(live, earlier + token - own + 1, 0)
        keys = tl.max(visible, 0)
        if APART:
            begin = tl.program_id(2) * SPLIT
            end = tl.minimum(begin + SPLIT, keys)
            top, total, out = walk(
                q, k_ptr, v_ptr, table_ptr, pages, prefix, shared, own, begin, end, visible, head, heads,
                scale, PAGED, PAGE_SIZE, H, BLOCK_H, ROWS, KEYS,
            )  # fmt: skip
            part = part_ptr + (at * tl.num_programs(2) + tl.program_id(2)) * (H + 2)
            tl.store(part[:, None] + h[None, :], out, mask=live[:, None] & (h < H)[None, :])
            tl.store(part + H, top, mask=live)
            tl.store(part + H + 1, total, mask=live)
        else:
            top = tl.full((ROWS,), float("-inf"), tl.float32)
            total = tl.zeros((ROWS,), tl.float32)
            out = tl.zeros((ROWS, BLOCK_H), tl.float32)
            for begin in range(0, keys, SPLIT):
                end = tl.minimum(begin + SPLIT, keys)
                new_top, new_total, new_out = walk(
                    q, k_ptr, v_ptr, table_ptr, pages, prefix, shared, own, begin, end, visible, head, heads,
                    scale, PAGED, PAGE_SIZE, H, BLOCK_H, ROWS, KEYS,
                )  # fmt: skip
                top, old, new = factors(top, new_top)
                total = tl.fma(new_total, new, total * old)
                out = tl.fma(new_out, new[:, None], out * old[:, None])
            o = (out / total[:, None]).to(o_ptr.dtype.element_ty)
            tl.store(o_ptr + at[:, None] * H + h[None, :], o, mask=live[:, None] & (h < H)[None, :])
            tl.store(lse_ptr + at, top + tl.log(total), mask=live)


@triton.jit
def _join(part_ptr: tl.tensor, o_ptr: tl.tensor, splits: tl.tensor, H: tl.constexpr, BLOCK_H: tl.constexpr) -> None:
    """Merges the splits of one query row and head in order, as `_attend` does when it walks them all."""
    at, h = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK_H)
    top, total = float("-inf"), 0.0
    out = tl.zeros((BLOCK_H,), tl.float32)
    part = part_ptr + at * splits * (H + 2)
    for _ in range(0, splits):
        new_top, new_total = tl.load(part + H), tl.load(part + H + 1)
        new_out = tl.load(part + h, mask=h < H, other=0.0)
        top, old, new = factors(top, new_top)
        total = tl.fma(new_total, new, total * old)
        out = tl.fma(new_out, new, out * old)
        part += H + 2
    tl.store(o_ptr + at * H + h, (out / total).to(o_ptr.dtype.element_ty), mask=h < H)


def attend_packed(
    q_TNH: Tensor,
    k_TnH: Tensor,
    v_TnH: Tensor,
    cu_seqlens_B1: Tensor,
    prefix_B: Tensor,
    scale: float,
    half: bool,
    *,
    config: Config | None = None,
) -> tuple[Tensor, Tensor]:
    """(o_TNH, lse_TN) of packed sequences; the values in cu_seqlens and prefix are not checked."""
    check_packed(q_TNH, k_TnH, v_TnH, cu_seqlens_B1, prefix_B)
    o_TNH, lse_TN = torch.empty_like(q_TNH), q_TNH.new_empty(q_TNH.shape[:2])
    places = (None, cu_seqlens_B1, prefix_B)
    compute = torch.bfloat16 if half else torch.float32
    _run(q_TNH, k_TnH, v_TnH, places, scale, o_TNH, lse_TN, compute, 0, config)
    return o_TNH, lse_TN


def attend_paged(
    q_TNH: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table_BM: Tensor,
    cu_q_B1: Tensor,
    lengths_B: Tensor,
    scale: float,
    *,
    config: Config | None = None,
) -> Tensor:
    """o_TNH of new query rows over keys in pages; a page id outside the pages makes its rows NaN."""
    check("q", q_TNH, q_TNH.device, (torch.float32,), -1, -1, -1)
    width = q_TNH.shape[2]
    check("k_pages", k_pages, q_TNH.device, (torch.float32, torch.bfloat16), -1, -1, width, PAGE_SIZE.value)
    count, kv_heads = k_pages.shape[:2]
    check("v_pages", v_pages, q_TNH.device, (k_pages.dtype,), count, kv_heads, PAGE_SIZE.value, width)
    check("page_table", page_table_BM, q_TNH.device, (torch.int32,), -1, -1)
    check("cu_q", cu_q_B1, q_TNH.device, (torch.int32,), page_table_BM.shape[0] + 1)
    check("lengths", lengths_B, q_TNH.device, (torch.int32,), page_table_BM.shape[0])
    o_TNH, lse_TN = torch.empty_like(q_TNH), q_TNH.new_empty(q_TNH.shape[:2])
    places = (page_table_BM, cu_q_B1, lengths_B)
    _run(q_TNH, k_pages, v_pages, places, scale, o_TNH, lse_TN, k_pages.dtype, count, config)
    return o_TNH


def check_packed(q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor, cu_seqlens_B1: Tensor, prefix_B: Tensor) -> None:
    """What a packed call can check without reading values."""
    check("q", q_TNH, q_TNH.device, (torch.float32,), -1, -1, -1)
    check("k", k_TnH, q_TNH.device, (torch.float32,), q_TNH.shape[0], -1, q_TNH.shape[2])
    check("v", v_TnH, q_TNH.device, (torch.float32,), *k_TnH.shape)
    check("cu_seqlens", cu_seqlens_B1, q_TNH.device, (torch.int32,), -1)
    check("prefix", prefix_B, q_TNH.device, (torch.int32,), cu_seqlens_B1.shape[0] - 1)


def check_heads(heads: int, kv_heads: int, width: int, config: Config) -> int:
    """Query heads of a key-value head."""
    if kv_heads == 0 or heads % kv_heads or heads // kv_heads > config.block("ROWS"):
        raise ValueError(f"q: has {heads} heads, expected a multiple of the {kv_heads} key-value heads")
    if width % 16 or not 0 < width <= 256:
        raise ValueError(f"q: head width is {width}, expected a multiple of 16 up to 256")
    return heads // kv_heads


def default_config(compute: torch.dtype, head_width: int) -> Config:
    """By the products' dtype; wide heads need the registers of low tiles."""
    half, wide = compute == torch.bfloat16, head_width > 128
    if wide:
        return WIDE_CONFIGS[0] if half else WIDE_SINGLE_CONFIGS[0]
    return HALF_CONFIGS[0] if half else SINGLE_CONFIGS[0]


def _run(
    q_TNH: Tensor,
    k: Tensor,
    v: Tensor,
    places: tuple[Tensor | None, Tensor, Tensor],
    scale: float,
    o_TNH: Tensor,
    lse_TN: Tensor,
    compute: torch.dtype,
    pages: int,
    config: Config | None,
) -> None:
    table, bounds_B1, before_B = places
    (tokens, heads, width), kv_heads, sequences = q_TNH.shape, k.shape[1], before_B.shape[0]
    chosen = config or default_config(compute, width)
    group, columns = check_heads(heads, kv_heads, width, chosen), 0 if table is None else table.shape[1]
    splits = ceil_div(columns * PAGE_SIZE.value, chosen.block("SPLIT"))
    apart = splits > 1 and tokens * heads * splits * (width + 2) <= MOST_PARTS
    parts = q_TNH.new_empty((tokens, heads, splits, width + 2), dtype=torch.float32) if apart else None
    tiles = ceil_div(tokens, chosen.block("ROWS") // group) + min(tokens, sequences)
    constants = {
        "PAGED": table is not None,
        "APART": apart,
        "COMPUTE": tl.bfloat16 if compute == torch.bfloat16 else tl.float32,
        "GROUP": group,
        "H": width,
        "BLOCK_H": power_of_two(width),
        "SEQUENCES": power_of_two(sequences),
    }
    args = (q_TNH, k, v, table, bounds_B1, before_B, o_TNH, lse_TN, parts, sequences, pages, columns, kv_heads, scale)
    launch(_attend, (tiles if tokens else 0, kv_heads, splits if apart else 1), *args, config=chosen, **constants)
    if parts is not None:
        joined = {"H": width, "BLOCK_H": power_of_two(width)}
        launch(_join, (tokens * heads,), parts, o_TNH, splits, config=JOIN_CONFIGS[0], **joined)
