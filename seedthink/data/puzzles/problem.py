"""What every puzzle family offers: problems with a reference, a perfect chain of thought, and an imperfect one.

A problem's id is its canonical form, so the same puzzle always has the same id, however its text is arranged. The
train / held-out split is a hash of the id: disjoint by construction, for every seed and on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, ClassVar, Literal, Protocol

from seedthink.errors import ConfigError, DataError

Split = Literal["train", "held_out"]
HELD_OUT_SHARE = 0.2


@dataclass(frozen=True, slots=True)
class Problem:
    """One puzzle: canonical `id`, the `question` a user asks, and the JSON-able `reference` its verifier needs."""

    id: str
    family: str
    question: str
    reference: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Habits:
    """How the writers of imperfect chains of thought err.

    slips: probability, for each number written, that it is wrong. hasty: share of the chains whose writer takes short
    cuts, as his family describes it; the others write as `solve` does. A writer keeps his habit to the end of a chain,
    so a critic can learn to see it early, and reinforcement finds out which habit pays.
    """

    slips: float = 0.0
    hasty: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (("slips", self.slips), ("hasty", self.hasty)):
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"{name} of a puzzle source is {value:g}; it is a probability and must be in 0..1")


class Family(Protocol):
    """A puzzle family with its difficulty knobs set; a frozen dataclass whose fields are the knobs."""

    name: ClassVar[str]

    def generate(self, rng: Random) -> Problem:
        """One random problem."""
        ...

    def solve(self, problem: Problem) -> str:
        """A correct response: chain of thought, `</think>`, answer. It starts inside the think block."""
        ...

    def cold_start(self, problem: Problem, rng: Random, habits: Habits) -> str:
        """A response in the same form that errs as `habits` say."""
        ...


def split_of(problem_id: str) -> Split:
    """Which side of the split a problem belongs to: decided by SHA-256 of its id alone, 20 % held out."""
    draw = int.from_bytes(hashlib.sha256(problem_id.encode()).digest()[:8], "big") / 2**64
    return "held_out" if draw < HELD_OUT_SHARE else "train"


def check_knobs(name: str, **allowed: tuple[int, int, int | str]) -> None:
    """Raise `ConfigError` for a knob outside its range; `allowed` maps a knob to (value, lowest, highest).

    A highest given as a name is another knob of `allowed`, whose value is the bound.
    """
    for knob, (value, low, high) in allowed.items():
        bound = allowed[high][0] if isinstance(high, str) else high
        if not low <= value <= bound:
            raise ConfigError(f"{knob} of puzzle family '{name}' is {value}; it must be in {low}..{high}")


def check_disjoint(train: Iterable[str], held_out: Iterable[str]) -> None:
    """Raise `DataError` naming the shared ids if any problem stands on both sides."""
    shared = sorted(set(train) & set(held_out))
    if shared:
        named = ", ".join(shared[:3])
        raise DataError(f"{len(shared)} problems are both trained on and held out (first: {named}); remove one side's")
