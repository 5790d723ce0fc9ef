"""Causal grouped-query attention over packed sequences (training) and over pages (generation), with the same bits.

softmax(scale * q.k) v, keys walked in ascending order from the start of the sequence in fixed tiles with an online
softmax (Milakov & Gimelshein 2018, arXiv:1805.02867), so a query row's result depends on that row, its keys and its
values, never on what else is in the call. Pages hold 16 positions; K is stored transposed, so 16 keys are one vector.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.registry import define, from_triton

PAGE = 16


def reference_attend_packed(
    q_TNH: Tensor,
    k_TnH: Tensor,
    v_TnH: Tensor,
    cu_seqlens_B1: Tensor,
    scale: float,
    prefix_B: Tensor | None = None,
) -> Tensor:
    """One softmax(q k^T) v per sequence and head, in the dtype of its arguments."""
    group = q_TNH.shape[1] // k_TnH.shape[1]
    bounds = list(pairwise(cu_seqlens_B1.tolist()))
    before = [-1] * len(bounds) if prefix_B is None else prefix_B.tolist()
    pieces = []
    for (begin, end), prefix in zip(bounds, before, strict=True):
        start, stop = bounds[prefix] if prefix >= 0 else (begin, begin)
        rows = [*range(start, stop), *range(begin, end)]
        q = q_TNH[begin:end].transpose(0, 1)
        k = k_TnH[rows].transpose(0, 1).repeat_interleave(group, 0)
        v = v_TnH[rows].transpose(0, 1).repeat_interleave(group, 0)
        future = torch.ones(end - begin, len(rows), dtype=torch.bool).triu(1 + stop - start)
        score = (q @ k.transpose(1, 2) * scale).masked_fill(future, float("-inf"))
        pieces.append((score.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces) if pieces else torch.zeros_like(q_TNH)


def attend_packed(
    q_TNH: Tensor,
    k_TnH: Tensor,
    v_TnH: Tensor,
    cu_seqlens_B1: Tensor,
    scale: float,
    compute: torch.dtype = torch.float32,
    prefix_B: Tensor | None = None,
) -> Tensor:
    """Causal attention within each packed sequence.

    q_TNH float32 [T, N, H], k_TnH and v_TnH float32 [T, n, H] with N a multiple of n, cu_seqlens_B1 int32 [B + 1] with
    the sequences' bounds in tokens -> float32 [T, N, H]; differentiable in q, k and v. compute is float32 or bfloat16:
    bfloat16 rounds k and v as pages of that dtype do. prefix_B int32 [B]: the sequence whose rows stand before a
    sequence's own, or -1; a row has the bits that it has after a copy of those rows. ValueError names the argument that
    does not fit.
    """
    if compute not in (torch.float32, torch.bfloat16):
        raise ValueError(f"compute: expected torch.float32 or torch.bfloat16, got {compute}")
    if prefix_B is None:
        prefix_B = torch.full((cu_seqlens_B1.numel() - 1,), -1, dtype=torch.int32, device=q_TNH.device)
    half = compute == torch.bfloat16
    out: Tensor = _attend_packed(q_TNH, k_TnH, v_TnH, cu_seqlens_B1, prefix_B, scale, half)[0]
    return out


def _packed_forward(
    q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor, cu_seqlens_B1: Tensor, prefix_B: Tensor, scale: float, half: bool
) -> tuple[Tensor, Tensor]:
    o_TNH, lse_TN = _packed_shapes(q_TNH)
    _C.attend_packed_forward(q_TNH, k_TnH, v_TnH, cu_seqlens_B1, prefix_B, scale, half, o_TNH, lse_TN)
    return o_TNH, lse_TN


def _packed_shapes(q_TNH: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q_TNH), q_TNH.new_empty(q_TNH.shape[:2])


def _packed_gradients(
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
) -> tuple[Tensor, Tensor, Tensor]:
    grads = torch.empty_like(q_TNH), torch.empty_like(k_TnH), torch.empty_like(v_TnH)
    saved = (q_TNH, k_TnH, v_TnH, o_TNH, lse_TN)
    _C.attend_packed_backward(do_TNH, *saved, cu_seqlens_B1, prefix_B, scale, half, *grads)
    return grads


def _packed_gradient_shapes(
    do_TNH: Tensor, q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor, *_: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q_TNH), torch.empty_like(k_TnH), torch.empty_like(v_TnH)


def _save_packed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.scale, ctx.half = inputs
    ctx.save_for_backward(*tensors, *output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _packed_backward(ctx: Any, do_TNH: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if do_TNH is None:
        return None, None, None, None, None, None, None
    q, k, v, cu_seqlens, prefix, o, lse = ctx.saved_tensors
    gradients = _attend_packed_gradients(do_TNH.contiguous(), q, k, v, o, lse, cu_seqlens, prefix, ctx.scale, ctx.half)
    return *gradients, None, None, None, None


_attend_packed_gradients = define(
    "attend_packed_backward(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor cu_seqlens, "
    "Tensor prefix, float scale, bool half) -> (Tensor, Tensor, Tensor)",
    cpu=_packed_gradients,
    cuda=from_triton("attention_backward", "attend_packed_backward"),
    fake=_packed_gradient_shapes,
)
_attend_packed = define(
    "attend_packed(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens, Tensor prefix, float scale, bool half) "
    "-> (Tensor, Tensor)",
    cpu=_packed_forward,
    cuda=from_triton("attention", "attend_packed"),
    fake=_packed_shapes,
    backward=_packed_backward,
    setup_context=_save_packed,
)


def new_pages(count: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Empty pages: K [count, n, H, PAGE] and V [count, n, PAGE, H] of dtype float32 or bfloat16, zero-filled."""
    return (
        torch.zeros(count, kv_heads, head_dim, PAGE, dtype=dtype),
        torch.zeros(count, kv_heads, PAGE, head_dim, dtype=dtype),
    )


def write_pages(k_TnH: Tensor, v_TnH: Tensor, slots_T: Tensor, k_pages: Tensor, v_pages: Tensor) -> None:
    """Store token t's key and value at slots_T[t] = page * PAGE + offset, rounded to the pages' dtype.

    k_TnH, v_TnH float32 [T, n, H]; slots_T int32 [T]. ValueError when a slot is outside the pages.
    """
    _C.write_pages(k_TnH, v_TnH, slots_T, k_pages, v_pages)


def reference_attend_paged(
    q_TNH: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table_BM: Tensor,
    cu_q_B1: Tensor,
    lengths_B: Tensor,
    scale: float,
) -> Tensor:
    """Gather every sequence's pages, then plain attention for its last rows, in the dtype of q."""
    group = q_TNH.shape[1] // k_pages.shape[1]
    bounds, pieces = cu_q_B1.tolist(), []
    for b, length in enumerate(lengths_B.tolist()):
        q = q_TNH[bounds[b] : bounds[b + 1]].transpose(0, 1)
        pages = page_table_BM[b, : -(-length // PAGE)].long()
        k = k_pages[pages].permute(1, 0, 3, 2).flatten(1, 2)[:, :length].to(q.dtype).repeat_interleave(group, 0)
        v = v_pages[pages].transpose(0, 1).flatten(1, 2)[:, :length].to(q.dtype).repeat_interleave(group, 0)
        rows = q.shape[1]
        future = torch.ones(rows, length, dtype=torch.bool).triu(1 + length - rows)
        score = (q @ k.transpose(1, 2) * scale).masked_fill(future, float("-inf"))
        pieces.append((score.softmax(-1) @ v).transpose(0, 1))
    return torch.cat(pieces) if pieces else torch.zeros_like(q_TNH)


def attend_paged(
    q_TNH: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table_BM: Tensor,
    cu_q_B1: Tensor,
    lengths_B: Tensor,
    scale: float,
) -> Tensor:
    """Causal attention of new query rows over keys and values that are already in pages. No autograd.

    q_TNH float32 [T, N, H]; pages from `new_pages`; page_table_BM int32 [B, M] page ids of each sequence in order;
    cu_q_B1 int32 [B + 1] bounds of each sequence's query rows; lengths_B int32 [B] positions in the pages, the rows of
    sequence b being its last ones (decode: one row, prefill: all, chunked prefill: some) -> float32 [T, N, H].
    The bits equal `attend_packed` on the whole sequence with compute = the pages' dtype.
    """
    if q_TNH.is_cuda:
        attended: Tensor = _paged_cuda(q_TNH, k_pages, v_pages, page_table_BM, cu_q_B1, lengths_B, scale)
        return attended
    o_TNH = torch.empty_like(q_TNH)
    _C.attend_paged(q_TNH, k_pages, v_pages, page_table_BM, cu_q_B1, lengths_B, scale, o_TNH)
    return o_TNH


_paged_cuda = from_triton("attention", "attend_paged")
