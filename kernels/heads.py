"""From one projection to attention's operands: queries and keys normalised per head and turned, values as they are.

    q = rope(rms_norm(q)), k = rope(rms_norm(k)), v, out of rows [q | k | v] of qkv + bias

Models without norms or bias leave them out. One pass over the projection instead of a copy, a sum, a norm and a
rotation each; every element goes through the operations of rms_norm and rope, so its bits are theirs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.norm import reference_rms_norm
from seedthink.kernels.registry import define
from seedthink.kernels.rope import reference_rope

Heads = tuple[Tensor, Tensor, Tensor]
Gradients = tuple[Tensor, Tensor, Tensor, Tensor]


def reference_split_heads(
    qkv_TX: Tensor,
    q_norm_H: Tensor | None,
    k_norm_H: Tensor | None,
    eps: float,
    table: Tensor,
    positions_T: Tensor,
    heads: int,
    kv_heads: int,
    bias_X: Tensor | None = None,
) -> Heads:
    """The contract of `split_heads` in torch, in the dtype of its arguments."""
    biased_TX = qkv_TX if bias_X is None else qkv_TX + bias_X
    split = biased_TX.view(qkv_TX.shape[0], -1, table.shape[1]).split([heads, kv_heads, kv_heads], dim=1)
    normed = [
        x if norm is None else reference_rms_norm(x, norm, eps)
        for x, norm in zip(split[:2], (q_norm_H, k_norm_H), strict=True)
    ]
    q_TNH, k_TnH = (reference_rope(x, table, positions_T) for x in normed)
    return q_TNH, k_TnH, split[2]


def split_heads(
    qkv_TX: Tensor,
    q_norm_H: Tensor | None,
    k_norm_H: Tensor | None,
    eps: float,
    table: Tensor,
    positions_T: Tensor,
    heads: int,
    kv_heads: int,
    bias_X: Tensor | None = None,
) -> Heads:
    """(q_TNH, k_TnH, v_TnH) float32; differentiable in qkv, bias and both norms' weights.

    qkv float32 [T, (heads + 2 * kv_heads) * H], bias float32 of its width or None, norms float32 [H] or both None,
    `table` as of `rope_table` for heads of width H, positions int32 [T].
    ValueError names the argument whose shape or dtype does not fit, or the position outside the table.
    """
    q, k, v, _ = _split(qkv_TX, bias_X, q_norm_H, k_norm_H, eps, table, positions_T, heads, kv_heads)
    return q, k, v


def _forward(
    qkv: Tensor,
    bias: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    table: Tensor,
    positions: Tensor,
    heads: int,
    kv_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    made = _shapes(qkv, bias, q_norm, k_norm, eps, table, positions, heads, kv_heads)
    _C.split_heads_forward(qkv, bias, q_norm, k_norm, eps, table, positions, *made)
    return made


def _shapes(
    qkv: Tensor,
    bias: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    eps: float,
    table: Tensor,
    positions: Tensor,
    heads: int,
    kv_heads: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows, width = qkv.shape[0], table.shape[1]
    q = qkv.new_empty((rows, heads, width))
    k, v = (qkv.new_empty((rows, kv_heads, width)) for _ in range(2))
    return q, k, v, qkv.new_empty((rows, 0 if q_norm is None else heads + kv_heads))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, bias, q_norm, k_norm, _, table, positions, _, _ = inputs
    ctx.mark_non_differentiable(output[3])
    ctx.save_for_backward(qkv, bias, q_norm, k_norm, output[3], table, positions)


def _backward(ctx: Any, dq: Tensor, dk: Tensor, dv: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    grads = _split_grad(dq.contiguous(), dk.contiguous(), dv.contiguous(), *saved)
    given = (None if x is None else grad for x, grad in zip(saved[:4], grads, strict=True))
    return *given, None, None, None, None, None


def _gradient_shapes(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    rstd: Tensor,
    table: Tensor,
    positions: Tensor,
) -> Gradients:
    # An operator's outputs are tensors: what is absent has an empty gradient, which `_backward` leaves out.
    weights = (qkv.new_empty(0) if x is None else torch.empty_like(x) for x in (bias, q_norm, k_norm))
    dbias, dq_norm, dk_norm = weights
    return torch.empty_like(qkv), dbias, dq_norm, dk_norm


def _gradients_cpu(
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    q_norm: Tensor | None,
    k_norm: Tensor | None,
    rstd: Tensor,
    table: Tensor,
    positions: Tensor,
) -> Gradients:
    inputs = (dq, dk, dv, qkv, bias, q_norm, k_norm, rstd, table, positions)
    grads = _gradient_shapes(*inputs)
    _C.split_heads_backward(*inputs, *grads)
    return grads


_split = define(
    "split_heads(Tensor qkv, Tensor? bias, Tensor? q_norm, Tensor? k_norm, float eps, Tensor table, Tensor positions, "
    "int heads, int kv_heads) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_forward,
    fake=_shapes,
    backward=_backward,
    setup_context=_save,
)
_split_grad = define(
    "split_heads_backward(Tensor dq, Tensor dk, Tensor dv, Tensor qkv, Tensor? bias, Tensor? q_norm, Tensor? k_norm, "
    "Tensor rstd, Tensor table, Tensor positions) -> (Tensor, Tensor, Tensor, Tensor)",
    cpu=_gradients_cpu,
    fake=_gradient_shapes,
)
