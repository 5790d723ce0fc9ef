"""Rewards from judgements: a verifier's score on the algorithm's scale, less DAPO's soft overlong penalty.

R_len(y) = 0 up to L_max - L_cache tokens, falls linearly to -1 at L_max and stays there (DAPO, arXiv 2503.14476).
"""

from __future__ import annotations

from collections.abc import Callable

from seedthink.config.algorithm import AlgorithmConfig
from seedthink.types import Judgement, Rollout

Reward = Callable[[Rollout, Judgement], float]


def overlong_penalty(length: int, max_tokens: int, cache_tokens: float) -> float:
    """R_len of an answer of `length` tokens, in [-1, 0]; `max_tokens` is L_max, `cache_tokens` L_cache > 0."""
    return min(0.0, max(-1.0, (max_tokens - cache_tokens - length) / cache_tokens))


def build_reward(config: AlgorithmConfig, *, max_tokens: int) -> Reward:
    """The reward of a judged rollout; `max_tokens` is the longest answer that generation allows."""
    cache_tokens = config.overlong_cache * max_tokens

    def reward(rollout: Rollout, judgement: Judgement) -> float:
        value = config.reward_wrong + (config.reward_right - config.reward_wrong) * judgement.score
        if config.overlong_penalty:
            length = len(rollout.completion.tokens_T)
            value += config.overlong_penalty * overlong_penalty(length, max_tokens, cache_tokens)
        return value

    return reward
