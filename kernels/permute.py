"""Rows of tokens to their experts and back: copies in expert order, and the weighted sum over a token's rows.

permute: row r of the result is token token_R[r]. unpermute: y_t = sum over k, in expert order and in fp32, of
weight_tk * row; rounded once to the dtype of the rows. Both are gathers by the inverse map, so nothing is added into
memory that another thread writes, and a token's bits depend on its own rows alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels import cuda
from seedthink.kernels.registry import define
from seedthink.kernels.route import Routing


def reference_permute(x_TD: Tensor, routing: Routing) -> Tensor:
    """The contract of `permute` in torch."""
    return x_TD[routing.token_R.long()]


def reference_unpermute(y_RD: Tensor, routing: Routing) -> Tensor:
    """The contract of `unpermute` in torch, in the dtype of the weights (float64 for tests)."""
    rows_TKD = y_RD[routing.row_TK.long()].to(routing.weight_TK.dtype)
    return (routing.weight_TK[:, :, None] * rows_TKD).sum(1)


def permute(x_TD: Tensor, routing: Routing) -> Tensor:
    """x_RD, the tokens' rows expert by expert; differentiable in x (a sum over the copies, in expert order and fp32).

    x_TD: float32 or bfloat16 [T, D]. Raises ValueError for another dtype, layout or device and for a routing that does
    not fit, naming the argument.
    """
    x_RD: Tensor = _permute(x_TD, routing.row_TK, routing.token_R)
    return x_RD


def unpermute(y_RD: Tensor, routing: Routing) -> Tensor:
    """y_TD, each token's rows summed under routing.weight_TK in fp32; differentiable in y and the weights.

    y_RD: float32 or bfloat16 [R, D]; the result has its dtype. Raises ValueError as `permute` does.
    """
    y_TD: Tensor = _unpermute(y_RD, routing.weight_TK, routing.row_TK, routing.token_R)
    return y_TD


def _sizes(row_TK: Tensor, rows: Tensor, name: str) -> tuple[int, int]:
    """(T, K) of a routing for `rows`, whose last dimension is D."""
    if row_TK.dim() != 2:
        raise ValueError(f"routing.row_TK: expected 2 dimensions, got {row_TK.dim()}")
    if rows.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got {rows.dim()}")
    return row_TK.shape[0], row_TK.shape[1]


def _permute_forward(x_TD: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    tokens, k = _sizes(row_TK, x_TD, "x")
    x_RD = x_TD.new_empty((tokens * k, x_TD.shape[1]))
    _C.permute_forward(x_TD, row_TK, token_R, x_RD)
    return x_RD


def _permute_grad_cpu(dx_RD: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    dx_TD = dx_RD.new_empty((row_TK.shape[0], dx_RD.shape[1]))
    _C.permute_backward(dx_RD, row_TK, token_R, dx_TD)
    return dx_TD


def _unpermute_forward(y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, token_R: Tensor) -> Tensor:
    tokens, _ = _sizes(row_TK, y_RD, "y")
    y_TD = y_RD.new_empty((tokens, y_RD.shape[1]))
    _C.unpermute_forward(y_RD, weight_TK, row_TK, token_R, y_TD)
    return y_TD


def _unpermute_grad_cpu(
    dy_TD: Tensor, y_RD: Tensor, weight_TK: Tensor, row_TK: Tensor, token_R: Tensor
) -> tuple[Tensor, Tensor]:
    dy_RD, dweight_TK = torch.empty_like(y_RD), torch.empty_like(weight_TK)
    _C.unpermute_backward(dy_TD, y_RD, weight_TK, row_TK, token_R, dy_RD, dweight_TK)
    return dy_RD, dweight_TK


def _save_permute(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[1:])


def _save_unpermute(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _permute_backward(ctx: Any, dx_RD: Tensor) -> tuple[Tensor | None, ...]:
    return _permute_grad(dx_RD.contiguous(), *ctx.saved_tensors), None, None


def _unpermute_backward(ctx: Any, dy_TD: Tensor) -> tuple[Tensor | None, ...]:
    return *_unpermute_grad(dy_TD.contiguous(), *ctx.saved_tensors), None, None


_permute = define(
    "permute(Tensor x, Tensor row, Tensor token) -> Tensor",
    cpu=_permute_forward,
    cuda=cuda.permute,
    fake=lambda x, row, token: x.new_empty((row.numel(), x.shape[1])),
    backward=_permute_backward,
    setup_context=_save_permute,
)
_permute_grad = define(
    "permute_backward(Tensor grad, Tensor row, Tensor token) -> Tensor",
    cpu=_permute_grad_cpu,
    cuda=cuda.permute_backward,
    fake=lambda grad, row, token: grad.new_empty((row.shape[0], grad.shape[1])),
)
_unpermute = define(
    "unpermute(Tensor y, Tensor weight, Tensor row, Tensor token) -> Tensor",
    cpu=_unpermute_forward,
    cuda=cuda.unpermute,
    fake=lambda y, weight, row, token: y.new_empty((row.shape[0], y.shape[1])),
    backward=_unpermute_backward,
    setup_context=_save_unpermute,
)
_unpermute_grad = define(
    "unpermute_backward(Tensor grad, Tensor y, Tensor weight, Tensor row, Tensor token) -> (Tensor, Tensor)",
    cpu=_unpermute_grad_cpu,
    cuda=cuda.unpermute_backward,
    fake=lambda grad, y, weight, row, token: (torch.empty_like(y), torch.empty_like(weight)),
)
