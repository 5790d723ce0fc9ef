"""`linear` and its gradients on CUDA (contract: kernels/linear.py), out of the product in kernels/triton/matmul.py.

compute = bfloat16 rounds both operands to nearest even before the product, as the CPU does; a weight's rounded copy is
kept until the weight changes (kernels/packing.py). x may be bfloat16 already, and y has x's dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.kernels.packing import rounded
from seedthink.kernels.triton.launch import FLOATS, check
from seedthink.kernels.triton.matmul import matmul


def forward(x_TK: Tensor, weight_NK: Tensor, compute: torch.dtype) -> Tensor:
    """y_TN = x weight^T."""
    check("weight", weight_NK, x_TK.device, FLOATS, -1, -1)
    if x_TK.dim() != 2 or x_TK.shape[1] != weight_NK.shape[1]:
        raise ValueError(f"x: expected shape [T, {weight_NK.shape[1]}] to match weight, got {list(x_TK.shape)}")
    check("x", x_TK, x_TK.device, FLOATS, -1, -1)
    y_TN = x_TK.new_empty((x_TK.shape[0], weight_NK.shape[0]))
    return matmul(operand(x_TK, compute), rounded(weight_NK, compute).T, y_TN)


def input_gradient(dy_TN: Tensor, weight_NK: Tensor, compute: torch.dtype) -> Tensor:
    """dx_TK = dy weight."""
    check("dy", dy_TN, weight_NK.device, FLOATS, -1, weight_NK.shape[0])
    dx_TK = dy_TN.new_empty((dy_TN.shape[0], weight_NK.shape[1]))
    return matmul(operand(dy_TN, compute), rounded(weight_NK, compute), dx_TK)


def weight_gradient(dy_TN: Tensor, x_TK: Tensor, compute: torch.dtype) -> Tensor:
    """dweight_NK = dy^T x, one chain over the tokens."""
    check("dy", dy_TN, x_TK.device, FLOATS, -1, -1)
    check("x", x_TK, x_TK.device, FLOATS, dy_TN.shape[0], -1)
    dweight_NK = dy_TN.new_empty((dy_TN.shape[1], x_TK.shape[1]))
    return matmul(operand(dy_TN, compute).T, operand(x_TK, compute), dweight_NK)


def operand(x: Tensor, compute: torch.dtype) -> Tensor:
    """x as the product takes it. ValueError for a compute dtype that there is no product of."""
    if compute not in FLOATS:
        raise ValueError(f"compute: {compute} is not one of torch.float32, torch.bfloat16")
    return x.to(compute)
