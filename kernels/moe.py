"""Mixture of experts: routing (softmax, top-k, expert order) and the experts' SwiGLU MLPs.

p = softmax(logits); the k largest are chosen, ties to the smaller expert id; y_t = sum over the chosen experts, in order
of id and in fp32, of weight * down(silu(gate x) * up x). Rows of an expert stand in token order; an expert's row has the
same bits whatever other rows the expert has (kernels/linear.py's contract), so routing of one token never moves another.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seedthink.kernels.linear import reference_linear


class Routing(NamedTuple):
    """Where each token goes. R = T * K rows stand expert by expert, in token order within an expert."""

    ids_TK: Tensor  # int32, ascending within a token
    weight_TK: Tensor  # float32, differentiable with respect to the logits
    counts_E: Tensor  # int32, rows of each expert
    offsets_E1: Tensor  # int32, first row of each expert; the last entry is R
    row_TK: Tensor  # int32, the row of (t, k)
    token_R: Tensor  # int32, the token of a row


def reference_route(logits_TE: Tensor, k: int, norm_topk: bool = True) -> Routing:
    """The contract of `route` in torch, in the dtype of the logits."""
    experts = logits_TE.shape[1]
    scores_TE = logits_TE.softmax(dim=-1)
    order_TE = torch.sort(logits_TE.detach(), dim=-1, descending=True, stable=True).indices
    ids_TK = order_TE[:, :k].sort(dim=-1).values
    weight_TK = scores_TE.gather(1, ids_TK)
    if norm_topk:
        weight_TK = weight_TK / weight_TK.sum(dim=-1, keepdim=True)
    flat_R = ids_TK.reshape(-1)
    slot_R = torch.sort(flat_R, stable=True).indices
    row_TK = torch.empty_like(slot_R).scatter_(0, slot_R, torch.arange(slot_R.numel())).reshape(ids_TK.shape)
    counts_E = torch.bincount(flat_R, minlength=experts)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    return Routing(ids_TK.int(), weight_TK, counts_E.int(), offsets_E1.int(), row_TK.int(), (slot_R // k).int())


def reference_experts(
    x_TD: Tensor,
    routing: Routing,
    gate_up_E_2I_D: Tensor,
    down_E_D_I: Tensor,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """The contract of `experts` in torch, in the dtype of x."""
    width = down_E_D_I.shape[2]
    parts = []
    bounds = routing.offsets_E1.tolist()
    for e in range(gate_up_E_2I_D.shape[0]):
        rows = x_TD[routing.token_R[bounds[e] : bounds[e + 1]].long()]
        gate_up = reference_linear(rows, gate_up_E_2I_D[e], compute)
        act = torch.nn.functional.silu(gate_up[:, :width]) * gate_up[:, width:]
        parts.append(reference_linear(act, down_E_D_I[e], compute))
    out_RD = torch.cat(parts)
    y_TD = torch.zeros_like(x_TD)
    for k in range(routing.ids_TK.shape[1]):
        y_TD = y_TD + routing.weight_TK[:, k : k + 1] * out_RD[routing.row_TK[:, k].long()]
    return y_TD


def route(logits_TE: Tensor, k: int, norm_topk: bool = True) -> Routing:
    """Choose k of E experts for each token. logits: float32 [T, E].

    norm_topk: divide the k chosen scores by their sum. Raises ValueError for NaN or +inf logits (naming the row), for k
    outside 1..E and for a wrong dtype or shape.
    """
    return reference_route(logits_TE, k, norm_topk)


def experts(
    x_TD: Tensor,
    routing: Routing,
    gate_up_E_2I_D: Tensor,
    down_E_D_I: Tensor,
    compute: torch.dtype = torch.float32,
) -> Tensor:
    """y_TD of the routed SwiGLU experts, float32; differentiable in x, routing.weight_TK and both weights.

    gate_up: [E, 2I, D], gate rows first. down: [E, D, I]. compute: as in `linear`.
    Raises ValueError for a wrong dtype, shape, device or layout, naming the argument.
    """
    return reference_experts(x_TD, routing, gate_up_E_2I_D, down_E_D_I, compute)
