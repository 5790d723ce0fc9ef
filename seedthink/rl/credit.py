"""Rewards become advantages: which rollouts learn, and what each of their tokens is told.

Unusable rollouts (a verifier's error, an aborted answer) leave first and count nowhere, then groups without signal
(dynamic sampling). Baselines are taken over all members that remain; truncated answers are in them, and leave only
then where overlong filtering is on (DAPO). Nothing is dropped without a reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from seedthink.config.algorithm import AlgorithmConfig
from seedthink.rl import advantage as estimators
from seedthink.rl.loss import kl_estimate
from seedthink.telemetry.metrics import Last, Max, Mean, Metric, Sum
from seedthink.types import Credited, Finish, Valued, Verdict

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]

REASONS = {
    Verdict.ERROR: "verifier error",
    Verdict.TIMEOUT: "verifier timeout",
    Finish.ABORTED: "generation aborted",
}
EMPTY = "empty answer"
NO_BASELINE = "fewer than two usable answers in the group"
NO_SIGNAL = "equal scores in the group"
TRUNCATED = "truncated"


def credit(groups: Sequence[Sequence[Valued]], algorithm: AlgorithmConfig) -> list[Credited]:
    """Credits every rollout of a step, in order, group after group; pure.

    Dropped rollouts carry zeros and a reason. Whitening, where asked for, goes over the tokens of all kept rollouts.
    """
    members = [valued for group in groups for valued in group]
    group_of = [number for number, group in enumerate(groups) for _ in group]
    reasons = [_unusable(valued) for valued in members]
    _note_groups(groups, reasons, algorithm)
    judged = [i for i, reason in enumerate(reasons) if reason in ("", TRUNCATED)]
    cohort = _Cohort.of([members[i] for i in judged], [group_of[i] for i in judged], algorithm)
    advantage_T, return_T = _estimate(cohort, algorithm)
    if algorithm.whiten_advantages or algorithm.estimator == "reinforce_pp":
        kept_T = np.repeat([not reasons[i] for i in judged], np.diff(cohort.cu_seqlens_B1))
        advantage_T = estimators.whiten(advantage_T, cohort.cu_seqlens_B1, kept_T)
    place = {i: b for b, i in enumerate(judged)}
    return [_credited(members[i], reasons[i], place.get(i), cohort, advantage_T, return_T) for i in range(len(members))]


def credit_metrics(credited: Sequence[Credited], algorithm: AlgorithmConfig) -> dict[str, Metric]:
    """Means and maxima of rewards, advantages and returns of kept rollouts, the critic's quality, and drops by reason.

    critic/vf_explained_var compares the values at rollout time with their targets.
    """
    kept = [c for c in credited if c.kept]
    found: dict[str, Metric] = {"credit/kept": Sum(len(kept)), "credit/dropped": Sum(len(credited) - len(kept))}
    for reason, count in Counter(c.reason for c in credited if c.reason).items():
        found[f"credit/dropped/{reason.replace(' ', '_')}"] = Sum(count)
    if not kept:
        return found
    named = {
        "rewards": np.array([c.valued.scored.reward for c in kept]),
        "advantages": np.concatenate([c.advantage_T for c in kept]),
        "returns": np.concatenate([c.return_T for c in kept]),
    }
    if algorithm.critic:
        named["values"] = np.concatenate([c.valued.value_T for c in kept])
        found["critic/vf_explained_var"] = Last(estimators.explained_variance(named["values"], named["returns"]))
    for name, values in named.items():
        found[f"critic/{name}/mean"] = Mean(float(values.sum(dtype=np.float64)), len(values))
        found[f"critic/{name}/max"] = Max(float(values.max()))
    return found


@dataclass(frozen=True, slots=True)
class _Cohort:
    """Usable rollouts as flat arrays: bounds, per-token rewards (score at the last token), values, group numbers."""

    cu_seqlens_B1: npt.NDArray[np.integer]
    reward_T: Floats
    value_T: Floats
    group_B: npt.NDArray[np.integer]

    @staticmethod
    def of(members: Sequence[Valued], group_of: Sequence[int], algorithm: AlgorithmConfig) -> _Cohort:
        lengths = [_length(valued) for valued in members]
        cu_seqlens_B1 = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        reward_T = np.zeros(int(cu_seqlens_B1[-1]))
        if algorithm.kl_weight and algorithm.kl_in == "reward":
            reward_T -= algorithm.kl_weight * _joined([_kl(valued, algorithm) for valued in members])
        reward_T[cu_seqlens_B1[1:] - 1] += [valued.scored.reward for valued in members]
        value_T = _joined([valued.value_T for valued in members]) if algorithm.critic else np.zeros(0)
        assert not algorithm.critic or len(value_T) == len(reward_T), "GAE needs the critic's value of every token"
        return _Cohort(cu_seqlens_B1, reward_T, value_T, np.asarray(group_of, np.int64))


def _estimate(cohort: _Cohort, algorithm: AlgorithmConfig) -> tuple[Floats, Floats]:
    """Advantages and returns per token, float64, before whitening."""
    length_B = np.diff(cohort.cu_seqlens_B1)
    if not len(length_B):
        return np.zeros(0), np.zeros(0)
    if algorithm.estimator == "gae":
        lambda_B = np.full(len(length_B), algorithm.gae_lambda_policy)
        if algorithm.gae_lambda_adaptive:
            lambda_B = estimators.adaptive_lambda(length_B, algorithm.gae_length_alpha)
        advantage_T, return_T = estimators.decoupled_gae(
            cohort.reward_T, cohort.value_T, cohort.cu_seqlens_B1, lambda_B, algorithm.gae_lambda_critic
        )
        return advantage_T.astype(np.float64), return_T.astype(np.float64)
    return_T = estimators.reward_to_go(cohort.reward_T, cohort.cu_seqlens_B1)
    if not algorithm.grouped:
        return return_T.copy(), return_T
    total_B = return_T[cohort.cu_seqlens_B1[:-1]]
    if algorithm.estimator == "rloo":
        advantage_B = estimators.leave_one_out(total_B, cohort.group_B)
    else:
        advantage_B = estimators.group_normalised(total_B, cohort.group_B, std=algorithm.estimator == "grpo")
    return np.repeat(advantage_B, length_B), return_T


def _unusable(valued: Valued) -> str:
    scored = valued.scored
    if scored.rollout.completion.finish is Finish.ABORTED:
        return REASONS[Finish.ABORTED]
    if scored.judgement.verdict in REASONS:
        return REASONS[scored.judgement.verdict]
    return "" if _length(valued) else EMPTY


def _note_groups(groups: Sequence[Sequence[Valued]], reasons: list[str], algorithm: AlgorithmConfig) -> None:
    """Writes the reasons that depend on the whole group, and truncation, into `reasons`."""
    start = 0
    for group in groups:
        usable = [start + i for i in range(len(group)) if not reasons[start + i]]
        scores = {group[i - start].scored.judgement.score for i in usable}
        truncated = [i for i in usable if group[i - start].scored.rollout.completion.finish is Finish.LENGTH]
        if algorithm.grouped and len(usable) < 2:
            reasons[start : start + len(group)] = [r or NO_BASELINE for r in reasons[start : start + len(group)]]
        elif algorithm.dynamic_sampling and len(scores) < 2:
            reasons[start : start + len(group)] = [r or NO_SIGNAL for r in reasons[start : start + len(group)]]
        elif algorithm.overlong_filter:
            for i in truncated:
                reasons[i] = TRUNCATED
        start += len(group)


def _kl(valued: Valued, algorithm: AlgorithmConfig) -> Floats:
    """Per-token KL estimate between the policy that the trainer holds to have sampled and the reference."""
    policy_T = valued.proximal_T if len(valued.proximal_T) else valued.scored.rollout.completion.logprob_T
    assert len(valued.reference_T) == len(policy_T), "KL in the reward needs reference log-probs of every token"
    policy, reference = (torch.from_numpy(np.asarray(a, np.float64)) for a in (policy_T, valued.reference_T))
    return kl_estimate(policy, reference, algorithm.kl_estimator).numpy()


def _credited(
    valued: Valued, reason: str, place: int | None, cohort: _Cohort, advantage_T: Floats, return_T: Floats
) -> Credited:
    if place is None or reason:
        nothing_T = np.zeros(_length(valued), np.float32)
        return Credited(valued, nothing_T, nothing_T, kept=False, reason=reason)
    span = slice(int(cohort.cu_seqlens_B1[place]), int(cohort.cu_seqlens_B1[place + 1]))
    return Credited(valued, advantage_T[span].astype(np.float32), return_T[span].astype(np.float32), kept=True)


def _length(valued: Valued) -> int:
    return len(valued.scored.rollout.completion.tokens_T)


def _joined(arrays: Sequence[Floats]) -> Floats:
    return np.concatenate([np.zeros(0), *arrays])
