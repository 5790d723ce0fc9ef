"""The halves of a decoder block while generating, one native call each: the same kernels in the same order as training.

x += attention(norm(x)) with keys and values in pages, then x += mlp(norm(x)). Each element goes through the operations
of linear, rms_norm, rope, attend_paged, swiglu, route and experts, so its bits are theirs; what is saved is the way
through Python and fresh memory between them. No autograd. x_TD float32 [T, D] is the residual stream, updated in place.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.packing import panels_of
from seedthink.kernels.route import Score


class PagedBatch(NamedTuple):
    """T tokens of B sequences whose keys and values live in pages; all index arrays are int32 and contiguous.

    Row t is at position positions_T[t] of its sequence and writes slot slots_T[t] = page * PAGE + offset. Sequence b's
    rows are cu_q_B1[b] .. cu_q_B1[b + 1], the last of its lengths_B[b] positions, in pages page_table_BM[b].
    `layers` holds each layer's (k_pages, v_pages); `scale` multiplies q.k.
    """

    layers: list[tuple[Tensor, Tensor]]
    positions_T: Tensor
    slots_T: Tensor
    page_table_BM: Tensor
    cu_q_B1: Tensor
    lengths_B: Tensor
    scale: float


def attention_step(
    x_TD: Tensor,
    norm_D: Tensor,
    eps: float,
    qkv_weight: Tensor,
    qkv_bias: Tensor | None,
    head_norms: tuple[Tensor | None, Tensor | None],
    out_weight: Tensor,
    table: Tensor,
    batch: PagedBatch,
    layer: int,
    compute: torch.dtype,
) -> None:
    """x += out(attend(rope(norm(q)), rope(norm(k)), v)) with q, k, v = qkv(norm(x)); k and v go to the layer's pages.

    qkv_weight float32 [(N + 2n) * H, D]: query, key, value rows; qkv_bias: float32, one per row, or None; head_norms:
    float32 [H] of q and of k, or both None; out_weight float32 [D, N * H]; table as of `rope_table`; compute as of
    `linear`. ValueError names the argument that is wrong.
    """
    _C.attention_step(
        x_TD,
        norm_D,
        eps,
        panels_of(qkv_weight, compute),
        qkv_bias,
        *head_norms,
        table,
        batch.positions_T,
        batch.slots_T,
        *batch.layers[layer],
        batch.page_table_BM,
        batch.cu_q_B1,
        batch.lengths_B,
        batch.scale,
        panels_of(out_weight, compute),
        out_weight.shape[1] // table.shape[1],
    )


def dense_step(
    x_TD: Tensor, norm_D: Tensor, eps: float, gate_up_2I_D: Tensor, down_D_I: Tensor, compute: torch.dtype
) -> None:
    """x += down(swiglu(gate_up(norm(x)))). ValueError names the argument that is wrong."""
    panels = panels_of(gate_up_2I_D, compute), panels_of(down_D_I, compute)
    _C.dense_step(x_TD, norm_D, eps, *panels, down_D_I.shape[1])


def sparse_step(
    x_TD: Tensor,
    norm_D: Tensor,
    eps: float,
    router_ED: Tensor,
    k: int,
    gate_up_E_2I_D: Tensor,
    down_E_D_I: Tensor,
    compute: torch.dtype,
    shared: tuple[Tensor, Tensor] | None = None,
    *,
    score: Score = "softmax",
    norm_topk: bool = True,
    scale: float = 1.0,
    bias_E: Tensor | None = None,
    groups: int = 1,
    topk_groups: int = 1,
) -> None:
    """x += experts(norm(x)) [+ shared(norm(x))], routed by a float32 product and the rule that `route` takes.

    shared: gate_up [2S, D] and down [D, S] of an MLP that every token goes through. ValueError names the argument that
    is wrong, or a NaN row.
    """
    panels = panels_of(gate_up_E_2I_D, compute), panels_of(down_E_D_I, compute)
    router, experts = panels_of(router_ED, torch.float32), router_ED.shape[0]
    rule = (bias_E, score == "sigmoid", norm_topk, scale, groups, topk_groups)
    common: tuple[Tensor | None, Tensor | None, int] = (None, None, 0)
    if shared is not None:
        common = (panels_of(shared[0], compute), panels_of(shared[1], compute), shared[1].shape[1])
    _C.sparse_step(x_TD, norm_D, eps, router, experts, k, *rule, *panels, down_E_D_I.shape[2], *common)
