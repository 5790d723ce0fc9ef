"""A response taken apart: the think block, the answer after it, and whether the block is well formed.

The reference says where the prompt left off: `"think": "open"` means inside the block, which the response must close
exactly once; `"think": "empty"` means that the prompt has closed it, and no tag may follow. Without either, a response
has no block or one at its start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

OPEN, CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Response:
    """`answer` is what follows the last `</think>`; `fault` says what is wrong with the block, "" if nothing is."""

    thought: str
    answer: str
    fault: str


def split_response(text: str, reference: Mapping[str, Any]) -> Response:
    """Think block and answer of a response. A block that never ends leaves no answer."""
    opens, closes = text.count(OPEN), text.count(CLOSE)
    think = reference.get("think")
    thought, closed, answer = text.rpartition(CLOSE)
    fault = ""
    if think == "empty":
        if opens or closes:
            fault = f"the prompt closed the think block, and the response has {opens} {OPEN} and {closes} {CLOSE}"
    elif closes != 1 and (think == "open" or opens or closes):
        fault = f"{CLOSE} stands {closes} times, not once"
    elif opens > closes or (opens == 1 and not text.lstrip().startswith(OPEN)):
        fault = f"{OPEN} stands {opens} times, or not at the start"
    if not closed and (think == "open" or opens):
        thought, answer = answer, ""
    return Response(thought.strip().removeprefix(OPEN).strip(), answer.strip(), fault)
