"""Advantage estimators: closed forms, hand-computed groups, and the properties they are chosen for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seedthink.rl.advantage import (
    adaptive_lambda,
    decoupled_gae,
    explained_variance,
    group_normalised,
    leave_one_out,
    reward_to_go,
    whiten,
)

CU = np.array([0, 4, 5, 11], np.int32)


def random_problem(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    reward_T = np.zeros(11)
    reward_T[CU[1:] - 1] = [1.0, -1.0, 0.5]
    return reward_T, rng.normal(0, 0.5, 11).astype(np.float32)


def test_adaptive_lambda_follows_the_paper_and_never_turns_negative() -> None:
    found = adaptive_lambda(np.array([100, 1000, 6000, 16384, 20, 5, 1]), 0.05)
    assert found == pytest.approx([0.8, 0.98, 1 - 1 / 300, 1 - 1 / 819.2, 0.0, 0.0, 0.0])
    assert adaptive_lambda(np.array([64]), 0.5) == pytest.approx([1 - 1 / 32])


def test_the_lambda_critic_of_one_gives_the_reward_at_every_token_whatever_the_values() -> None:
    reward_T, value_T = random_problem()
    _, return_T = decoupled_gae(reward_T, value_T, CU, np.array([0.0, 0.5, 0.9]), 1.0)
    assert return_T == pytest.approx(np.repeat([1.0, -1.0, 0.5], np.diff(CU)), abs=1e-6)


def test_policy_lambda_one_is_reward_minus_value_and_zero_is_the_one_step_error() -> None:
    reward_T, value_T = random_problem()
    advantage_T, _ = decoupled_gae(reward_T, value_T, CU, np.ones(3), 1.0)
    assert advantage_T == pytest.approx(reward_to_go(reward_T, CU) - value_T, abs=1e-6)
    advantage_T, return_T = decoupled_gae(reward_T, value_T, CU, np.zeros(3), 0.0)
    next_T = np.append(value_T[1:], 0.0)
    next_T[CU[1:] - 1] = 0.0
    assert advantage_T == pytest.approx(reward_T + next_T - value_T, abs=1e-6)
    assert return_T == pytest.approx(reward_T + next_T, abs=1e-6)


def test_the_terminal_reward_decays_by_lambda_per_token_when_values_are_zero() -> None:
    reward_T = np.array([0.0, 0.0, 0.0, 1.0])
    advantage_T, return_T = decoupled_gae(reward_T, np.zeros(4, np.float32), np.array([0, 4]), np.array([0.5]), 1.0)
    assert advantage_T.tolist() == [0.125, 0.25, 0.5, 1.0]
    assert return_T.tolist() == [1.0] * 4


def test_both_lambdas_equal_the_double_sum_of_the_definition() -> None:
    reward_T, value_T = random_problem(5)
    lambda_B, critic = np.array([0.3, 0.7, 0.95]), 0.6
    advantage_T, return_T = decoupled_gae(reward_T, value_T, CU, lambda_B, critic)
    for b in range(3):
        begin, end = CU[b], CU[b + 1]
        v = np.append(value_T[begin:end].astype(np.float64), 0.0)
        delta = reward_T[begin:end] + v[1:] - v[:-1]
        for t in range(end - begin):
            powers = np.arange(end - begin - t)
            assert advantage_T[begin + t] == pytest.approx((lambda_B[b] ** powers * delta[t:]).sum(), abs=1e-5)
            assert return_T[begin + t] == pytest.approx(v[t] + (critic**powers * delta[t:]).sum(), abs=1e-5)


def test_reward_to_go_sums_to_the_end_of_each_sequence() -> None:
    assert reward_to_go(np.array([1.0, 2.0, 3.0, 10.0]), np.array([0, 3, 4])).tolist() == [6.0, 5.0, 3.0, 10.0]


def test_group_normalisation_by_hand() -> None:
    # group 7: 1, 0, 0, 1 has mean 0.5 and sample deviation sqrt(1/3); group 2: 3, 1 has mean 2, deviation sqrt(2)
    reward_B, group_B = np.array([1.0, 3.0, 0.0, 0.0, 1.0, 1.0]), np.array([7, 2, 7, 7, 2, 7])
    high, two = 0.5 / np.sqrt(1 / 3), 1 / np.sqrt(2)
    found = group_normalised(reward_B, group_B)
    assert found == pytest.approx([high, two, -high, -high, -two, high], rel=1e-5)
    assert group_normalised(reward_B, group_B, std=False).tolist() == [0.5, 1.0, -0.5, -0.5, -1.0, 0.5]


def test_leave_one_out_by_hand() -> None:
    found = leave_one_out(np.array([1.0, 0.0, 0.0, 5.0]), np.array([0, 0, 0, 1]))
    assert found == pytest.approx([1.0, -0.5, -0.5, 0.0])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-5, 5)), min_size=1, max_size=20))
def test_leave_one_out_equals_its_loop_and_group_advantages_sum_to_zero(rows: list[tuple[int, float]]) -> None:
    group_B, reward_B = np.array([g for g, _ in rows]), np.array([r for _, r in rows])
    found = leave_one_out(reward_B, group_B)
    for i, (group, reward) in enumerate(rows):
        others = [r for j, (g, r) in enumerate(rows) if g == group and j != i]
        assert found[i] == pytest.approx(reward - sum(others) / len(others) if others else 0.0, abs=1e-9)
    for advantage_B in (found, group_normalised(reward_B, group_B), group_normalised(reward_B, group_B, std=False)):
        for group in set(group_B):
            assert advantage_B[group_B == group].sum() == pytest.approx(0.0, abs=1e-8)


def test_group_normalisation_of_equal_rewards_is_zero_not_infinite() -> None:
    assert group_normalised(np.full(4, 0.1), np.zeros(4, int)) == pytest.approx(np.zeros(4))


def test_whitening_gives_mean_zero_and_deviation_one_over_what_is_kept() -> None:
    kept_T = np.array([True, True, False, True, True])
    found = whiten(np.array([1.0, 2.0, 50.0, 3.0, 6.0]), np.array([0, 3, 5]), kept_T)
    assert found[kept_T].mean() == pytest.approx(0.0, abs=1e-7)
    assert found[kept_T].std() == pytest.approx(1.0, rel=1e-5)
    assert found[2] == 0.0
    assert len(whiten(np.zeros(0), np.zeros(1), np.zeros(0))) == 0


def test_explained_variance_of_a_perfect_a_constant_and_a_misleading_critic() -> None:
    return_T = np.array([1.0, -1.0, 1.0, -1.0])
    assert explained_variance(return_T + 3, return_T) == pytest.approx(1.0)
    assert explained_variance(np.full(4, 0.7), return_T) == pytest.approx(0.0)
    assert explained_variance(-return_T, return_T) == pytest.approx(-3.0)
    assert np.isnan(explained_variance(return_T, np.ones(4)))
    assert np.isnan(explained_variance(return_T, np.array([-1.0, -1.0 + 6e-8, -1.0, -1.0]))), "rounding is no variance"
    rounded = np.float32(1) + np.array([0, 1, 0, 2], np.float32) * np.finfo(np.float32).eps
    assert np.isnan(explained_variance(return_T, rounded))
