"""`linear_logprob` and its gradient on CUDA, a chunk of rows at a time (contract: kernels/logprob.py).

The logits of a chunk are made by `linear`, read once for their statistics and dropped, so the full [T, V] never exists;
the gradient makes them again, turns them into their gradient in place and multiplies on. Rows do not see each other,
and a chunk continues the weight gradient's chain over tokens where the one before it ended.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.kernels.packing import rounded
from seedthink.kernels.triton import logprob
from seedthink.kernels.triton.launch import FLOATS, ceil_div, check
from seedthink.kernels.triton.linear import operand
from seedthink.kernels.triton.matmul import matmul

LEAST_ROWS = 256  # of a chunk: fewer would leave the product without work
STEP = 64  # rows of a chunk are a multiple of it, as the product's steps are
CHUNKS = 16  # at most, so that float32 logits of a chunk are 1/8 of the full ones in bfloat16


def forward(
    h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, temperature: float, compute: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob_T, entropy_T), float32, and nothing where the CPU keeps a row's statistics: they are made again."""
    _check(h_TD, weight_VD, targets_T)
    h, weight = operand(h_TD, compute), rounded(weight_VD, compute)
    temperature_T = _temperatures(h_TD, temperature)
    logprob_T, entropy_T = torch.empty_like(temperature_T), torch.empty_like(temperature_T)
    for rows in _chunks(h_TD.shape[0]):
        logits = _logits(h[rows], weight)
        logprob_T[rows], entropy_T[rows] = logprob.row_logprob(logits, targets_T[rows], temperature_T[rows])
    return logprob_T, entropy_T, h_TD.new_empty((h_TD.shape[0], 4), dtype=torch.float64)


def backward(
    dlogprob_T: Tensor,
    dentropy_T: Tensor,
    h_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    state_T4: Tensor,
    temperature: float,
    compute: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(dh_TD, dweight_VD); state_T4 is not read."""
    _check(h_TD, weight_VD, targets_T)
    h, weight = operand(h_TD, compute), rounded(weight_VD, compute)
    temperature_T = _temperatures(h_TD, temperature)
    dh_TD = torch.empty_like(h_TD)
    dweight_VD = weight_VD.new_zeros(weight_VD.shape, dtype=torch.float32)
    for rows in _chunks(h_TD.shape[0]):
        logits = _logits(h[rows], weight)
        given = targets_T[rows], temperature_T[rows], dlogprob_T[rows], dentropy_T[rows]
        dlogits = operand(logprob.row_logprob_backward_(logits, *given), compute)
        matmul(dlogits, weight, dh_TD[rows])
        matmul(dlogits.T, h[rows], dweight_VD, add=True)
    return dh_TD, dweight_VD.to(weight_VD.dtype)


def _check(h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> None:
    check("h", h_TD, h_TD.device, FLOATS, -1, -1)
    check("weight", weight_VD, h_TD.device, FLOATS, -1, h_TD.shape[1])
    check("targets", targets_T, h_TD.device, (torch.int64,), h_TD.shape[0])


def _temperatures(h_TD: Tensor, temperature: float) -> Tensor:
    return torch.full((h_TD.shape[0],), temperature, dtype=torch.float32, device=h_TD.device)


def _logits(h: Tensor, weight: Tensor) -> Tensor:
    logits = torch.empty((h.shape[0], weight.shape[0]), dtype=torch.float32, device=h.device)
    return matmul(h, weight.T, logits)


def _chunks(tokens: int) -> list[slice]:
    rows = max(LEAST_ROWS, STEP * ceil_div(tokens, CHUNKS * STEP))
    return [slice(begin, begin + rows) for begin in range(0, tokens, rows)]
