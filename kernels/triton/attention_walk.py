"""The walk over keys that every attention call on CUDA makes: tiles of keys in fixed splits, splits merged in order.

Keys are taken in ascending position from the start of the sequence, KEYS at a time, with an online softmax
(Milakov & Gimelshein 2018, arXiv:1805.02867) that begins anew every SPLIT keys; a row's splits are merged in order.
One program may do all splits of its rows (prefill, training) or one of them (decoding, where a second kernel merges):
the operations on a row are the same, so its bits are. A tile that a row does not see changes nothing in it: the
maximum stays, factors are exp(0) = 1 and what is added is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def walk(
    q: tl.tensor,
    k_ptr: tl.tensor,
    v_ptr: tl.tensor,
    table_ptr: tl.tensor,
    pages: tl.tensor,
    prefix: tl.tensor,
    shared: tl.tensor,
    own: tl.tensor,
    begin: tl.tensor,
    end: tl.tensor,
    visible: tl.tensor,
    head: tl.tensor,
    heads: tl.tensor,
    scale: tl.tensor,
    PAGED: tl.constexpr,
    PAGE: tl.constexpr,
    H: tl.constexpr,
    BLOCK_H: tl.constexpr,
    ROWS: tl.constexpr,
    KEYS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Maximum, sum and weighted values of the keys [begin, end) for the rows of q, row i seeing the first visible[i].

    prefix, shared, own: first row and number of rows of the shared prefix, first own row; unused with pages.
    """
    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    out = tl.zeros((ROWS, BLOCK_H), tl.float32)
    h = tl.arange(0, BLOCK_H)
    for start in range(begin, end, KEYS):
        key = start + tl.arange(0, KEYS)
        live = key < end
        known = live
        if PAGED:
            page = tl.load(table_ptr + key // PAGE, mask=live, other=0).to(tl.int64)
            known = live & (page >= 0) & (page < pages)
            k_at = ((page * heads + head) * H)[None, :] * PAGE + h[:, None] * PAGE + (key % PAGE)[None, :]
            v_at = ((page * heads + head) * PAGE + key % PAGE)[:, None] * H + h[None, :]
        else:
            token = tl.where(key < shared, prefix + key, own + key - shared).to(tl.int64)
            k_at = ((token * heads + head) * H)[None, :] + h[:, None]
            v_at = ((token * heads + head) * H)[:, None] + h[None, :]
        k = tl.load(k_ptr + k_at, mask=known[None, :] & (h < H)[:, None], other=0.0).to(q.dtype)
        v = tl.load(v_ptr + v_at, mask=known[:, None] & (h < H)[None, :], other=0.0).to(q.dtype)
        score = tl.dot(q, k, input_precision="ieee") * scale
        score = tl.where((known | (key >= end))[None, :], score, float("nan"))
        score = tl.where(key[None, :] < visible[:, None], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, 1))
        shift = tl.where(higher == float("-inf"), 0.0, higher)
        weight = tl.exp(score - shift[:, None])
        factor = tl.exp(top - shift)
        total = tl.fma(total, factor, tl.sum(weight, 1))
        out = tl.dot(weight.to(v.dtype), v, out * factor[:, None], input_precision="ieee")
        top = higher
    return top, total, out


@triton.jit
def factors(top: tl.tensor, new_top: tl.tensor) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """The maximum of both sides, and what either side's sums are multiplied by to refer to it."""
    higher = tl.maximum(top, new_top)
    shift = tl.where(higher == float("-inf"), 0.0, higher)
    return higher, tl.exp(top - shift), tl.exp(new_top - shift)
