"""Exact match: the answer is the reference's text, spaces aside. For labels, words and multiple choice."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seedthink.rewards.response import split_response
from seedthink.types import Judgement, Verdict


def exact(prompt: Mapping[str, Any], text: str) -> Judgement:
    """Right when the answer equals `reference["answer"]` after runs of white space are made one space."""
    reference = prompt["reference"]
    response = split_response(text, reference)
    due, given = " ".join(str(reference["answer"]).split()), " ".join(response.answer.split())
    parts = {"answer": float(given == due), "format": 0.0 if response.fault else 1.0}
    if response.fault:
        return Judgement(Verdict.WRONG, 0.0, {**parts, "answer": 0.0}, response.fault)
    if given != due:
        return Judgement(Verdict.WRONG, 0.0, parts, f"{given[:80]!r} is not {due[:80]!r}")
    return Judgement(Verdict.RIGHT, 1.0, parts, f"{due[:80]!r} is right")
