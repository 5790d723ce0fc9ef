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
) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T), float32."""
    logprob_T, entropy_T, _ = forward_with_stats(h_TD, weight_VD, targets_T, temperature, compute)
    return logprob_T, entropy_T


def forward_with_stats(
    h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, temperature: float, compute: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob_T, entropy_T, stats_T3): the last saves `backward` a pass over the logits."""
    _check(h_TD, weight_VD, targets_T)
    h, weight = operand(h_TD, compute), rounded(weight_VD, compute)
    temperature_T = _temperatures(h_TD, temperature)
    logprob_T, entropy_T = torch.empty_like(temperature_T), torch.empty_like(temperature_T)
    stats_T3 = temperature_T.new_empty((h_TD.shape[0], 3))
    for rows in _chunks(h_TD.shape[0]):
        logits = _logits(h[rows], weight)
        stats_T3[rows] = logprob.row_stats(logits, temperature_T[rows])
        found = logprob.pick(logits, targets_T[rows], temperature_T[rows], stats_T3[rows])
        logprob_T[rows], entropy_T[rows] = found
    return logprob_T, entropy_T, stats_T3


def backward(
    dlogprob_T: Tensor,
    dentropy_T: Tensor,
    h_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    temperature: float,
    compute: torch.dtype,
    stats_T3: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(dh_TD, dweight_VD)."""
    _check(h_TD, weight_VD, targets_T)
    h, weight = operand(h_TD, compute), rounded(weight_VD, compute)
    temperature_T = _temperatures(h_TD, temperature)
    dh_TD = torch.empty_like(h_TD)
    dweight_VD = weight_VD.new_zeros(weight_VD.shape, dtype=torch.float32)
    for rows in _chunks(h_TD.shape[0]):
        logits = _logits(h[rows], weight)
        stats = None if stats_T3 is None else stats_T3[rows]
        given = targets_T[rows], temperature_T[rows], dlogprob_T[rows], dentropy_T[rows], stats
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


# The operator of kernels/logprob.py where it hands a state [T, 4] in float64 from its forward to its gradient.
def operator_forward(
    h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, temperature: float, compute: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob_T, entropy_T, state_T4): the statistics in three of its columns."""
    logprob_T, entropy_T, stats_T3 = forward_with_stats(h_TD, weight_VD, targets_T, temperature, compute)
    return logprob_T, entropy_T, torch.nn.functional.pad(stats_T3.double(), (0, 1))


def operator_backward(
    dlogprob_T: Tensor,
    dentropy_T: Tensor,
    h_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    state_T4: Tensor,
    temperature: float,
    compute: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """(dh_TD, dweight_VD) from the state of `operator_forward`."""
    stats_T3 = state_T4[:, :3].float().contiguous()
    return backward(dlogprob_T, dentropy_T, h_TD, weight_VD, targets_T, temperature, compute, stats_T3)
