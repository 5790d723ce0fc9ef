"""Weights for samples that another policy made, and how far that policy is from the trainer's.

pi_theta/mu = u * rho with u = pi_theta/pi_prox (clipped by the loss) and rho = pi_prox/mu (weighed here, detached).
Rules as published: TIS (truncation; Yao et al. 2025), IcePop (0 outside a band; 2025), and their sequence forms. Where
proximal and behaviour policy are one, every rule gives exactly 1. Rejected tokens keep their place in the denominators.
Log-ratios are clipped to +-20 before exp.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from seedthink.telemetry.metrics import Max, Mean, Metric

if TYPE_CHECKING:
    from seedthink.config.algorithm import Correction

_LOG_LIMIT = 20.0


def ratio(logprob_R: Tensor, other_R: Tensor) -> Tensor:
    """exp(logprob - other), the log-ratio clipped to +-20; differentiable."""
    return torch.exp((logprob_R - other_R).clamp(-_LOG_LIMIT, _LOG_LIMIT))


def sequence_sums(value_R: Tensor, sequence_R: Tensor, sequences: int) -> Tensor:
    """Sum of each sequence's rows, [B]; sequence_R int64 says which sequence a row belongs to. Differentiable."""
    return value_R.new_zeros(sequences).index_add(0, sequence_R, value_R)


@torch.no_grad()
def correction_weight(
    proximal_R: Tensor,
    behaviour_R: Tensor,
    sequence_R: Tensor,
    sequences: int,
    rule: Correction,
    low: float,
    high: float,
) -> Tensor:
    """w per row, detached, from the log-probs of the proximal and the behaviour policy.

    With rho a row's ratio and P the product over its sequence: "tis" min(rho, high); "icepop" rho inside [low, high],
    else 0; "sequence_tis" min(P, high); "sequence_mis" P up to `high`, else 0; "sequence_mask" rho where the sequence's
    geometric mean of rho is inside [low, high], else 0.
    """
    if rule == "none":
        return torch.ones_like(behaviour_R)
    rho_R = ratio(proximal_R, behaviour_R)
    if rule == "tis":
        return rho_R.clamp(max=high)
    if rule == "icepop":
        return torch.where((rho_R >= low) & (rho_R <= high), rho_R, 0.0)
    log_B = sequence_sums(proximal_R - behaviour_R, sequence_R, sequences)
    if rule == "sequence_mask":
        count_B = sequence_sums(torch.ones_like(behaviour_R), sequence_R, sequences)
        mean_B = torch.exp(log_B / count_B.clamp(min=1.0))
        return torch.where(((mean_B >= low) & (mean_B <= high))[sequence_R], rho_R, 0.0)
    product_B = torch.exp(log_B.clamp(-_LOG_LIMIT, _LOG_LIMIT))
    if rule == "sequence_tis":
        return product_B.clamp(max=high)[sequence_R]
    assert rule == "sequence_mis", rule
    return torch.where(product_B <= high, product_B, 0.0)[sequence_R]


@torch.no_grad()
def mismatch_metrics(logprob_R: Tensor, behaviour_R: Tensor) -> dict[str, Metric]:
    """How far the trainer's log-probs of sampled tokens are from those of the policy that sampled them.

    mismatch/logp_gap_max and logp_gap_mean: |difference| in nats; mismatch/kl: KL(behaviour || trainer) by the k3
    estimator, in nats; mismatch/ratio_max: largest trainer/behaviour probability ratio. Empty for no rows. On the first
    update after a rollout, all of it is disagreement between generator and trainer; later the policy has moved too.
    """
    rows = logprob_R.shape[0]
    if not rows:
        return {}
    log_R = (logprob_R - behaviour_R).double()
    ratio_R = torch.exp(log_R.clamp(-_LOG_LIMIT, _LOG_LIMIT))
    gap_R = log_R.abs()
    sums = torch.stack([gap_R.max(), gap_R.sum(), (ratio_R - 1.0 - log_R).sum(), ratio_R.max()]).tolist()
    return {
        "mismatch/logp_gap_max": Max(sums[0]),
        "mismatch/logp_gap_mean": Mean(sums[1], rows),
        "mismatch/kl": Mean(sums[2], rows),
        "mismatch/ratio_max": Max(sums[3]),
    }
