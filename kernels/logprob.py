"""Log-probability and entropy of the next token from a hidden row, without the full [T, V] logits.

With x = logits / temperature, m = max x, s = sum e^(x-m), u = sum e^(x-m) (x-m): logp = (x_t - m) - log s and
entropy = log s - u/s. The vocabulary is taken 1024 columns at a time: their part of the weight is packed, multiplied
and reduced to m, s and u, which are joined in order; the backward makes the same logits again. One row function serves
training, scoring and the sampler, so the log-probability that a sample was drawn with and the one the trainer
recomputes are the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.linear import linear_packed
from seedthink.kernels.packing import PANEL, kept_panels, pack, pack_memory, panels_of
from seedthink.kernels.registry import define, from_triton

COLUMNS = 1024  # of the vocabulary at a time; the row function's block (csrc/logprob/row.h)


def reference_linear_logprob(
    h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Full logits, log_softmax and -sum p log p in the dtype of h."""
    return _reference_rows(h_TD @ weight_VD.T / temperature, targets_T)


def reference_row_logprob(logits_TV: Tensor, targets_T: Tensor, temperature_T: Tensor) -> tuple[Tensor, Tensor]:
    """log_softmax(logits / temperature) at the target and the entropy, in the dtype of the logits."""
    return _reference_rows(logits_TV / temperature_T.to(logits_TV.dtype)[:, None], targets_T)


def _reference_rows(x_TV: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(x_TV, dim=-1)
    p_log_p = torch.where(log_p == float("-inf"), torch.zeros_like(log_p), log_p.exp() * log_p)
    return log_p.gather(-1, targets_T[:, None]).squeeze(-1), -p_log_p.sum(-1)


def linear_logprob(
    h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, temperature: float, compute: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) of targets under softmax(h weight^T / temperature), both in nats.

    h_TD float32 [T, D], weight_VD float32 [V, D], targets_T int64 [T] in [0, V), temperature > 0, compute float32 or
    bfloat16 (dtype of the product's operands) -> two float32 [T]; differentiable in h and weight through both.
    The logits are the bits of `linear(h, weight, compute)`; T x 1024 are held at a time. ValueError on bad input.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature: {temperature} is not above 0")
    if weight_VD.dim() != 2 or not len(weight_VD):
        raise ValueError(f"weight: expected shape [V, D] with V above 0, got {list(weight_VD.shape)}")
    if h_TD.dim() != 2 or h_TD.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"h: expected rows as wide as weight {list(weight_VD.shape)}, got {list(h_TD.shape)}")
    logprob_T, entropy_T, _ = _linear_logprob(h_TD, weight_VD, targets_T, float(temperature), compute)
    return logprob_T, entropy_T


def row_logprob(logits_TV: Tensor, targets_T: Tensor, temperature_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) of targets from logits that are already there. No autograd.

    logits_TV float32 [T, V], targets_T int64 [T], temperature_T float32 [T] (> 0) -> two float32 [T] in nats.
    """
    if logits_TV.is_cuda:
        found: tuple[Tensor, Tensor] = _row_logprob_cuda(logits_TV, targets_T, temperature_T)
        return found
    state_T4 = torch.empty((len(temperature_T), 4), dtype=torch.float64)
    _C.logprob_columns(logits_TV, 0, logits_TV.shape[-1], targets_T, temperature_T, state_T4)
    return finish(state_T4, temperature_T)


def finish(state_T4: Tensor, temperature_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) from the state of all columns, float64 [T, 4]."""
    logprob_T, entropy_T = torch.empty_like(temperature_T), torch.empty_like(temperature_T)
    _C.logprob_finish(state_T4, temperature_T, logprob_T, entropy_T)
    return logprob_T, entropy_T


def panels_by_columns(weight_VD: Tensor, compute: torch.dtype, memory: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of the weight and their panels: from the pack that is kept, or, for a large weight without one, in `memory`.

    A pack of a whole large weight would be as large as the weight, and lives for one step while training. One memory
    for all parts, because an allocator that is asked for large blocks in turn keeps several of them.
    """
    count = weight_VD.shape[0]
    kept = panels_of(weight_VD, compute) if count <= COLUMNS else kept_panels(weight_VD, compute)
    for begin in range(0, count, COLUMNS):
        columns = slice(begin, min(begin + COLUMNS, count))
        if kept is None:
            yield columns, pack(weight_VD[columns], compute, memory=memory)
        else:
            yield columns, kept[:, columns.start // PANEL : -(-columns.stop // PANEL)]


def _forward(
    h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, temperature: float, compute: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    temperature_T = torch.full((h_TD.shape[0],), temperature)
    state_T4 = torch.empty((h_TD.shape[0], 4), dtype=torch.float64)
    memory = pack_memory(min(COLUMNS, weight_VD.shape[0]), weight_VD.shape[1], compute)
    for columns, panels in panels_by_columns(weight_VD, compute, memory):
        logits = linear_packed(h_TD, panels, columns.stop - columns.start)
        _C.logprob_columns(logits, columns.start, weight_VD.shape[0], targets_T, temperature_T, state_T4)
    return *finish(state_T4, temperature_T), state_T4


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    h_TD, weight_VD, targets_T, ctx.temperature, ctx.compute = inputs
    ctx.mark_non_differentiable(output[2])
    ctx.save_for_backward(h_TD, weight_VD, targets_T, output[2])


def _backward(ctx: Any, dlogprob_T: Tensor, dentropy_T: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    h_TD, weight_VD, targets_T, state_T4 = ctx.saved_tensors
    dlogprob_T, dentropy_T = dlogprob_T.contiguous(), dentropy_T.contiguous()
    dh_TD, dweight_VD = _gradients(
        dlogprob_T, dentropy_T, h_TD, weight_VD, targets_T, state_T4, ctx.temperature, ctx.compute
    )
    return dh_TD, dweight_VD, None, None, None


def _gradients_cpu(
    dlogprob_T: Tensor,
    dentropy_T: Tensor,
    h_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    state_T4: Tensor,
    temperature: float,
    compute: torch.dtype,
) -> tuple[Tensor, Tensor]:
    whole = 0, len(weight_VD)
    return part_gradients(dlogprob_T, dentropy_T, h_TD, weight_VD, targets_T, state_T4, temperature, compute, whole)


def part_gradients(
    dlogprob_T: Tensor,
    dentropy_T: Tensor,
    h_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    state_T4: Tensor,
    temperature: float,
    compute: torch.dtype,
    place: tuple[int, int],
) -> tuple[Tensor, Tensor]:
    """(dh_TD, dweight_VD) by those columns of the vocabulary whose rows are `weight_VD`.

    place: the number of the first one, a multiple of 1024, and how many columns there are in all. state_T4 is of all.
    The columns' logits are made again and turned into their gradient in place; dh is the sum over the blocks.
    """
    first, count = place
    temperature_T = torch.full((h_TD.shape[0],), temperature)
    dh_TD, dweight_VD = torch.zeros_like(h_TD), torch.empty_like(weight_VD)
    memory = pack_memory(min(COLUMNS, weight_VD.shape[0]), weight_VD.shape[1], compute)
    for columns, panels in panels_by_columns(weight_VD, compute, memory):
        part_VD = weight_VD[columns]
        logits = linear_packed(h_TD, panels, len(part_VD))
        _C.logprob_columns_backward(
            logits, first + columns.start, count, targets_T, temperature_T, state_T4, dlogprob_T, dentropy_T
        )
        _C.linear_weight_grad(logits, h_TD, compute == torch.bfloat16, dweight_VD[columns])
        back = pack(part_VD, compute, transposed=True, memory=memory)  # the panels are used up
        dh_TD += linear_packed(logits, back, h_TD.shape[1])
    return dh_TD, dweight_VD


def _row_shapes(
    h: Tensor, weight: Tensor, targets: Tensor, temperature: float, compute: torch.dtype
) -> tuple[Any, ...]:
    rows = [h.new_empty(h.shape[:1], dtype=torch.float32) for _ in range(2)]
    return *rows, h.new_empty((h.shape[0], 4), dtype=torch.float64)


_linear_logprob = define(
    "linear_logprob(Tensor h, Tensor weight, Tensor targets, float temperature, ScalarType compute) "
    "-> (Tensor, Tensor, Tensor)",
    cpu=_forward,
    cuda=from_triton("linear_logprob", "operator_forward"),
    fake=_row_shapes,
    backward=_backward,
    setup_context=_save,
)
_gradients = define(
    "linear_logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor h, Tensor weight, Tensor targets, Tensor state, "
    "float temperature, ScalarType compute) -> (Tensor, Tensor)",
    cpu=_gradients_cpu,
    cuda=from_triton("linear_logprob", "operator_backward"),
    fake=lambda dlogprob, dentropy, h, weight, targets, state, temperature, compute: (
        torch.empty_like(h),
        torch.empty_like(weight),
    ),
)
_row_logprob_cuda = from_triton("logprob", "row_logprob")
