"""Causal attention: over packed sequences, bound by FLOPs; for one new token over pages, bound by reading the cache.

The peer is torch's scaled_dot_product_attention on sequences of equal length, which need no padding, in its own layout,
made before the clock starts; while decoding it gets dense keys and values that somebody would have had to gather.
FLOPs count what causality leaves, and 3.5 times that with gradients (five products for two).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from seedthink.bench.case import (
    DTYPES,
    ITEM_SIZE,
    Case,
    Draw,
    Outputs,
    Place,
    Prepared,
    Run,
    Work,
    against,
    row_dtypes,
)
from seedthink.bench.peers import as_outputs, trained
from seedthink.bench.presets import Shapes
from seedthink.kernels.attention import PAGE, attend_packed, attend_paged, new_pages, reference_attend_packed

TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}
CHECKED = 1  # sequences: the reference holds all scores of one
Size = tuple[int, int, int, int, int]  # sequences, tokens of each, query heads, KV heads, head width


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """Training on packed sequences, and decoding."""
    heads = shapes.heads, shapes.kv_heads, shapes.head_dim
    for count, length in shapes.packed if shapes.heads else ():
        size = (count, length, *heads)
        for dtype in row_dtypes(device):
            once, both = packed_work(size, dtype), packed_work(size, dtype, train=True)
            yield Case("attend_packed", place(size), dtype, once, partial(prepare_packed, size, dtype))
            yield Case("attend_packed_train", place(size), dtype, both, partial(prepare_train, size, dtype))
    for count, length in shapes.contexts if shapes.heads else ():
        size = (count, length, *heads)
        for dtype in DTYPES:
            least, memory = paged_work(size, dtype), 4 * paged_work(size, dtype).bytes
            yield Case("attend_paged", place(size), dtype, least, partial(prepare_paged, size, dtype), memory)


def place(size: Size) -> Place:
    """The shape by name."""
    return dict(zip(("B", "T", "N", "n", "H"), size, strict=True))


def packed_work(size: Size, dtype: str, train: bool = False) -> Work:
    """q, k, v in, o out; two products over the causal half of the scores."""
    count, length, heads, kv_heads, width = size
    moved = float(ITEM_SIZE[dtype]) * count * length * width * (2 * heads + 2 * kv_heads)
    flops = 4.0 * count * heads * width * length * (length + 1) / 2
    return Work(3 * moved, 3.5 * flops, dtype) if train else Work(moved, flops, dtype)


def paged_work(size: Size, dtype: str) -> Work:
    """The keys and values of every position, once; a query and an output per sequence."""
    count, length, heads, kv_heads, width = size
    cached = 2.0 * ITEM_SIZE[dtype] * count * length * kv_heads * width
    return Work(cached + 8.0 * count * heads * width, 4.0 * count * heads * length * width)


def prepare_packed(size: Size, dtype: str, draw: Draw) -> Prepared:
    """Forward."""
    qkv, bounds, scale = packed_inputs(size, dtype, draw)
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, attend_packed, *qkv, bounds, scale)},
        peers={"sdpa": lambda: sdpa(size, qkv, scale)},
        error=by_token(against(partial(reference_packed, size, qkv, scale), rows=CHECKED * size[1])),
        tolerance=TOLERANCE[dtype],
    )


def prepare_train(size: Size, dtype: str, draw: Draw) -> Prepared:
    """Forward and backward."""
    qkv, bounds, scale = packed_inputs(size, dtype, draw)
    grad_TNH = draw.normal(*qkv[0].shape, dtype=DTYPES[dtype])

    def own(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend_packed(q, k, v, bounds, scale)

    def reference() -> Outputs:
        tokens = CHECKED * size[1]
        first = [x[:tokens].cpu().double() for x in qkv]
        until = torch.arange(0, tokens + 1, size[1])
        whole = partial(reference_attend_packed, cu_seqlens_B1=until, scale=scale)
        return trained(whole, first, [grad_TNH[:tokens].cpu().double()])()

    return Prepared(
        ours={draw.device.type: lambda: trained(own, qkv, [grad_TNH])},
        peers={"sdpa": lambda: sdpa_train(size, qkv, grad_TNH, scale)},
        error=by_token(against(reference, rows=CHECKED * size[1])),
        tolerance=TOLERANCE[dtype],
    )


def prepare_paged(size: Size, dtype: str, draw: Draw) -> Prepared:
    """Pages in random order, as after a while of serving."""
    count, length, heads, kv_heads, width = size
    per_row, scale = -(-length // PAGE), width**-0.5
    empty = new_pages(count * per_row, kv_heads, width, DTYPES[dtype])
    k_pages, v_pages = (draw.normal(*pages.shape, dtype=pages.dtype) for pages in empty)
    table_BM, q_BNH = draw.order(count * per_row).view(count, per_row), draw.normal(count, heads, width)
    bounds = torch.arange(count + 1, dtype=torch.int32, device=draw.device)
    lengths = torch.full((count,), length, dtype=torch.int32, device=draw.device)
    at = table_BM.long()
    k = k_pages[at].permute(0, 2, 1, 4, 3).flatten(2, 3)[:, :, :length].contiguous()
    v = v_pages[at].permute(0, 2, 1, 3, 4).flatten(2, 3)[:, :, :length].contiguous()
    call = partial(as_outputs, attend_paged, q_BNH, k_pages, v_pages, table_BM, bounds, lengths, scale)

    def peer() -> Outputs:
        query = q_BNH[:, :, None].to(k.dtype)
        return (scaled_dot_product_attention(query, k, v, scale=scale, enable_gqa=True)[:, :, 0],)

    def reference() -> Outputs:
        keys, values = (x.double().repeat_interleave(heads // kv_heads, 1) for x in (k, v))
        return (scaled_dot_product_attention(q_BNH[:, :, None].double(), keys, values, scale=scale)[:, :, 0],)

    return Prepared(
        ours={draw.device.type: lambda: call},
        peers={"sdpa": lambda: peer},
        error=against(reference),
        tolerance=TOLERANCE[dtype],
    )


def packed_inputs(size: Size, dtype: str, draw: Draw) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor, float]:
    """(q, k, v), bounds and scale."""
    count, length, heads, kv_heads, width = size
    q, k, v = (draw.normal(count * length, n, width, dtype=DTYPES[dtype]) for n in (heads, kv_heads, kv_heads))
    bounds = torch.arange(0, count * length + 1, length, dtype=torch.int32, device=draw.device)
    return (q, k, v), bounds, width**-0.5


def reference_packed(size: Size, qkv: tuple[Tensor, Tensor, Tensor], scale: float) -> Outputs:
    """The first sequences in float64."""
    tokens = CHECKED * size[1]
    q, k, v = (x[:tokens].cpu().double() for x in qkv)
    return (reference_attend_packed(q, k, v, torch.arange(0, tokens + 1, size[1]), scale),)


def by_sequence(size: Size, x_TNH: Tensor) -> Tensor:
    """[B, N, T, H], the peer's layout."""
    return x_TNH.view(size[0], size[1], -1, size[4]).transpose(1, 2).contiguous()


def by_token(error: Callable[[Outputs], float]) -> Callable[[Outputs], float]:
    """`error` for outputs of either layout."""

    def of_either(outputs: Outputs) -> float:
        return error(tuple(x.transpose(1, 2).flatten(0, 1) if x is not None and x.dim() == 4 else x for x in outputs))

    return of_either


def sdpa(size: Size, qkv: tuple[Tensor, Tensor, Tensor], scale: float) -> Run:
    """torch's attention."""
    q, k, v = (by_sequence(size, x) for x in qkv)
    return partial(
        as_outputs, partial(scaled_dot_product_attention, is_causal=True, scale=scale, enable_gqa=True), q, k, v
    )


def sdpa_train(size: Size, qkv: tuple[Tensor, Tensor, Tensor], grad_TNH: Tensor, scale: float) -> Run:
    """The same with gradients."""
    attend = partial(scaled_dot_product_attention, is_causal=True, scale=scale, enable_gqa=True)
    return trained(attend, [by_sequence(size, x) for x in qkv], [by_sequence(size, grad_TNH)])
