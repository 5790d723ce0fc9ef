"""The reward of the RL benchmarks: the share of even ones among an answer's token ids.

A file of its own without imports: verifier processes import it, and no benchmark should measure what that drags in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def score(prompt: Mapping[str, Any], text: str) -> float:
    """What seedthink calls; a token's text is "t" and its id (see `rl_task.word`)."""
    return share([int(word[1:]) for word in text.split()])


def score_all(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
    """What TRL calls, for a whole batch."""
    return [share(ids) for ids in completion_ids]


def share(ids: Sequence[int]) -> float:
    """Share of even ids."""
    return sum(each % 2 == 0 for each in ids) / max(1, len(ids))
