"""RMSNorm: y = x * rsqrt(mean(x^2) + eps) * weight, one row per token (Zhang & Sennrich 2019, arXiv:1910.07467).

A row's sum of squares has one fixed order that depends on the width alone, so a row's bits do not depend on the batch.
`add_rms_norm` is the residual stream's step, sum and norm in one pass over memory, there and back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.registry import define, from_triton
from seedthink.kernels.remade import Remake


def reference_rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The formula in the dtype of its arguments; float64 makes it the yardstick of the tests."""
    return x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps) * weight_D


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise rows.

    x_TD float32 [T, D], weight_D float32 [D] -> float32 [T, D]; differentiable in both. ValueError names the
    argument whose shape or dtype does not fit.
    """
    y_TD: Tensor = _rms_norm(x_TD, weight_D, eps)[0]
    return y_TD


def add_rms_norm(x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(x + delta, its norm), with the bits of the two operations; differentiable in all three tensors.

    Shapes and errors as of `rms_norm`; delta_TD like x_TD.
    """
    sum_TD, y_TD, _ = _add_rms_norm(x_TD, delta_TD, weight_D, eps)
    return sum_TD, y_TD


def _normed_again(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor]:
    return (rms_norm(x_TD, weight_D, eps),)


def _forward(x_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y_TD, rstd_T = torch.empty_like(x_TD), x_TD.new_empty(x_TD.shape[:1])
    _C.rms_norm_forward(x_TD, weight_D, eps, y_TD, rstd_T)
    return y_TD, rstd_T


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(inputs[0], inputs[1], output[1])


def _backward(ctx: Any, dy_TD: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
    if dy_TD is None:
        return None, None, None
    return *_gradients(dy_TD.contiguous(), *ctx.saved_tensors), None


def _gradients_cpu(dy_TD: Tensor, x_TD: Tensor, weight_D: Tensor, rstd_T: Tensor) -> tuple[Tensor, Tensor]:
    dx_TD, dweight_D = torch.empty_like(x_TD), torch.empty_like(weight_D)
    _C.rms_norm_backward(dy_TD, x_TD, weight_D, rstd_T, dx_TD, dweight_D)
    return dx_TD, dweight_D


def _row_shape(x_TD: Tensor) -> Tensor:
    return x_TD.new_empty(x_TD.shape[:1], dtype=torch.float32)


_gradients = define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    cpu=_gradients_cpu,
    cuda=from_triton("rms_norm", "backward"),
    fake=lambda grad, x, weight, rstd: (torch.empty_like(x), torch.empty_like(weight)),
)
_rms_norm = define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    cpu=_forward,
    cuda=from_triton("rms_norm", "forward"),
    fake=lambda x, weight, eps: (torch.empty_like(x), _row_shape(x)),
    backward=_backward,
    setup_context=_save,
    remake=lambda inputs, output: Remake(output[:1], _normed_again, inputs),
)


def _add_forward(x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    sum_TD, y_TD, rstd_T = torch.empty_like(x_TD), torch.empty_like(x_TD), x_TD.new_empty(x_TD.shape[:1])
    _C.add_rms_norm_forward(x_TD, delta_TD, weight_D, eps, sum_TD, y_TD, rstd_T)
    return sum_TD, y_TD, rstd_T


def _add_save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, float], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[0], inputs[2], output[2])


def _add_backward(ctx: Any, dsum_TD: Tensor | None, dy_TD: Tensor | None, _: Tensor | None) -> tuple[Any, ...]:
    if dy_TD is None:
        return dsum_TD, dsum_TD, None, None
    if dsum_TD is None:
        dx_TD, dweight_D = _gradients(dy_TD.contiguous(), *ctx.saved_tensors)
    else:
        dx_TD, dweight_D = _add_gradients(dsum_TD.contiguous(), dy_TD.contiguous(), *ctx.saved_tensors)
    return dx_TD, dx_TD, dweight_D, None


def _add_gradients_cpu(
    dsum_TD: Tensor, dy_TD: Tensor, sum_TD: Tensor, weight_D: Tensor, rstd_T: Tensor
) -> tuple[Tensor, Tensor]:
    dx_TD, dweight_D = torch.empty_like(sum_TD), torch.empty_like(weight_D)
    _C.add_rms_norm_backward(dsum_TD, dy_TD, sum_TD, weight_D, rstd_T, dx_TD, dweight_D)
    return dx_TD, dweight_D


_add_gradients = define(
    "add_rms_norm_backward(Tensor dsum, Tensor dy, Tensor sum, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    cpu=_add_gradients_cpu,
    cuda=from_triton("rms_norm", "add_backward"),
    fake=lambda dsum, dy, sum, weight, rstd: (torch.empty_like(sum), torch.empty_like(weight)),
)
_add_rms_norm = define(
    "add_rms_norm(Tensor x, Tensor delta, Tensor weight, float eps) -> (Tensor, Tensor, Tensor)",
    cpu=_add_forward,
    cuda=from_triton("rms_norm", "add_forward"),
    fake=lambda x, delta, weight, eps: (
        torch.empty_like(x),
        torch.empty_like(x),
        x.new_empty(x.shape[:1], dtype=torch.float32),
    ),
    backward=_add_backward,
    setup_context=_add_save,
    remake=lambda inputs, output: Remake(output[1:2], _normed_again, (output[0], *inputs[2:])),
)
