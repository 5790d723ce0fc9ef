"""Log-probability and entropy of the next token from a hidden row, without the full [T, V] logits.

With x = logits / temperature, m = max x, s = sum e^(x-m), u = sum e^(x-m) (x-m): logp = (x_t - m) - log s and
entropy = log s - u/s. One row function serves training, scoring and the sampler, so the log-probability that a sample
was drawn with and the one the trainer recomputes are the same bits.
"""

from __future__ import annotations

import torch
from torch import Tensor


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
    if compute == torch.bfloat16:
        h_TD = h_TD + (h_TD.bfloat16().float() - h_TD).detach()
        weight_VD = weight_VD + (weight_VD.bfloat16().float() - weight_VD).detach()
    return reference_linear_logprob(h_TD, weight_VD, targets_T, temperature)


def row_logprob(logits_TV: Tensor, targets_T: Tensor, temperature_T: Tensor) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) of targets from logits that are already there. No autograd.

    logits_TV float32 [T, V], targets_T int64 [T], temperature_T float32 [T] (> 0) -> two float32 [T] in nats.
    """
    return reference_row_logprob(logits_TV, targets_T, temperature_T)
