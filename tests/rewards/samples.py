"""Rollouts made by hand for the judges."""

from __future__ import annotations

from typing import Any

import numpy as np

from seedthink.types import Completion, Finish, Prompt, Rollout


def rollout(text: str, family: str = "countdown", index: int = 0, **reference: Any) -> Rollout:
    """A finished response to a prompt of `family` whose reference is given by keywords."""
    empty = np.zeros(0, np.int32)
    prompt = Prompt(f"{family}-{index}", family, "the question", empty, reference)
    completion = Completion(f"c{index}", empty, np.zeros(0, np.float32), empty, Finish.STOP, text)
    return Rollout(prompt, completion, f"g{index}", index)
