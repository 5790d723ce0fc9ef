"""Rotary position embedding in the half-split layout of Hugging Face models (Su et al. 2021, arXiv:2104.09864).

Pair i of a head is (x[i], x[i + H/2]), turned by position * theta^(-2i/H). Interleaved pairs are another layout and
silently wrong for these checkpoints. The table holds float32 angles computed as transformers computes them.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.registry import define, from_triton
from seedthink.kernels.rope_scaling import RopeScaling


def rope_table(max_positions: int, head_dim: int, theta: float, scaling: RopeScaling | None = None) -> Tensor:
    """Cosines (first half of a row) and sines (second half) of every position: float32 [max_positions, head_dim].

    theta is the base of the frequencies (dimensionless), `scaling` stretches them (and YaRN's makes the table larger
    than 1). ValueError when head_dim is odd.
    """
    if head_dim % 2 or head_dim <= 0:
        raise ValueError(f"head_dim: must be positive and even, got {head_dim}")
    power = theta ** (torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim)
    frequency = 1.0 / power if scaling is None else scaling.frequencies(power, theta)
    angle = torch.arange(max_positions, dtype=torch.float32)[:, None] * frequency[None, :]
    amplitude = 1.0 if scaling is None else scaling.amplitude
    return torch.cat([angle.cos() * amplitude, angle.sin() * amplitude], dim=-1)


def reference_rope(x_TNH: Tensor, table: Tensor, positions_T: Tensor) -> Tensor:
    """The rotation in the dtype of x."""
    cos, sin = table[positions_T.long()].to(x_TNH.dtype)[:, None, :].chunk(2, dim=-1)
    low, high = x_TNH.chunk(2, dim=-1)
    return torch.cat([low * cos - high * sin, high * cos + low * sin], dim=-1)


def rope(x_TNH: Tensor, table: Tensor, positions_T: Tensor) -> Tensor:
    """Turn every head of token t by the angles of positions_T[t].

    x_TNH float32 [T, N, H], table from `rope_table`, positions_T int32 [T] -> float32 [T, N, H]; differentiable in x.
    ValueError when a position is outside the table or a shape or dtype is wrong.
    """
    y_TNH: Tensor = _rope(x_TNH, table, positions_T, False)
    return y_TNH


def _turn(x_TNH: Tensor, table: Tensor, positions_T: Tensor, back: bool) -> Tensor:
    y_TNH = torch.empty_like(x_TNH)
    _C.rope_turn(x_TNH, table, positions_T, back, y_TNH)
    return y_TNH


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, bool], output: Tensor) -> None:
    _, table, positions_T, ctx.back = inputs
    ctx.save_for_backward(table, positions_T)


def _backward(ctx: Any, dy_TNH: Tensor) -> tuple[Tensor, None, None, None]:
    table, positions_T = ctx.saved_tensors
    return _rope(dy_TNH.contiguous(), table, positions_T, not ctx.back), None, None, None


_rope = define(
    "rope(Tensor x, Tensor table, Tensor positions, bool back) -> Tensor",
    cpu=_turn,
    cuda=from_triton("rope", "turn"),
    fake=lambda x, table, positions, back: torch.empty_like(x),
    backward=_backward,
    setup_context=_save,
)
