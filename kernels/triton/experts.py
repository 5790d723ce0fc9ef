"""The grouped expert MLP on CUDA and its gradients (contract: `experts`, whose rows `Routing` orders).

Forward, three launches: gate and up of every row with SwiGLU behind them, x being gathered while it is read; down; and
the weighted sum over a token's rows in the order of experts. No atomics, no wait for the host.
A row's bits do not depend on the other rows of its expert (kernels/triton/grouped.py), so this is the batch-invariant
variant as well: there is no second, faster one.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.packing import rounded
from seedthink.kernels.triton.grouped import gate_up_act, matrix_gradients, rows_times_matrices
from seedthink.kernels.triton.launch import FLOATS, Config, check, config, launch, power_of_two
from seedthink.kernels.triton.linear import operand
from seedthink.kernels.triton.permute import combine

WIDEST = 8192  # I: one program holds a row of gate and up

ACTIVATION_CONFIGS = (config("tree of 4 warps", warps=4), config("tree of 8 warps", warps=8))


@triton.jit
def _activation_gradient(
    dact_ptr: tl.tensor,
    hidden_ptr: tl.tensor,
    weight_ptr: tl.tensor,
    row_ptr: tl.tensor,
    dhidden_ptr: tl.tensor,
    weighted_ptr: tl.tensor,
    dweight_ptr: tl.tensor,
    width: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    """For one (token, k): the router weight's gradient, the gradient of gate and up, and weight * act."""
    slot = tl.program_id(0).to(tl.int64)
    row, weight = tl.load(row_ptr + slot).to(tl.int64), tl.load(weight_ptr + slot)
    column = tl.arange(0, BLOCK)
    live = column < width
    gate = tl.load(hidden_ptr + row * (2 * width) + column, mask=live, other=0.0).to(tl.float32)
    up = tl.load(hidden_ptr + row * (2 * width) + width + column, mask=live, other=0.0).to(tl.float32)
    dact = tl.load(dact_ptr + row * width + column, mask=live, other=0.0).to(tl.float32)
    share = tl.sigmoid(gate)
    act = gate * share * up
    tl.store(dweight_ptr + slot, tl.sum(dact * act, axis=0))
    tl.store(weighted_ptr + row * width + column, (weight * act).to(weighted_ptr.dtype.element_ty), mask=live)
    dgate, dup = weight * dact * up * (share * (1.0 + gate * (1.0 - share))), weight * dact * gate * share
    tl.store(dhidden_ptr + row * (2 * width) + column, dgate.to(dhidden_ptr.dtype.element_ty), mask=live)
    tl.store(dhidden_ptr + row * (2 * width) + width + column, dup.to(dhidden_ptr.dtype.element_ty), mask=live)


def forward(
    x_TD: Tensor,
    weight_TK: Tensor,
    offsets_E1: Tensor,
    row_TK: Tensor,
    token_R: Tensor,
    gate_up_E_2I_D: Tensor,
    down_E_D_I: Tensor,
    compute: torch.dtype,
    keep: bool = True,
) -> tuple[Tensor, Tensor]:
    """(y_TD, hidden_R_2I): gate and up before SwiGLU are kept for the gradient; without `keep` out_RD stands there."""
    _check(x_TD, weight_TK, offsets_E1, row_TK, token_R, gate_up_E_2I_D, down_E_D_I)
    rows, width = row_TK.numel(), down_E_D_I.shape[2]
    x, gate_up = operand(x_TD, compute), rounded(gate_up_E_2I_D, compute)
    hidden_R_2I = x_TD.new_empty((rows, 2 * width)) if keep else None
    act_RI = gate_up_act(x, token_R, offsets_E1, gate_up, hidden_R_2I, x.new_empty((rows, width)))
    down_EID = rounded(down_E_D_I, compute).transpose(1, 2)
    out_RD = rows_times_matrices(act_RI, None, offsets_E1, down_EID, x_TD.new_empty((rows, x_TD.shape[1])))
    return combine(out_RD, weight_TK, row_TK), out_RD if hidden_R_2I is None else hidden_R_2I


def backward(
    dy_TD: Tensor,
    x_TD: Tensor,
    weight_TK: Tensor,
    offsets_E1: Tensor,
    row_TK: Tensor,
    token_R: Tensor,
    gate_up_E_2I_D: Tensor,
    down_E_D_I: Tensor,
    hidden_R_2I: Tensor,
    compute: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dx_TD, dweight_TK, dgate_up, ddown)."""
    _check(x_TD, weight_TK, offsets_E1, row_TK, token_R, gate_up_E_2I_D, down_E_D_I)
    rows, width = row_TK.numel(), down_E_D_I.shape[2]
    check("dy", dy_TD, x_TD.device, FLOATS, *x_TD.shape)
    check("hidden", hidden_R_2I, x_TD.device, FLOATS, rows, 2 * width)
    dy, x = operand(dy_TD, compute), operand(x_TD, compute)
    down, gate_up = rounded(down_E_D_I, compute), rounded(gate_up_E_2I_D, compute)
    dact_RI = rows_times_matrices(dy, token_R, offsets_E1, down, hidden_R_2I.new_empty((rows, width)))
    dhidden, weighted, dweight_TK = _activation_gradients(dact_RI, hidden_R_2I, weight_TK, row_TK, compute)
    dx_RD = rows_times_matrices(dhidden, None, offsets_E1, gate_up, x_TD.new_empty((rows, x_TD.shape[1])))
    ddown = matrix_gradients(dy, weighted, token_R, offsets_E1, torch.empty_like(down_E_D_I), True, None)
    dgate_up = matrix_gradients(dhidden, x, token_R, offsets_E1, torch.empty_like(gate_up_E_2I_D), False, None)
    return combine(dx_RD, None, row_TK), dweight_TK, dgate_up, ddown


def _activation_gradients(
    dact_RI: Tensor,
    hidden_R_2I: Tensor,
    weight_TK: Tensor,
    row_TK: Tensor,
    compute: torch.dtype,
    config: Config = ACTIVATION_CONFIGS[0],
) -> tuple[Tensor, Tensor, Tensor]:
    rows, width = dact_RI.shape
    dhidden = hidden_R_2I.new_empty(hidden_R_2I.shape, dtype=compute)
    weighted_RI, dweight_TK = dact_RI.new_empty(dact_RI.shape, dtype=compute), torch.empty_like(weight_TK)
    args = (dact_RI, hidden_R_2I, weight_TK, row_TK, dhidden, weighted_RI, dweight_TK, width)
    launch(_activation_gradient, (rows,), *args, config=config, BLOCK=power_of_two(width))
    return dhidden, weighted_RI, dweight_TK


def _check(
    x_TD: Tensor,
    weight_TK: Tensor,
    offsets_E1: Tensor,
    row_TK: Tensor,
    token_R: Tensor,
    gate_up: Tensor,
    down: Tensor,
) -> None:
    device = x_TD.device
    check("x", x_TD, device, FLOATS, -1, -1)
    check("down", down, device, FLOATS, -1, x_TD.shape[1], -1)
    experts, _, width = down.shape
    check("gate_up", gate_up, device, FLOATS, experts, 2 * width, x_TD.shape[1])
    check("weight", weight_TK, device, (torch.float32,), x_TD.shape[0], -1)
    check("offsets", offsets_E1, device, (torch.int32,), experts + 1)
    check("row", row_TK, device, (torch.int32,), *weight_TK.shape)
    check("token", token_R, device, (torch.int32,), row_TK.numel())
    if width > WIDEST:
        raise ValueError(f"down: experts of width {width}, expected at most {WIDEST}")
