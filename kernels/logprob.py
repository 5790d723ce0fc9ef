"""Log-probability and entropy of the next token from a hidden row, without the full [T, V] logits.

With x = logits / temperature, m = max x, s = sum e^(x-m), u = sum e^(x-m) (x-m): logp = (x_t - m) - log s and
entropy = log s - u/s. One row function serves training, scoring and the sampler, so the log-probability that a sample
was drawn with and the one the trainer recomputes are the same bits.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.linear import linear_packed
from seedthink.kernels.packing import panels_of
from seedthink.kernels.registry import define, from_triton

CHUNK_CELLS = 1 << 22  # logits held at a time (16 MiB), or more where T allows it: see `_chunks`


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
    The logits are the bits of `linear(h, weight, compute)`, held a chunk of rows at a time. ValueError on bad input.
    """
    if not temperature > 0.0:
        raise ValueError(f"temperature: {temperature} is not above 0")
    if h_TD.dim() != 2 or weight_VD.dim() != 2 or h_TD.shape[1] != weight_VD.shape[1]:
        raise ValueError(f"h: expected rows as wide as weight {list(weight_VD.shape)}, got {list(h_TD.shape)}")
    logprob_T, entropy_T = _linear_logprob(h_TD, weight_VD, targets_T, float(temperature), compute)
    return logprob_T, entropy_T


def row_logprob(logits_TV: Tensor, targets_T: Tensor, temperature_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) of targets from logits that are already there. No autograd.

    logits_TV float32 [T, V], targets_T int64 [T], temperature_T float32 [T] (> 0) -> two float32 [T] in nats.
    """
    if logits_TV.is_cuda:
        found: tuple[Tensor, Tensor] = _row_logprob_cuda(logits_TV, targets_T, temperature_T)
        return found
    logprob_T, entropy_T = torch.empty_like(temperature_T), torch.empty_like(temperature_T)
    _C.row_logprob_forward(logits_TV, targets_T, temperature_T, logprob_T, entropy_T)
    return logprob_T, entropy_T


def _chunks(h_TD: Tensor, weight_VD: Tensor) -> list[slice]:
    """Row blocks whose logits stay in cache or, for a vocabulary too wide for that, below 1/16 of the full [T, V]."""
    rows = max(32, min(1024, h_TD.shape[0] // 16), CHUNK_CELLS // max(1, weight_VD.shape[0]))
    return [slice(begin, begin + rows) for begin in range(0, h_TD.shape[0], rows)]


def _forward(
    h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, temperature: float, compute: torch.dtype
) -> tuple[Tensor, Tensor]:
    panels, count = panels_of(weight_VD, compute), weight_VD.shape[0]
    temperature_T = torch.full((h_TD.shape[0],), temperature)
    logprob_T, entropy_T = torch.empty_like(temperature_T), torch.empty_like(temperature_T)
    for rows in _chunks(h_TD, weight_VD):
        logits = linear_packed(h_TD[rows], panels, count)
        _C.row_logprob_forward(logits, targets_T[rows], temperature_T[rows], logprob_T[rows], entropy_T[rows])
    return logprob_T, entropy_T


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    h_TD, weight_VD, targets_T, ctx.temperature, ctx.compute = inputs
    ctx.save_for_backward(h_TD, weight_VD, targets_T)


def _backward(ctx: Any, dlogprob_T: Tensor, dentropy_T: Tensor) -> tuple[Tensor | None, ...]:
    h_TD, weight_VD, targets_T = ctx.saved_tensors
    dlogprob_T, dentropy_T = dlogprob_T.contiguous(), dentropy_T.contiguous()
    dh_TD, dweight_VD = _gradients(dlogprob_T, dentropy_T, h_TD, weight_VD, targets_T, ctx.temperature, ctx.compute)
    return dh_TD, dweight_VD, None, None, None


def _gradients_cpu(
    dlogprob_T: Tensor,
    dentropy_T: Tensor,
    h_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    temperature: float,
    compute: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """The logits are made again chunk by chunk and turned into their gradient in place."""
    panels, transposed = panels_of(weight_VD, compute), panels_of(weight_VD, compute, transposed=True)
    temperature_T = torch.full((h_TD.shape[0],), temperature)
    dh_TD, half = torch.empty_like(h_TD), compute == torch.bfloat16
    dweight_VD, part_VD = torch.empty_like(weight_VD), None
    for rows in _chunks(h_TD, weight_VD):
        logits = linear_packed(h_TD[rows], panels, weight_VD.shape[0])
        _C.row_logprob_backward(logits, targets_T[rows], temperature_T[rows], dlogprob_T[rows], dentropy_T[rows])
        _C.linear_forward(logits, transposed, dh_TD[rows])
        if rows.start == 0:
            _C.linear_weight_grad(logits, h_TD[rows], half, dweight_VD)
            continue
        part_VD = torch.empty_like(weight_VD) if part_VD is None else part_VD
        _C.linear_weight_grad(logits, h_TD[rows], half, part_VD)
        dweight_VD += part_VD
    return dh_TD, dweight_VD if h_TD.shape[0] else dweight_VD.zero_()


def _row_shapes(
    h: Tensor, weight: Tensor, targets: Tensor, temperature: float, compute: torch.dtype
) -> tuple[Any, ...]:
    return tuple(h.new_empty(h.shape[:1], dtype=torch.float32) for _ in range(2))


_linear_logprob = define(
    "linear_logprob(Tensor h, Tensor weight, Tensor targets, float temperature, ScalarType compute) "
    "-> (Tensor, Tensor)",
    cpu=_forward,
    cuda=from_triton("linear_logprob", "forward"),
    fake=_row_shapes,
    backward=_backward,
    setup_context=_save,
)
_gradients = define(
    "linear_logprob_backward(Tensor dlogprob, Tensor dentropy, Tensor h, Tensor weight, Tensor targets, "
    "float temperature, ScalarType compute) -> (Tensor, Tensor)",
    cpu=_gradients_cpu,
    cuda=from_triton("linear_logprob", "backward"),
    fake=lambda dlogprob, dentropy, h, weight, targets, temperature, compute: (
        torch.empty_like(h),
        torch.empty_like(weight),
    ),
)
_row_logprob_cuda = from_triton("logprob", "row_logprob")
