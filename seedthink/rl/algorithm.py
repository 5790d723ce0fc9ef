"""An `AlgorithmConfig` put together: closures over the pure functions of `loss`, as the trainer calls them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from seedthink.config.algorithm import AlgorithmConfig
from seedthink.rl import loss as losses
from seedthink.rl.loss import Aggregate, LossBatch, Result, Surrogate
from seedthink.telemetry.metrics import Metric, Sum


def build_policy_loss(config: AlgorithmConfig, *, max_tokens: int) -> Callable[[Tensor, Tensor, LossBatch], Result]:
    """(logprob_T, entropy_T, batch) -> (loss, metrics): surrogate + NLL of right answers + KL - entropy bonus.

    `max_tokens` is the longest answer that generation allows; only the "constant" aggregation reads it. Terms of weight
    0 are left out, except that the entropy is always measured. Metric: actor/loss, the total.
    """
    surrogate, aggregate = build_surrogate(config), build_aggregate(config, max_tokens)
    correction = config.correction if config.recompute_proximal else "none"

    def policy_loss(logprob_T: Tensor, entropy_T: Tensor, batch: LossBatch) -> Result:
        total, found = losses.policy_loss(
            logprob_T,
            batch,
            surrogate,
            aggregate,
            correction=correction,
            low=config.correction_low,
            high=config.correction_high,
        )

        def add(weight: float, term: Result) -> Tensor:
            found.update(term[1])
            return total + weight * term[0] if weight else total

        if config.positive_nll_weight:
            total = add(config.positive_nll_weight, losses.positive_nll(logprob_T, batch))
        if config.kl_weight and config.kl_in == "loss":
            total = add(config.kl_weight, losses.kl_loss(logprob_T, batch, config.kl_estimator, aggregate))
        total = add(config.entropy_weight, losses.entropy_loss(entropy_T, batch, aggregate))
        return total, _with_total(found, total)

    return policy_loss


def build_value_loss(config: AlgorithmConfig) -> Callable[[Tensor, LossBatch], Result]:
    """(value_T, batch) -> (loss, metrics) of the critic."""

    def value_loss(value_T: Tensor, batch: LossBatch) -> Result:
        return losses.value_loss(value_T, batch, config.value_clip)

    return value_loss


def build_surrogate(config: AlgorithmConfig) -> Surrogate:
    """The per-token policy term that `config.policy_loss` names."""
    low, high = config.clip_low, config.clip_high
    if config.policy_loss == "clip":
        return losses.clipped(low, high, config.dual_clip)
    if config.policy_loss == "gspo":
        return losses.gspo(low, high)
    if config.policy_loss == "cispo":
        return losses.cispo(low, high)
    return losses.reinforce()


def build_aggregate(config: AlgorithmConfig, max_tokens: int) -> Aggregate:
    """How per-token terms become one number."""
    if config.loss_aggregation == "token":
        return losses.token_mean
    if config.loss_aggregation == "sequence":
        return losses.sequence_mean
    return losses.constant_mean(max_tokens)


def _with_total(found: dict[str, Metric], total: Tensor) -> dict[str, Metric]:
    return {**found, "actor/loss": Sum(float(total.detach()))}
