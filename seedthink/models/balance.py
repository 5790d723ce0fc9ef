"""The load-balancing auxiliary loss of a mixture of experts (Switch Transformer, arXiv 2101.03961, equations 4 to 6).

    loss = E * sum_e f_e * P_e,   P_e = sum_t mask_t * softmax(logits_t)_e / tokens

f_e is the fraction of assignments that went to expert e, a constant to the gradient; a perfectly even router scores 1.
With f and `tokens` taken over the whole mini-batch the loss is linear in the tokens, so cutting the mini-batch into
micro-batches changes neither its sum nor its gradient. Megatron and transformers take both per micro-batch.
"""

from __future__ import annotations

from torch import Tensor


def balance_loss(logits_TE: Tensor, fraction_E: Tensor, tokens: float, mask_T: Tensor | None = None) -> Tensor:
    """One layer's share of the loss, a float32 scalar with gradient to `logits_TE`.

    fraction_E: float32, sums to 1. tokens: the number of tokens (mask 1) in the mini-batch. mask_T: 1 counts, 0 not.
    """
    probability_TE = logits_TE.softmax(-1)
    if mask_T is not None:
        probability_TE = probability_TE * mask_T[:, None]
    return (probability_TE.sum(0) * fraction_E).sum() * (logits_TE.shape[1] / tokens)


def expert_fraction(counts_E: Tensor) -> Tensor:
    """Tokens per expert (int) -> float32 shares that sum to 1; all zero where nothing was routed."""
    return counts_E.float() / counts_E.sum().clamp(min=1)
