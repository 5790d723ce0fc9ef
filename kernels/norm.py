"""RMSNorm: y = x * rsqrt(mean(x^2) + eps) * weight, one row per token (Zhang & Sennrich 2019, arXiv:1910.07467).

A row's sum of squares has one fixed order that depends on the width alone, so a row's bits do not depend on the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.registry import define


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


_gradients = define(
    "rms_norm_backward(Tensor grad, Tensor x, Tensor weight, Tensor rstd) -> (Tensor, Tensor)",
    cpu=_gradients_cpu,
    fake=lambda grad, x, weight, rstd: (torch.empty_like(x), torch.empty_like(weight)),
)
_rms_norm = define(
    "rms_norm(Tensor x, Tensor weight, float eps) -> (Tensor, Tensor)",
    cpu=_forward,
    fake=lambda x, weight, eps: (torch.empty_like(x), x.new_empty(x.shape[:1])),
    backward=_backward,
    setup_context=_save,
)
