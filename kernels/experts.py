"""The experts' SwiGLU MLPs over routed rows, with the way to the experts and back inside.

y_t = sum over the chosen experts, in order of id and in fp32, of weight * down(silu(gate x) * up x). A row has the same
bits whatever other rows its expert has (the contract of kernels/linear.py), so no token moves another's output.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.linear import reference_linear
from seedthink.kernels.packing import panels_of
from seedthink.kernels.registry import define, from_triton, wants_operator
from seedthink.kernels.route import Routing

_ROWS_AT_A_TIME = 2048  # rows whose gradients the backward holds at once: few enough to stay in the last cache


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
