"""A user's own reward: `module:function`, called as function(prompt, completion) -> float or dict.

`prompt` is `{"id", "family", "text", "reference"}`, `completion` the response's text. A float is the score; a dict has
`score`, optionally `right` (bool), `evidence` (text) and further numbers, kept as parts. Without `right`, a score of at
least 0.5 counts as right. An exception, another type or a number that is not finite is an ERROR, never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from seedthink.types import Judgement, Verdict

RIGHT_FROM = 0.5


def wrap(function: Callable[..., Any], name: str) -> Callable[[Mapping[str, Any], str], Judgement]:
    """The function as a verifier; `name` stands in its error messages."""

    def judge(prompt: Mapping[str, Any], text: str) -> Judgement:
        return _judgement(function(dict(prompt), text), name)

    return judge


def _judgement(result: object, name: str) -> Judgement:
    if isinstance(result, Mapping):
        parts = dict(result)
        evidence, right = str(parts.pop("evidence", "")), parts.pop("right", None)
        if "score" not in parts:
            raise TypeError(f"{name} returned a dict without 'score': {sorted(map(str, parts))}")
        score = _finite(parts.pop("score"), "score", name)
        numbers = {str(key): _finite(value, key, name) for key, value in parts.items()}
    else:
        score, numbers, evidence, right = _finite(result, "score", name), {}, "", None
    verdict = Verdict.RIGHT if (score >= RIGHT_FROM if right is None else right) else Verdict.WRONG
    return Judgement(verdict, score, numbers, evidence)


def _finite(value: object, key: object, name: str) -> float:
    if isinstance(value, bool):
        return float(value)
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise TypeError(
            f"{name} returned {key} = {value!r:.80}, which is no number (return a float or a dict)"
        ) from None
    if not math.isfinite(number):
        raise ValueError(f"{name} returned {key} = {number}, which is not finite")
    return number
