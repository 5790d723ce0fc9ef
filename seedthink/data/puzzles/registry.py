"""Puzzle families by name and difficulty, and drawing a set of distinct problems from one side of the split."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Collection, Mapping
from random import Random
from typing import Any

from seedthink.data.puzzles.countdown import Countdown
from seedthink.data.puzzles.problem import Family, Problem, Split, split_of
from seedthink.data.puzzles.running_sum import RunningSum
from seedthink.errors import ConfigError, DataError

# name -> class and the knobs of difficulty 1, 2, 3, ...
FAMILIES: Mapping[str, tuple[type, tuple[Mapping[str, int], ...]]] = {
    RunningSum.name: (
        RunningSum,
        (
            {"min_terms": 3, "max_terms": 5},
            {"min_terms": 5, "max_terms": 9},
            {"min_terms": 9, "max_terms": 14},
        ),
    ),
    Countdown.name: (
        Countdown,
        (
            {"max_number": 9, "min_target": 10, "max_target": 30},
            {"max_number": 9, "min_target": 10, "max_target": 50},
            {"max_number": 9, "min_target": 24, "max_target": 99},
        ),
    ),
}


def family(name: str, difficulty: int = 2, **knobs: int) -> Family:
    """The family called `name` at a difficulty (1 is the easiest); single `knobs` override that level's.

    Raises `ConfigError` for an unknown name, level or knob, naming the nearest.
    """
    if name not in FAMILIES:
        raise ConfigError(f"unknown puzzle family '{name}'{_nearest(name, FAMILIES)}; there are {', '.join(FAMILIES)}")
    kind, levels = FAMILIES[name]
    if not 1 <= difficulty <= len(levels):
        raise ConfigError(f"difficulty {difficulty} of puzzle family '{name}' is not in 1..{len(levels)}")
    known = [field.name for field in dataclasses.fields(kind)]
    for knob in knobs:
        if knob not in known:
            raise ConfigError(f"puzzle family '{name}' has no knob '{knob}'{_nearest(knob, known)}: {', '.join(known)}")
    settings: dict[str, Any] = {**levels[difficulty - 1], **knobs}
    return kind(**settings)


def make(
    chosen: Family, *, seed: int, count: int, split: Split = "train", exclude: Collection[str] = frozenset()
) -> list[Problem]:
    """`count` problems on one side of the split, none of them in `exclude`; the same for a seed.

    Held-out ids are distinct; of a small family, a training problem may come again, mostly in another arrangement.
    Raises `DataError` when the family at these knobs has too few.
    """
    rng = Random(f"{chosen.name}/{split}/{seed}")
    found: list[Problem] = []
    refused = set(exclude)
    misses = 0
    while len(found) < count:
        problem = chosen.generate(rng)
        if problem.id in refused or split_of(problem.id) != split:
            misses += 1
            if misses > 1000 + 50 * count:
                raise DataError(
                    f"puzzle family {chosen} has only about {len(found)} '{split}' problems, {count} are asked for; "
                    "ask for fewer or widen its knobs"
                )
            continue
        found.append(problem)
        if split == "held_out":
            refused.add(problem.id)
    return found


def _nearest(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f" (did you mean '{near[0]}'?)" if near else ""
