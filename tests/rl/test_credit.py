"""Which rollouts learn and what their tokens are told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from rl_samples import make_valued

from seedthink.config.algorithm import PRESETS
from seedthink.rl.credit import EMPTY, NO_BASELINE, NO_SIGNAL, REASONS, TRUNCATED, credit, credit_metrics
from seedthink.rl.shaping import build_reward, overlong_penalty
from seedthink.telemetry.metrics import reduce
from seedthink.types import Finish, Judgement, Valued, Verdict

GRPO = replace(PRESETS["grpo"], dynamic_sampling=True)


def group(scores: list[float], name: str = "g0", length: int = 3, **more) -> list[Valued]:
    return [make_valued(length, score=s, group=name, index=i, **more) for i, s in enumerate(scores)]


def test_vapo_uses_a_lambda_of_its_own_for_each_length() -> None:
    long, short = make_valued(8, score=1.0, value=[0.0] * 8), make_valued(2, score=0.0, index=1, value=[0.5, 0.5])
    config = replace(PRESETS["vapo"], gae_length_alpha=0.25)
    a, b = credit([[long, short]], config)
    assert a.advantage_T == pytest.approx(0.5 ** np.arange(7, -1, -1))  # alpha * 8 = 2: lambda 0.5
    assert b.advantage_T == pytest.approx([0.0, -0.5])  # alpha * 2 below 1: lambda 0
    assert a.return_T.tolist() == [1.0] * 8
    assert b.return_T.tolist() == [0.0] * 2


def test_ppo_uses_its_constant_lambda_and_whitens_over_all_tokens() -> None:
    members = [make_valued(3, score=float(i % 2), index=i, value=[0.1, 0.2, 0.3]) for i in range(4)]
    plain = credit([members], replace(PRESETS["ppo"], whiten_advantages=False))
    assert plain[1].advantage_T == pytest.approx([0.1 + 0.95 * (0.1 + 0.95 * 0.7), 0.1 + 0.95 * 0.7, 0.7], abs=1e-6)
    tokens = np.concatenate([c.advantage_T for c in credit([members], PRESETS["ppo"])])
    assert tokens.mean() == pytest.approx(0.0, abs=1e-6)
    assert tokens.std() == pytest.approx(1.0, abs=1e-4)


def test_group_estimators_give_every_token_the_answers_advantage() -> None:
    members = group([1.0, 0.0, 0.0])
    first = {name: credit([members], PRESETS[name])[0].advantage_T for name in ("dr_grpo", "rloo", "grpo")}
    assert first["dr_grpo"] == pytest.approx([2 / 3] * 3)
    assert first["rloo"] == pytest.approx([1.0] * 3)
    assert first["grpo"] == pytest.approx([2 / 3 / np.sqrt(1 / 3)] * 3, rel=1e-5)


def test_reinforce_pp_whitens_rewards_over_the_whole_batch() -> None:
    found = credit([group([1.0, 0.0], "a", length=1), group([0.0, 0.0], "b", length=1)], PRESETS["reinforce_pp"])
    scores = np.array([1.0, 0, 0, 0])
    assert [float(c.advantage_T[0]) for c in found] == pytest.approx((scores - 0.25) / scores.std(), rel=1e-4)


def test_reward_to_go_without_a_baseline() -> None:
    (only,) = credit([group([1.0])], replace(PRESETS["rloo"], estimator="reward_to_go"))
    assert only.advantage_T.tolist() == [1.0, 1.0, 1.0]


def test_groups_whose_scores_are_equal_are_dropped_with_a_reason() -> None:
    found = credit([group([1.0, 1.0], "a"), group([1.0, 0.0], "b"), group([0.0, 0.0], "c")], GRPO)
    assert [c.kept for c in found] == [False, False, True, True, False, False]
    assert [c.reason for c in found] == [NO_SIGNAL, NO_SIGNAL, "", "", NO_SIGNAL, NO_SIGNAL]
    assert not found[0].advantage_T.any()
    assert len(found[0].advantage_T) == 3


def test_a_shaped_reward_does_not_make_a_group_of_equal_scores_useful() -> None:
    members = [make_valued(3, score=1.0, reward=1.0), make_valued(3, score=1.0, reward=0.4, index=1)]
    assert [c.reason for c in credit([members], GRPO)] == [NO_SIGNAL, NO_SIGNAL]


def test_without_dynamic_sampling_equal_groups_stay() -> None:
    assert all(c.kept for c in credit([group([1.0, 1.0])], PRESETS["grpo"]))


def test_failed_verifications_leave_before_the_baseline_is_taken() -> None:
    members = [
        *group([1.0, 0.0]),
        make_valued(3, score=0.0, index=2, verdict=Verdict.ERROR),
        make_valued(3, score=0.0, index=3, verdict=Verdict.TIMEOUT),
        make_valued(3, score=0.0, index=4, finish=Finish.ABORTED),
        make_valued(0, score=0.0, index=5),
    ]
    found = credit([members], PRESETS["dr_grpo"])
    assert [c.reason for c in found[2:]] == [
        REASONS[Verdict.ERROR],
        REASONS[Verdict.TIMEOUT],
        REASONS[Finish.ABORTED],
        EMPTY,
    ]
    assert found[0].advantage_T == pytest.approx([0.5] * 3)


def test_a_single_usable_answer_has_no_group_baseline_but_a_critic_can_teach_it() -> None:
    members = [make_valued(3, score=1.0, value=[0.0] * 3), make_valued(3, index=1, verdict=Verdict.ERROR)]
    assert credit([members], PRESETS["grpo"])[0].reason == NO_BASELINE
    assert credit([members], replace(PRESETS["vapo"], dynamic_sampling=False))[0].kept


def test_overlong_filtering_masks_truncated_answers_that_still_count_in_the_baseline() -> None:
    members = [
        make_valued(3, score=1.0),
        make_valued(3, score=1.0, index=1),
        make_valued(3, score=0.0, index=2, finish=Finish.LENGTH),
    ]
    found = credit([members], replace(PRESETS["dr_grpo"], overlong_filter=True))
    assert [c.reason for c in found] == ["", "", TRUNCATED]
    assert found[0].advantage_T == pytest.approx([1 / 3] * 3)
    assert all(c.kept for c in credit([members], PRESETS["dr_grpo"]))


def test_kl_in_the_reward_is_taken_off_token_by_token() -> None:
    valued = make_valued(3, score=1.0, logprob=[-1.0, -1.0, -1.0], reference=[-2.0, -1.0, -1.5])
    config = replace(PRESETS["rloo"], estimator="reward_to_go", kl_weight=0.1)
    (found,) = credit([[valued]], config)
    assert found.advantage_T == pytest.approx([1.0 - 0.1 * 1.5, 1.0 - 0.1 * 0.5, 1.0 - 0.1 * 0.5])


def test_kl_in_the_reward_uses_the_recomputed_policy_where_there_is_one() -> None:
    valued = make_valued(1, score=1.0, logprob=[-9.0], proximal=[-1.0], reference=[-2.0])
    (found,) = credit([[valued]], replace(PRESETS["rloo"], estimator="reward_to_go", kl_weight=0.5))
    assert found.advantage_T == pytest.approx([0.5])


def test_credit_of_nothing_is_nothing() -> None:
    assert credit([], PRESETS["vapo"]) == []
    assert credit([group([1.0, 1.0])], PRESETS["vapo"])[0].reason == NO_SIGNAL


def test_metrics_count_drops_by_reason_and_judge_the_critic() -> None:
    useful = [
        make_valued(2, score=1.0, value=[1.0, 1.0], group="a"),
        make_valued(2, score=0.0, value=[0.0, 0.0], group="a", index=1),
    ]
    credited = credit([useful, group([1.0, 1.0], "b", value=[0.0] * 3)], PRESETS["vapo"])
    found = reduce(credit_metrics(credited, PRESETS["vapo"]))
    assert found["credit/kept"] == 2
    assert found["credit/dropped/equal_scores_in_the_group"] == 2
    assert found["critic/vf_explained_var"] == pytest.approx(1.0)
    assert found["critic/rewards/mean"] == pytest.approx(0.5)
    assert found["critic/returns/max"] == 1.0


def test_the_soft_overlong_penalty_is_dapos() -> None:
    found = [overlong_penalty(n, 20480, 4096) for n in (1, 16384, 18432, 20480, 30000)]
    assert found == [0.0, 0.0, -0.5, -1.0, -1.0]


def test_rewards_are_scaled_scores_less_the_overlong_penalty() -> None:
    reward = build_reward(PRESETS["dapo"], max_tokens=10)  # cache 2 tokens: 8 free, 9 costs 0.5, 10 costs 1
    judgement = Judgement(Verdict.RIGHT, 1.0)
    assert [reward(make_valued(n).scored.rollout, judgement) for n in (8, 9, 10)] == pytest.approx([1.0, 0.5, 0.0])
    assert reward(make_valued(4).scored.rollout, Judgement(Verdict.WRONG, 0.0)) == -1.0
    assert reward(make_valued(4).scored.rollout, Judgement(Verdict.WRONG, 0.25)) == pytest.approx(-0.5)
    assert build_reward(PRESETS["grpo"], max_tokens=4)(make_valued(4).scored.rollout, judgement) == 1.0
