"""Mixture of experts: routing (softmax, top-k, expert order) and the experts' SwiGLU MLPs.

p = softmax(logits); the k largest are chosen, ties to the smaller expert id; y_t = sum over the chosen experts, in
order of id and in fp32, of weight * down(silu(gate x) * up x). Rows of an expert stand in token order. A row has the
same bits whatever other rows its expert has (the contract of kernels/linear.py), so no token moves another's output.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.linear import reference_linear
from seedthink.kernels.packing import panels_of
from seedthink.kernels.registry import define, from_triton, wants_operator

_ROWS_AT_A_TIME = 2048  # rows whose gradients the backward holds at once: few enough to stay in the last cache


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
    weight_TK, ids_TK, *places = _route(logits_TE, k, norm_topk)
    return Routing(ids_TK, weight_TK, *places)


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
    _check_shapes(x_TD, routing, gate_up_E_2I_D, down_E_D_I)
    places = (routing.offsets_E1, routing.row_TK, routing.token_R)
    if wants_operator(x_TD, routing.weight_TK, gate_up_E_2I_D, down_E_D_I):
        return _experts(x_TD, routing.weight_TK, *places, gate_up_E_2I_D, down_E_D_I, compute)[0]
    return _run_experts(x_TD, routing.weight_TK, *places, gate_up_E_2I_D, down_E_D_I, compute, keep=False)[0]


def _check_shapes(x_TD: Tensor, routing: Routing, gate_up: Tensor, down: Tensor) -> None:
    if x_TD.dim() != 2:
        raise ValueError(f"x: expected 2 dimensions, got {x_TD.dim()}")
    if down.dim() != 3 or down.shape[:2] != (routing.counts_E.shape[0], x_TD.shape[1]):
        wanted = [routing.counts_E.shape[0], x_TD.shape[1], "I"]
        raise ValueError(f"down: expected shape {wanted} to match routing and x, got {list(down.shape)}")
    wanted = [down.shape[0], 2 * down.shape[2], x_TD.shape[1]]
    if list(gate_up.shape) != wanted:
        raise ValueError(f"gate_up: expected shape {wanted} to match x and down, got {list(gate_up.shape)}")


def _route_forward(logits_TE: Tensor, k: int, norm_topk: bool) -> tuple[Tensor, ...]:
    if logits_TE.dim() != 2:
        raise ValueError(f"logits: expected 2 dimensions, got {logits_TE.dim()}")
    if not 1 <= k <= logits_TE.shape[1]:
        raise ValueError(f"k: {k} is not between 1 and the number of experts, {logits_TE.shape[1]}")
    tokens, count = logits_TE.shape
    ids_TK = torch.empty((tokens, k), dtype=torch.int32)
    weight_TK = torch.empty((tokens, k), dtype=torch.float32)
    counts_E, offsets_E1 = torch.empty(count, dtype=torch.int32), torch.empty(count + 1, dtype=torch.int32)
    row_TK, token_R = torch.empty_like(ids_TK), torch.empty(tokens * k, dtype=torch.int32)
    _C.route_forward(logits_TE, norm_topk, ids_TK, weight_TK, counts_E, offsets_E1, row_TK, token_R)
    return weight_TK, ids_TK, counts_E, offsets_E1, row_TK, token_R


def _route_shapes(logits: Tensor, k: int, norm_topk: bool) -> tuple[Tensor, ...]:
    tokens, count = logits.shape
    ids = logits.new_empty((tokens, k), dtype=torch.int32)
    flat = logits.new_empty(tokens * k, dtype=torch.int32)
    sizes = [logits.new_empty(n, dtype=torch.int32) for n in (count, count + 1)]
    return logits.new_empty((tokens, k)), ids, *sizes, torch.empty_like(ids), flat


def _save_route(ctx: Any, inputs: tuple[Tensor, int, bool], output: tuple[Tensor, ...]) -> None:
    logits_TE, _, ctx.norm_topk = inputs
    weight_TK, ids_TK, *rest = output
    ctx.mark_non_differentiable(ids_TK, *rest)
    ctx.save_for_backward(logits_TE, ids_TK, weight_TK)


def _route_backward(ctx: Any, dweight_TK: Tensor, *rest: Tensor) -> tuple[Tensor, None, None]:
    return _route_grad(dweight_TK.contiguous(), *ctx.saved_tensors, ctx.norm_topk), None, None


def _route_grad_cpu(dweight: Tensor, logits: Tensor, ids: Tensor, weight: Tensor, norm_topk: bool) -> Tensor:
    dlogits = torch.empty_like(logits)
    _C.route_backward(dweight, logits, ids, weight, norm_topk, dlogits)
    return dlogits


def _run_experts(
    x_TD: Tensor,
    weight_TK: Tensor,
    offsets_E1: Tensor,
    row_TK: Tensor,
    token_R: Tensor,
    gate_up: Tensor,
    down: Tensor,
    compute: torch.dtype,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    rows = row_TK.numel()
    hidden_R_2I = torch.empty((rows, gate_up.shape[1]), dtype=torch.float32) if keep else None
    out_RD, y_TD = torch.empty((rows, x_TD.shape[1]), dtype=torch.float32), torch.empty_like(x_TD)
    panels = panels_of(gate_up, compute, name="gate_up"), panels_of(down, compute, name="down")
    _C.experts_forward(x_TD, weight_TK, offsets_E1, row_TK, token_R, *panels, down.shape[2], hidden_R_2I, out_RD, y_TD)
    return y_TD, out_RD if hidden_R_2I is None else hidden_R_2I


def _save_experts(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.compute = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, output[1])


def _experts_backward(ctx: Any, dy_TD: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if dy_TD is None:
        return (None,) * 8
    dx_TD, dweight_TK, dgate_up, ddown = _experts_grad(dy_TD.contiguous(), *ctx.saved_tensors, ctx.compute)
    return dx_TD, dweight_TK, None, None, None, dgate_up, ddown, None


def _experts_grad_cpu(
    dy_TD: Tensor,
    x_TD: Tensor,
    weight_TK: Tensor,
    offsets_E1: Tensor,
    row_TK: Tensor,
    token_R: Tensor,
    gate_up: Tensor,
    down: Tensor,
    hidden_R_2I: Tensor,
    compute: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = row_TK.numel(), down.shape[2]
    bounds = offsets_E1.tolist()
    fullest = max(last - first for first, last in itertools.pairwise(bounds))
    held = max(fullest, min(rows, _ROWS_AT_A_TIME))
    panels = panels_of(gate_up, compute, transposed=True), panels_of(down, compute, transposed=True)
    dhidden, act = hidden_R_2I.new_empty((held, 2 * width)), hidden_R_2I.new_empty((held, width))
    drow, dx_TD, dweight_TK = x_TD.new_empty((rows, x_TD.shape[1])), torch.empty_like(x_TD), torch.empty_like(weight_TK)
    dgate_up, ddown = torch.empty_like(gate_up), torch.empty_like(down)
    workspace, grads = (dhidden, act, drow), (dx_TD, dweight_TK, dgate_up, ddown)
    places = (offsets_E1, row_TK, token_R)
    _C.experts_backward(dy_TD, x_TD, weight_TK, *places, *panels, hidden_R_2I, *workspace, *grads)
    return grads


_route = define(
    "route(Tensor logits, int k, bool norm_topk) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=_route_forward,
    fake=_route_shapes,
    backward=_route_backward,
    setup_context=_save_route,
)
_route_grad = define(
    "route_backward(Tensor grad, Tensor logits, Tensor ids, Tensor weight, bool norm_topk) -> Tensor",
    cpu=_route_grad_cpu,
    fake=lambda grad, logits, ids, weight, norm_topk: torch.empty_like(logits),
)
_experts = define(
    "experts(Tensor x, Tensor weight, Tensor offsets, Tensor row, Tensor token, Tensor gate_up, Tensor down, "
    "ScalarType compute) -> (Tensor, Tensor)",
    cpu=_run_experts,
    cuda=from_triton("experts", "forward"),
    fake=lambda x, weight, offsets, row, token, gate_up, down, compute: (
        torch.empty_like(x),
        x.new_empty((row.numel(), gate_up.shape[1])),
    ),
    backward=_experts_backward,
    setup_context=_save_experts,
)
_experts_grad = define(
    "experts_backward(Tensor grad, Tensor x, Tensor weight, Tensor offsets, Tensor row, Tensor token, Tensor gate_up, "
    "Tensor down, Tensor hidden, ScalarType compute) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_experts_grad_cpu,
    cuda=from_triton("experts", "backward"),
    fake=lambda grad, x, weight, offsets, row, token, gate_up, down, hidden, compute: (
        torch.empty_like(x),
        torch.empty_like(weight),
        torch.empty_like(gate_up),
        torch.empty_like(down),
    ),
)
