"""Losses as pure functions of per-token outputs and a micro-batch; none of them sees logits.

Each returns (loss, metrics), the loss already divided by the *global* counts that the batch carries: summed over any
split of a mini-batch into micro-batches, packs and ranks, losses and gradients equal those of the whole. Rows R are the
predicted tokens (mask 1); everything else in a [T] array is never read. With u = pi_theta/pi_prox, w = the correction:
clip -w min(u A, clip(u) A); GSPO the same with the sequence's geometric mean of u (arXiv 2507.18071); CISPO
-w sg[clip(u)] A log pi (2506.13585); REINFORCE -w A log pi.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from seedthink.rl.correction import correction_weight, mismatch_metrics, ratio, sequence_sums
from seedthink.telemetry.metrics import Max, Mean, Metric, Sum

if TYPE_CHECKING:
    from seedthink.config.algorithm import Correction, KlEstimator

Result = tuple[Tensor, dict[str, Metric]]


class LossBatch(Protocol):
    """The tensors of `types.Batch` for one micro-batch; an array that the algorithm did not ask for is empty."""

    cu_seqlens_B1: Tensor
    predicted_R: Tensor
    logprob_T: Tensor
    proximal_T: Tensor
    reference_T: Tensor
    advantage_T: Tensor
    return_T: Tensor
    value_T: Tensor
    positive_T: Tensor
    sequence_weight_B: Tensor
    global_tokens: float
    global_sequences: float
    global_positive_tokens: float


@dataclass(frozen=True, slots=True)
class Rows:
    """A micro-batch's predicted tokens as the policy losses read them, in the dtype of the log-probs.

    `sequence_R` int64 is each row's sequence, `sequences` their number.
    """

    logprob_R: Tensor
    behaviour_R: Tensor
    proximal_R: Tensor
    advantage_R: Tensor
    sequence_R: Tensor
    sequences: int


# What a surrogate says per row: the loss term, and which rows the upper and the dual bound hold back.
Surrogate = Callable[[Rows], tuple[Tensor, Tensor, Tensor]]
Aggregate = Callable[[Tensor, LossBatch], Tensor]


def rows_of(logprob_T: Tensor, batch: LossBatch) -> Rows:
    """The predicted rows; the behaviour policy stands in for a proximal one that was not recomputed."""
    behaviour_R = _rows(batch.logprob_T, batch, logprob_T)
    return Rows(
        logprob_R=logprob_T.index_select(0, batch.predicted_R),
        behaviour_R=behaviour_R,
        proximal_R=_rows(batch.proximal_T, batch, logprob_T) if batch.proximal_T.numel() else behaviour_R,
        advantage_R=_rows(batch.advantage_T, batch, logprob_T),
        sequence_R=sequence_of_rows(batch),
        sequences=len(batch.cu_seqlens_B1) - 1,
    )


def sequence_of_rows(batch: LossBatch) -> Tensor:
    """The sequence, 0..B-1, that each predicted token belongs to; int64 [R]."""
    ends = batch.cu_seqlens_B1[1:].to(batch.predicted_R.dtype)
    return torch.bucketize(batch.predicted_R, ends, right=True)


def token_mean(term_R: Tensor, batch: LossBatch) -> Tensor:
    """Sum over rows / global tokens: every token of the mini-batch weighs the same (DAPO, VAPO)."""
    return _weighted(term_R, batch).sum() / max(batch.global_tokens, 1.0)


def sequence_mean(term_R: Tensor, batch: LossBatch) -> Tensor:
    """Sum over sequences of the mean of their rows / global sequences: every answer weighs the same (GRPO)."""
    sequence_R = sequence_of_rows(batch)
    count_B = torch.bincount(sequence_R, minlength=len(batch.cu_seqlens_B1) - 1)
    return (_weighted(term_R, batch) / count_B[sequence_R]).sum() / max(batch.global_sequences, 1.0)


def constant_mean(max_tokens: int) -> Aggregate:
    """Sum over rows / (global sequences * max_tokens): no length enters, as Dr.GRPO asks."""

    def aggregate(term_R: Tensor, batch: LossBatch) -> Tensor:
        return _weighted(term_R, batch).sum() / (max(batch.global_sequences, 1.0) * max_tokens)

    return aggregate


def clipped(low: float, high: float, dual: float = 0.0) -> Surrogate:
    """PPO: -min(u A, clip(u, 1 - low, 1 + high) A); with `dual` > 1 at most dual * |A| where A < 0 (1912.09729)."""

    def surrogate(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        return _clipped_term(ratio(rows.logprob_R, rows.proximal_R), rows.advantage_R, low, high, dual)

    return surrogate


def gspo(low: float, high: float) -> Surrogate:
    """PPO's clip on s = exp(mean over the answer of log u); each row carries s with its own token's gradient."""

    def surrogate(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        log_R = (rows.logprob_R - rows.proximal_R).detach()
        count_B = sequence_sums(torch.ones_like(log_R), rows.sequence_R, rows.sequences).clamp(min=1.0)
        mean_R = (sequence_sums(log_R, rows.sequence_R, rows.sequences) / count_B)[rows.sequence_R]
        through_R = rows.logprob_R - rows.logprob_R.detach()  # zero, with the gradient of log pi
        return _clipped_term(ratio(mean_R + through_R, torch.zeros_like(mean_R)), rows.advantage_R, low, high, 0.0)

    return surrogate


def cispo(low: float, high: float) -> Surrogate:
    """-sg[clip(u, 1 - low, 1 + high)] A log pi: clipping bounds a row's weight and never stops its gradient."""

    def surrogate(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        ratio_R = ratio(rows.logprob_R, rows.proximal_R).detach()
        weight_R = ratio_R.clamp(1.0 - low, 1.0 + high)
        never_R = torch.zeros_like(ratio_R, dtype=torch.bool)
        return -weight_R * rows.advantage_R * rows.logprob_R, weight_R != ratio_R, never_R

    return surrogate


def reinforce() -> Surrogate:
    """-A log pi, without a ratio."""

    def surrogate(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
        never_R = torch.zeros_like(rows.logprob_R, dtype=torch.bool)
        return -rows.advantage_R * rows.logprob_R, never_R, never_R

    return surrogate


def policy_loss(
    logprob_T: Tensor,
    batch: LossBatch,
    surrogate: Surrogate,
    aggregate: Aggregate = token_mean,
    *,
    correction: Correction = "none",
    low: float = 0.0,
    high: float = 1.0,
) -> Result:
    """The surrogate, weighed by `correction` for the gap proximal/behaviour, aggregated. logprob_T is float [T].

    Metrics: actor/pg_loss, pg_clipfrac, pg_clipfrac_lower (held by the dual clip), ppo_kl (mean log pi_prox/pi_theta),
    ratio_max, and the mismatch family; under a correction also mismatch/weight (mean w) and mismatch/rejected (share of
    w = 0).
    """
    rows = rows_of(logprob_T, batch)
    term_R, clipped_R, dual_R = surrogate(rows)
    found: dict[str, Metric] = mismatch_metrics(rows.logprob_R, rows.behaviour_R)
    if correction != "none":
        weight_R = correction_weight(
            rows.proximal_R, rows.behaviour_R, rows.sequence_R, rows.sequences, correction, low, high
        )
        term_R = weight_R * term_R
        found |= _means({"mismatch/weight": weight_R, "mismatch/rejected": weight_R == 0})
    loss = aggregate(term_R, batch)
    found["actor/pg_loss"] = Sum(float(loss.detach()))
    with torch.no_grad():
        log_R = rows.proximal_R - rows.logprob_R
        found |= _means({"actor/pg_clipfrac": clipped_R, "actor/pg_clipfrac_lower": dual_R, "actor/ppo_kl": log_R})
        if len(log_R):
            found["actor/ratio_max"] = Max(float(ratio(rows.logprob_R, rows.proximal_R).max()))
    return loss, found


def positive_nll(logprob_T: Tensor, batch: LossBatch) -> Result:
    """-sum of log pi over the tokens of right answers / their own global count (VAPO). Metric: actor/nll_loss."""
    positive_R = _rows(batch.positive_T, batch, logprob_T)
    loss = -(positive_R * logprob_T.index_select(0, batch.predicted_R)).sum() / max(batch.global_positive_tokens, 1.0)
    return loss, {"actor/nll_loss": Sum(float(loss.detach()))}


def imitation(logprob_T: Tensor, entropy_T: Tensor, batch: LossBatch) -> Result:
    """Supervised fine-tuning: minus the mean log-prob of the predicted tokens, in nats. Metric: train/loss."""
    loss = -logprob_T.index_select(0, batch.predicted_R).sum() / max(batch.global_tokens, 1.0)
    entropy = _means({"actor/entropy": entropy_T.index_select(0, batch.predicted_R).detach()})
    return loss, {"train/loss": Sum(float(loss.detach())), **entropy}


def entropy_loss(entropy_T: Tensor, batch: LossBatch, aggregate: Aggregate = token_mean) -> Result:
    """Minus the aggregated entropy, in nats. Metric: actor/entropy, the mean over tokens."""
    entropy_R = entropy_T.index_select(0, batch.predicted_R)
    return -aggregate(entropy_R, batch), _means({"actor/entropy": entropy_R.detach()})


def kl_loss(logprob_T: Tensor, batch: LossBatch, estimator: KlEstimator, aggregate: Aggregate = token_mean) -> Result:
    """KL(pi_theta || reference) by a per-token estimate, aggregated. Metric: actor/kl_loss.

    k1's gradient has mean zero under the policy that sampled, so as a loss it only measures; k2's is the KL's own.
    """
    assert batch.reference_T.numel(), "the KL term needs reference log-probs, and the batch carries none"
    logprob_R = logprob_T.index_select(0, batch.predicted_R)
    loss = aggregate(kl_estimate(logprob_R, _rows(batch.reference_T, batch, logprob_T), estimator), batch)
    return loss, {"actor/kl_loss": Sum(float(loss.detach()))}


def kl_estimate(logprob_R: Tensor, reference_R: Tensor, estimator: KlEstimator) -> Tensor:
    """k1 = d, k2 = d^2 / 2, k3 = exp(-d) - 1 + d with d = logprob - reference (Schulman 2020); in nats."""
    log_R = logprob_R - reference_R
    if estimator == "k1":
        return log_R
    if estimator == "k2":
        return 0.5 * log_R.square()
    return ratio(reference_R, logprob_R) - 1.0 + log_R


def value_loss(value_T: Tensor, batch: LossBatch, clip: float = 0.0) -> Result:
    """Half the mean squared error to the returns over global tokens; `clip` > 0 takes the larger of it and the error of
    the value held within +-clip of the one at rollout time (PPO).

    Metrics: critic/vf_loss, vf_clipfrac (share where the held value decides), vpred_mean.
    """
    value_R = value_T.index_select(0, batch.predicted_R)
    return_R = _rows(batch.return_T, batch, value_T)
    error_R = (value_R - return_R).square()
    found = {"critic/vpred_mean": value_R.detach()}
    if clip > 0:
        old_R = _rows(batch.value_T, batch, value_T)
        held_R = (torch.clamp(value_R, old_R - clip, old_R + clip) - return_R).square()
        found["critic/vf_clipfrac"] = (held_R > error_R).detach()
        error_R = torch.maximum(error_R, held_R)
    loss = 0.5 * error_R.sum() / max(batch.global_tokens, 1.0)
    return loss, {"critic/vf_loss": Sum(float(loss.detach())), **_means(found)}


def _clipped_term(
    ratio_R: Tensor, advantage_R: Tensor, low: float, high: float, dual: float
) -> tuple[Tensor, Tensor, Tensor]:
    free_R = -ratio_R * advantage_R
    held_R = -ratio_R.clamp(1.0 - low, 1.0 + high) * advantage_R
    term_R = torch.maximum(free_R, held_R)
    clipped_R = (held_R > free_R).detach()
    if not dual:
        return term_R, clipped_R, torch.zeros_like(clipped_R)
    bound_R = torch.where(advantage_R < 0, -dual * advantage_R, torch.inf)
    return torch.minimum(term_R, bound_R), clipped_R, (bound_R < term_R).detach()


def _rows(array_T: Tensor, batch: LossBatch, like: Tensor) -> Tensor:
    return array_T.index_select(0, batch.predicted_R).to(like.dtype)


def _weighted(term_R: Tensor, batch: LossBatch) -> Tensor:
    return term_R * batch.sequence_weight_B.to(term_R.dtype)[sequence_of_rows(batch)]


def _means(values: dict[str, Tensor]) -> dict[str, Metric]:
    """Means over rows; one transfer from the device for all of them."""
    totals = torch.stack([value_R.double().sum() for value_R in values.values()]).tolist()
    rows = float(len(next(iter(values.values()))))
    return {name: Mean(total, rows) for name, total in zip(values, totals, strict=True)}
