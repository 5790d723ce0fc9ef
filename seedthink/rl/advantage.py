"""Advantage estimators as pure functions of flat numpy arrays; discounting is absent (gamma = 1).

Per token: decoupled GAE (VAPO, arXiv 2504.05118) and reward-to-go. Per sequence, from the rewards of a group: GRPO
(2402.03300), Dr.GRPO (2503.20783), RLOO (2402.14740). Over the whole batch: whitening, which makes REINFORCE++
(2501.03262) out of reward-to-go. `cu_seqlens_B1` int32 [B + 1] bounds the sequences of a [T] array.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from seedthink.kernels.gae import gae
from seedthink.kernels.gae import whiten as whiten_packed

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.floating]
    Ints = npt.NDArray[np.integer]

_EPSILON = 1e-6  # keeps the deviation of (nearly) equal rewards from dividing by zero
_ROUNDING = 1e-5  # of sums of float32 numbers, relative to the largest


def adaptive_lambda(length_B: Ints, alpha: float) -> Floats:
    """VAPO's policy lambda, 1 - 1/(alpha * l) for answers of l tokens; alpha * l is held at 1 or more, lambda at 0."""
    return 1.0 - 1.0 / np.maximum(alpha * np.asarray(length_B, np.float64), 1.0)


def decoupled_gae(
    reward_T: Floats, value_T: Floats, cu_seqlens_B1: Ints, lambda_policy_B: Floats, lambda_critic: float
) -> tuple[Floats, Floats]:
    """(advantage_T, return_T) float32 [T] of answers that ended: the value after the last token is 0.

    value_T[t] is the critic's value of the state in which token t was chosen. Returns are value + advantage at
    `lambda_critic`: at 1, the Monte-Carlo reward-to-go whatever the values are.
    """
    sequences = len(cu_seqlens_B1) - 1
    advantage_T, return_T = gae(
        torch.from_numpy(np.ascontiguousarray(reward_T, np.float32)),
        torch.from_numpy(np.ascontiguousarray(value_T, np.float32)),
        torch.from_numpy(np.ascontiguousarray(cu_seqlens_B1, np.int32)),
        torch.from_numpy(np.ascontiguousarray(lambda_policy_B, np.float32)),
        torch.full((sequences,), lambda_critic, dtype=torch.float32),
    )
    return advantage_T.numpy(), return_T.numpy()


def reward_to_go(reward_T: Floats, cu_seqlens_B1: Ints) -> Floats:
    """Sum of a sequence's rewards from each token on, [T] float64."""
    reward_T = np.asarray(reward_T, np.float64)
    sums = [np.cumsum(reward_T[begin:end][::-1])[::-1] for begin, end in pairwise(cu_seqlens_B1)]
    return np.concatenate([np.zeros(0), *sums])


def group_normalised(reward_B: Floats, group_B: Ints, std: bool = True) -> Floats:
    """GRPO: reward minus its group's mean, over the group's sample deviation (n - 1); `std` False leaves that out.

    group_B holds any integers, equal within a group. A group of one gets 0.
    """
    reward_B = np.asarray(reward_B, np.float64)
    group, count = _groups(group_B)
    centred_B = reward_B - (np.bincount(group, reward_B) / count)[group]
    if not std:
        return centred_B
    deviation = np.sqrt(np.bincount(group, centred_B**2) / np.maximum(count - 1, 1))
    return centred_B / (deviation[group] + _EPSILON)


def leave_one_out(reward_B: Floats, group_B: Ints) -> Floats:
    """RLOO: reward minus the mean reward of the group's other members. A group of one gets 0."""
    group, count = _groups(group_B)
    return group_normalised(reward_B, group_B, std=False) * (count / np.maximum(count - 1, 1))[group]


def whiten(advantage_T: Floats, cu_seqlens_B1: Ints, kept_T: npt.NDArray[np.bool_]) -> Floats:
    """float32 [T], shifted and scaled to mean 0 and deviation 1 over all kept tokens; the others are 0."""
    whitened_T = whiten_packed(
        torch.from_numpy(np.ascontiguousarray(advantage_T, np.float32)),
        torch.from_numpy(np.ascontiguousarray(cu_seqlens_B1, np.int32)),
        torch.from_numpy(np.ascontiguousarray(kept_T, np.bool_)),
        _EPSILON,
    )
    return whitened_T.numpy()


def explained_variance(value_T: Floats, return_T: Floats) -> float:
    """1 - Var(return - value) / Var(return): 1 for a perfect critic, 0 for a constant one; nan for constant returns.

    Returns are sums of float32 values: where all rewards are the same they still differ in their last bits, and a
    quotient of such noise would say nothing.
    """
    returns, values = np.asarray(return_T, np.float64), np.asarray(value_T, np.float64)
    variance = float(np.var(returns)) if len(returns) else 0.0
    noise = _ROUNDING * max(np.abs(returns).max(initial=0.0), np.abs(values).max(initial=0.0))
    if variance <= noise**2:
        return float("nan")
    return 1.0 - float(np.var(returns - values)) / variance


def _groups(group_B: Ints) -> tuple[Ints, Ints]:
    """Group of each sequence as 0..groups-1, and members per group."""
    _, group, count = np.unique(np.asarray(group_B), return_inverse=True, return_counts=True)
    return group, count
