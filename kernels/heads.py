"""From one projection to attention's operands: queries and keys normalised per head and turned, values as they are.

    q = rope(rms_norm(q)), k = rope(rms_norm(k)), v, out of rows [q | k | v]

One pass over the projection instead of a copy, a norm and a rotation each; every element goes through the operations of
rms_norm and rope, so its bits are theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.norm import reference_rms_norm
from seedthink.kernels.registry import define
from seedthink.kernels.remade import Remake
from seedthink.kernels.rope import reference_rope

Heads = tuple[Tensor, Tensor, Tensor]


def reference_split_heads(
    qkv_TX: Tensor,
    q_norm_H: Tensor,
    k_norm_H: Tensor,
    eps: float,
    table: Tensor,
    positions_T: Tensor,
    heads: int,
    kv_heads: int,
) -> Heads:
    """The contract of `split_heads` in torch, in the dtype of its arguments."""
    rows, width = qkv_TX.shape[0], q_norm_H.shape[0]
    q, k, v = qkv_TX.view(rows, -1, width).split([heads, kv_heads, kv_heads], dim=1)
    turned = [
        reference_rope(reference_rms_norm(x, norm, eps), table, positions_T)
        for x, norm in ((q, q_norm_H), (k, k_norm_H))
    ]
    return turned[0], turned[1], v


def split_heads(
    qkv_TX: Tensor,
    q_norm_H: Tensor,
    k_norm_H: Tensor,
    eps: float,
    table: Tensor,
    positions_T: Tensor,
    heads: int,
    kv_heads: int,
) -> Heads:
    """(q_TNH, k_TnH, v_TnH) float32; differentiable in qkv and in both norms' weights.

    qkv float32 [T, (heads + 2 * kv_heads) * H], norms float32 [H], `table` as of `rope_table`, positions int32 [T].
    ValueError names the argument whose shape or dtype does not fit, or the position outside the table.
    """
    q, k, v, _ = _split(qkv_TX, q_norm_H, k_norm_H, eps, table, positions_T, heads, kv_heads)
    return q, k, v


def _forward(
    qkv: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float, table: Tensor, positions: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = _shapes(qkv, q_norm, k_norm, eps, table, positions, heads, kv_heads)
    _C.split_heads_forward(qkv, q_norm, k_norm, eps, table, positions, *made)
    return made


def _shapes(
    qkv: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float, table: Tensor, positions: Tensor, heads: int, kv_heads: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = qkv.shape[0], q_norm.shape[0]
    q = qkv.new_empty((rows, heads, width))
    k, v = (qkv.new_empty((rows, kv_heads, width)) for _ in range(2))
    return q, k, v, qkv.new_empty((rows, heads + kv_heads))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, q_norm, k_norm, _, table, positions, _, _ = inputs
    ctx.mark_non_differentiable(output[3])
    ctx.save_for_backward(qkv, q_norm, k_norm, output[3], table, positions)


def _backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    grads = _split_grad(dq.contiguous(), dk.contiguous(), dv.contiguous(), *ctx.saved_tensors)
    return *grads, None, None, None, None, None


def _gradients_cpu(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    rstd: Tensor,
    table: Tensor,
    positions: Tensor,
) -> Heads:
    grads = torch.empty_like(qkv), torch.empty_like(q_norm), torch.empty_like(k_norm)
    _C.split_heads_backward(dq, dk, dv, qkv, q_norm, k_norm, rstd, table, positions, *grads)
    return grads


_split = define(
    "split_heads(Tensor qkv, Tensor q_norm, Tensor k_norm, float eps, Tensor table, Tensor positions, int heads, "
    "int kv_heads) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_forward,
    fake=_shapes,
    backward=_backward,
    setup_context=_save,
    remake=lambda inputs, output: Remake(output[:3], split_heads, inputs),
)
_split_grad = define(
    "split_heads_backward(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor q_norm, Tensor k_norm, Tensor rstd, "
    "Tensor table, Tensor positions) -> (Tensor, Tensor, Tensor)",
    cpu=_gradients_cpu,
    fake=lambda dq, dk, dv, qkv, q_norm, k_norm, rstd, table, positions: (
        torch.empty_like(qkv),
        torch.empty_like(q_norm),
        torch.empty_like(k_norm),
    ),
)
