"""One row per rollout for rollouts/step_N.jsonl: what was asked and answered, how it was judged, and its credit.

Per-token text and advantages are kept only for the rows that people look at (best, middle and worst rewards, truncated
ones): for all rows they would be larger than the training batch itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from seedthink.types import Credited, Finish

Decode = Callable[[Sequence[int]], str]


def rows(
    credited: Sequence[Credited],
    decode: Decode,
    gaps: Mapping[str, float] | None = None,
    detailed: int = 8,
) -> list[dict[str, Any]]:
    """Return the rows of a step, in the order given.

    `gaps` maps a completion's id to its largest absolute log-prob gap between generator and trainer. `detailed` rows,
    and as many truncated ones, also carry "pieces" (the text of each response token) and "advantages" (one number per
    piece).
    """
    chosen = telling([item.valued.scored.reward for item in credited], detailed)
    truncated = [at for at, item in enumerate(credited) if _finish(item) == Finish.LENGTH and at not in chosen]
    chosen |= set(truncated[:detailed])
    piece = cache(lambda token: decode([token]))  # the same tokens come again and again
    return [_row(item, gaps or {}) | (_detail(item, piece) if at in chosen else {}) for at, item in enumerate(credited)]


def telling(rewards: Sequence[float], count: int) -> set[int]:
    """Return the positions of the best, worst and middle rewards, `count` in all or every one if there are fewer."""
    order = sorted(range(len(rewards)), key=lambda at: rewards[at])
    if len(order) <= count:
        return set(order)
    third = max(1, count // 3)
    middle = (len(order) - third) // 2
    rest = count - 2 * third
    return {*order[:third], *order[middle : middle + third], *order[len(order) - rest :]}


def _finish(item: Credited) -> Finish:
    return item.valued.scored.rollout.completion.finish


def _row(item: Credited, gaps: Mapping[str, float]) -> dict[str, Any]:
    scored = item.valued.scored
    rollout, judgement = scored.rollout, scored.judgement
    completion, prompt = rollout.completion, rollout.prompt
    count = len(completion.tokens_T)
    row = {
        "id": completion.id,
        "group": rollout.group,
        "index": rollout.index,
        "family": prompt.family,
        "problem": prompt.id,
        "prompt": prompt.text,
        "completion": completion.text,
        "reference": dict(prompt.reference),
        "verdict": str(judgement.verdict),
        "score": float(judgement.score),
        "parts": {name: float(part) for name, part in judgement.parts.items()},
        "evidence": judgement.evidence,
        "reward": float(scored.reward),
        "advantage": float(item.advantage_T.mean()) if len(item.advantage_T) else 0.0,
        "kept": item.kept,
        "reason": item.reason,
        "finish": str(completion.finish),
        "prompt_tokens": len(prompt.tokens_T),
        "response_tokens": count,
        "logprob": float(completion.logprob_T.mean()) if count else 0.0,
    }
    return row | ({"logp_gap": float(gaps[completion.id])} if completion.id in gaps else {})


def _detail(item: Credited, piece: Callable[[int], str]) -> dict[str, Any]:
    tokens = item.valued.scored.rollout.completion.tokens_T.tolist()
    advantages = item.advantage_T.tolist() or [0.0] * len(tokens)
    return {
        "pieces": [piece(token) for token in tokens],
        "advantages": [float(f"{advantage:.4g}") for advantage in advantages],
    }
