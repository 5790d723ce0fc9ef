"""A user's own reward: `module:function`, called as function(prompt, completion) -> float or dict.

`prompt` is `{"id", "family", "text", "reference"}`, `completion` the response's text. A float is the score; a dict has
`score`, optionally `right` (bool), `evidence` (text) and further numbers, kept as parts. Without `right`, a score of at
least 0.5 counts as right. An exception, another type or a number that is not finite (or beyond a million) is an ERROR,
never 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from seedthink.types import Judgement, Verdict

RIGHT_FROM = 0.5
MOST = 1e6  # of a score or a part: beyond it, sums and squares of float32 lose their sense
EVIDENCE = 2000  # characters that are kept; every sample of a run stores them


def wrap(function: Callable[..., Any], name: str) -> Callable[[Mapping[str, Any], str], Judgement]:
    """The function as a verifier; `name` stands in its error messages."""

    def judge(prompt: Mapping[str, Any], text: str) -> Judgement:
        return _judgement(function(dict(prompt), text), name)

    return judge


def _judgement(result: object, name: str) -> Judgement:
    if isinstance(result, Mapping):
        parts = dict(result)
        evidence, right = plain(str(parts.pop("evidence", ""))[:EVIDENCE]), parts.pop("right", None)
        if "score" not in parts:
            raise TypeError(f"{name} returned a dict without 'score': {sorted(map(str, parts))}")
        score = _finite(parts.pop("score"), "score", name)
        numbers = {plain(str(key)): _finite(value, key, name) for key, value in parts.items()}
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
    if abs(number) > MOST:
        raise ValueError(f"{name} returned {key} = {number:g}, beyond {MOST:g}; scores are usually 0..1")
    return number


def plain(text: str) -> str:
    """The text without halves of surrogate pairs, which no file can hold."""
    return text.encode("utf-8", "replace").decode("utf-8")
