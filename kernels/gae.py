"""Generalised advantage estimation over packed sequences, with one lambda for the policy and one for the critic.

delta_t = r_t + gamma V_{t+1} - V_t and A_t = delta_t + gamma lambda A_{t+1} (Schulman et al. 2016, arXiv:1506.02438);
decoupled, per-sequence lambdas as in VAPO (arXiv:2504.05118). One reverse pass reads r and V once for both lambdas.
Masked tokens (tool output, padding inside a turn) are skipped: the state passes over them as if they were not there.
Whitening shifts and scales advantages to mean 0 and deviation 1 over the tokens of a whole batch that count.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels import cuda
from seedthink.kernels.registry import define


def reference_gae(
    reward_T: Tensor,
    value_T: Tensor,
    cu_seqlens_B1: Tensor,
    lambda_policy_B: Tensor,
    lambda_critic_B: Tensor,
    gamma: float = 1.0,
    mask_T: Tensor | None = None,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The recurrence token by token, in Python floats, returned in the dtype of the rewards."""
    bounds, reward, value = cu_seqlens_B1.tolist(), reward_T.tolist(), value_T.tolist()
    advantage, returns = [0.0] * len(reward), [0.0] * len(reward)
    for b, (begin, end) in enumerate(pairwise(bounds)):
        next_value = 0.0 if bootstrap_B is None else float(bootstrap_B[b])
        policy = critic = 0.0
        for t in reversed(range(begin, end)):
            if mask_T is None or bool(mask_T[t]):
                delta = reward[t] + gamma * next_value - value[t]
                policy = delta + gamma * float(lambda_policy_B[b]) * policy
                critic = delta + gamma * float(lambda_critic_B[b]) * critic
                next_value = value[t]
            advantage[t], returns[t] = policy, value[t] + critic
    return torch.tensor(advantage, dtype=reward_T.dtype), torch.tensor(returns, dtype=reward_T.dtype)


def gae(
    reward_T: Tensor,
    value_T: Tensor,
    cu_seqlens_B1: Tensor,
    lambda_policy_B: Tensor,
    lambda_critic_B: Tensor,
    gamma: float = 1.0,
    mask_T: Tensor | None = None,
    bootstrap_B: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """(advantage_T, return_T): policy-lambda advantages, and value + critic-lambda advantage.

    reward_T, value_T float32 [T]; cu_seqlens_B1 int32 [B + 1]; lambdas float32 [B]; gamma in [0, 1]; mask_T bool [T],
    True for the tokens that count (default all); bootstrap_B float32 [B], the value after a sequence's last token
    (default 0, a finished sequence) -> two float32 [T]. A masked token carries the advantage of the next token that
    counts. No autograd. ValueError names the argument that does not fit.
    All tensors on one CUDA device: the same contract there, where the values in cu_seqlens are not checked.
    """
    advantage_T, return_T = _gae(
        reward_T, value_T, cu_seqlens_B1, lambda_policy_B, lambda_critic_B, gamma, mask_T, bootstrap_B
    )
    return advantage_T, return_T


def reference_moments(advantage_T: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """Count, mean and variance (over the count) of what counts, in float64."""
    counted = (advantage_T if mask_T is None else advantage_T[mask_T]).double()
    if not len(counted):
        return torch.zeros(3, dtype=torch.float64)
    return torch.stack([torch.tensor(float(len(counted))).double(), counted.mean(), counted.var(correction=0)])


def advantage_moments(advantage_T: Tensor, cu_seqlens_B1: Tensor, mask_T: Tensor | None = None) -> Tensor:
    """[count, mean, variance] float64 of the advantages of the tokens that count; the variance is over the count.

    advantage_T float32 [T], cu_seqlens_B1 int32 [B + 1], mask_T bool [T] (default all count). Added in float64 by a
    fixed tree over each sequence and then over the sequences in the order of their sums: a set of sequences has the
    same bits whatever order it is packed in, for any number of threads. No tokens give zeros. ValueError names the
    argument that does not fit, and the sequence where a token that counts is NaN or infinite.
    """
    moments_3: Tensor = _moments(advantage_T, cu_seqlens_B1, mask_T)
    return moments_3


def whiten(advantage_T: Tensor, cu_seqlens_B1: Tensor, mask_T: Tensor | None = None, epsilon: float = 1e-6) -> Tensor:
    """(advantage - mean) / (deviation + epsilon) over all tokens that count, float32 [T]; the others get 0.

    Arguments and statistics are those of `advantage_moments`; `epsilon` > 0 keeps equal advantages from dividing by 0.
    """
    if not epsilon > 0.0:
        raise ValueError(f"epsilon: {epsilon} is not above 0")
    _, mean, variance = advantage_moments(advantage_T, cu_seqlens_B1, mask_T).tolist()
    whitened_T: Tensor = _shift_and_scale(advantage_T, mask_T, mean, 1.0 / (math.sqrt(variance) + epsilon))
    return whitened_T


def _scan(
    reward_T: Tensor,
    value_T: Tensor,
    cu_seqlens_B1: Tensor,
    lambda_policy_B: Tensor,
    lambda_critic_B: Tensor,
    gamma: float,
    mask_T: Tensor | None,
    bootstrap_B: Tensor | None,
) -> tuple[Tensor, Tensor]:
    advantage_T, return_T = torch.empty_like(reward_T), torch.empty_like(reward_T)
    _C.gae_scan(
        reward_T,
        value_T,
        cu_seqlens_B1,
        lambda_policy_B,
        lambda_critic_B,
        gamma,
        mask_T,
        bootstrap_B,
        advantage_T,
        return_T,
    )
    return advantage_T, return_T


_gae = define(
    "gae(Tensor reward, Tensor value, Tensor cu_seqlens, Tensor lambda_policy, Tensor lambda_critic, float gamma, "
    "Tensor? mask, Tensor? bootstrap) -> (Tensor, Tensor)",
    cpu=_scan,
    cuda=cuda.gae,
    fake=lambda reward, *rest: (torch.empty_like(reward), torch.empty_like(reward)),
)


def _moments_cpu(advantage_T: Tensor, cu_seqlens_B1: Tensor, mask_T: Tensor | None) -> Tensor:
    moments_3 = torch.empty(3, dtype=torch.float64)
    _C.advantage_moments(advantage_T, cu_seqlens_B1, mask_T, moments_3)
    return moments_3


def _shift_and_scale_cpu(advantage_T: Tensor, mask_T: Tensor | None, mean: float, scale: float) -> Tensor:
    y_T = torch.empty_like(advantage_T)
    _C.shift_and_scale(advantage_T, mask_T, mean, scale, y_T)
    return y_T


_moments = define(
    "advantage_moments(Tensor advantage, Tensor cu_seqlens, Tensor? mask) -> Tensor",
    cpu=_moments_cpu,
    fake=lambda advantage, cu_seqlens, mask: advantage.new_empty(3, dtype=torch.float64),
)
_shift_and_scale = define(
    "shift_and_scale(Tensor advantage, Tensor? mask, float mean, float scale) -> Tensor",
    cpu=_shift_and_scale_cpu,
    fake=lambda advantage, mask, mean, scale: torch.empty_like(advantage),
)
