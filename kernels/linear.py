"""Row-exact product y = x W^T: one chain of fused multiply-adds over k ascending per output element.

The order of the sum depends on K alone, so a row's bits do not depend on how many rows stand beside it, on the split of
N or on threads. float32 operands, or operands rounded to bfloat16 (a chain of vdpbf16ps over pairs of k, or of AMX tile
products over 16 pairs: docs/kernels.md); accumulation is fp32.
Derivatives: dx = dy W (the same product with W^T's panels), dW = dy^T x (chains over 256 steps of tokens, added in
order; in bfloat16 the operands are rounded as in the forward).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.packing import panels_of
from seedthink.kernels.registry import define, from_triton
from seedthink.kernels.registry import wants_operator as wants_operator


def reference_linear(x_TK: Tensor, weight_NK: Tensor, compute: torch.dtype = torch.float32) -> Tensor:
    """The contract in torch, in the dtype of x (float64 for tests); rounding passes gradients straight through."""
    return _rounded(x_TK, compute) @ _rounded(weight_NK, compute).T


def _rounded(x: Tensor, compute: torch.dtype) -> Tensor:
    if compute == torch.float32:
        return x
    return x + (x.detach().to(compute).to(x.dtype) - x.detach())


def linear(x_TK: Tensor, weight_NK: Tensor, compute: torch.dtype = torch.float32) -> Tensor:
    """y_TN = x_TK weight_NK^T in float32, differentiable in both.

    compute: torch.float32, or torch.bfloat16 to round the operands (accumulation stays float32).
    The weight is packed once per version; write to it in place under torch (an optimizer step) and it is packed anew.
    Raises ValueError for a wrong dtype, shape, device or layout, naming the argument.
    """
    y_TN: Tensor = _linear(x_TK, weight_NK, compute)
    return y_TN


def linear_packed(x_TK: Tensor, panels: Tensor, columns: int) -> Tensor:
    """y [T, columns] from panels made by `panels_of`: no lookup, no autograd; for decoding loops."""
    y_TN = torch.empty((x_TK.shape[0], columns), dtype=torch.float32)
    _C.linear_forward(x_TK, panels, y_TN)
    return y_TN


def _forward(x_TK: Tensor, weight_NK: Tensor, compute: torch.dtype) -> Tensor:
    if weight_NK.dim() != 2:
        raise ValueError(f"weight: expected 2 dimensions, got {weight_NK.dim()}")
    if x_TK.dim() != 2 or x_TK.shape[1] != weight_NK.shape[1]:
        raise ValueError(f"x: expected shape [T, {weight_NK.shape[1]}] to match weight, got {list(x_TK.shape)}")
    return linear_packed(x_TK, panels_of(weight_NK, compute), weight_NK.shape[0])


def _input_grad_cpu(dy_TN: Tensor, weight_NK: Tensor, compute: torch.dtype) -> Tensor:
    return linear_packed(dy_TN, panels_of(weight_NK, compute, transposed=True), weight_NK.shape[1])


def _weight_grad_cpu(dy_TN: Tensor, x_TK: Tensor, compute: torch.dtype) -> Tensor:
    dweight_NK = torch.empty((dy_TN.shape[1], x_TK.shape[1]), dtype=torch.float32)
    _C.linear_weight_grad(dy_TN, x_TK, compute == torch.bfloat16, dweight_NK)
    return dweight_NK


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, torch.dtype], output: Tensor) -> None:
    x_TK, weight_NK, ctx.compute = inputs
    ctx.save_for_backward(x_TK, weight_NK)


def _backward(ctx: Any, dy_TN: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    x_TK, weight_NK = ctx.saved_tensors
    dy_TN = dy_TN.contiguous()
    dx_TK = _input_grad(dy_TN, weight_NK, ctx.compute) if ctx.needs_input_grad[0] else None
    dweight_NK = _weight_grad(dy_TN, x_TK, ctx.compute) if ctx.needs_input_grad[1] else None
    return dx_TK, dweight_NK, None


_linear = define(
    "linear(Tensor x, Tensor weight, ScalarType compute) -> Tensor",
    cpu=_forward,
    cuda=from_triton("linear", "forward"),
    fake=lambda x, weight, compute: x.new_empty((x.shape[0], weight.shape[0])),
    backward=_backward,
    setup_context=_save,
)
_input_grad = define(
    "linear_input_grad(Tensor dy, Tensor weight, ScalarType compute) -> Tensor",
    cpu=_input_grad_cpu,
    cuda=from_triton("linear", "input_gradient"),
    fake=lambda dy, weight, compute: dy.new_empty((dy.shape[0], weight.shape[1])),
)
_weight_grad = define(
    "linear_weight_grad(Tensor dy, Tensor x, ScalarType compute) -> Tensor",
    cpu=_weight_grad_cpu,
    cuda=from_triton("linear", "weight_gradient"),
    fake=lambda dy, x, compute: dy.new_empty((dy.shape[1], x.shape[1])),
)
