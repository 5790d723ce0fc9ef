"""SwiGLU: y = silu(gate) * up with gate and up side by side in one row (Shazeer 2020, arXiv:2002.05202).

silu(g) = g / (1 + exp(-g)). Elementwise, so a row's bits depend on the row alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.registry import define, from_triton
from seedthink.kernels.remade import Remake


def reference_swiglu(gate_up_T_2I: Tensor) -> Tensor:
    """The formula in the dtype of its argument."""
    gate, up = gate_up_T_2I.chunk(2, dim=-1)
    return gate * torch.sigmoid(gate) * up


def swiglu(gate_up_T_2I: Tensor) -> Tensor:
    """silu of the first half of each row times the second half.

    gate_up_T_2I float32 [T, 2I] -> float32 [T, I]; differentiable. ValueError on an odd width or another dtype.
    """
    y_TI: Tensor = _swiglu(gate_up_T_2I)
    return y_TI


def _again(gate_up_T_2I: Tensor) -> tuple[Tensor]:
    return (swiglu(gate_up_T_2I),)


def _forward(gate_up_T_2I: Tensor) -> Tensor:
    if gate_up_T_2I.dim() != 2 or gate_up_T_2I.shape[1] % 2:
        raise ValueError(f"gate_up: expected [T, 2I], got {list(gate_up_T_2I.shape)}")
    y_TI = gate_up_T_2I.new_empty((gate_up_T_2I.shape[0], gate_up_T_2I.shape[1] // 2))
    _C.swiglu_forward(gate_up_T_2I, y_TI)
    return y_TI


def _gradient_cpu(dy_TI: Tensor, gate_up_T_2I: Tensor) -> Tensor:
    dgate_up = torch.empty_like(gate_up_T_2I)
    _C.swiglu_backward(dy_TI, gate_up_T_2I, dgate_up)
    return dgate_up


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


_gradient = define(
    "swiglu_backward(Tensor grad, Tensor gate_up) -> Tensor",
    cpu=_gradient_cpu,
    cuda=from_triton("swiglu", "backward"),
    fake=lambda grad, gate_up: torch.empty_like(gate_up),
)
_swiglu = define(
    "swiglu(Tensor gate_up) -> Tensor",
    cpu=_forward,
    cuda=from_triton("swiglu", "forward"),
    fake=lambda gate_up: gate_up.new_empty((gate_up.shape[0], gate_up.shape[1] // 2)),
    backward=lambda ctx, dy: _gradient(dy.contiguous(), *ctx.saved_tensors),
    setup_context=_save,
    remake=lambda inputs, output: Remake((output,), _again, inputs),
)
