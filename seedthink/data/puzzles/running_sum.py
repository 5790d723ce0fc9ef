"""Running sum: add a list of digits modulo 10, writing each partial sum down.

    sum 3 7 9 mod 10   ->   3 + 7 = 0 + 9 = 9 </think> 9

Each step is one small fact, so a writer that slips with probability p per step is right about (1 - p)^(terms - 1) of
the time, and a model that imitates it has that much to gain. A hasty writer adds two terms at a time and gets most of
these steps wrong:

    3 + 7 + 9 = 4 </think> 4
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import ClassVar

from seedthink.data.puzzles.problem import Habits, Problem, check_knobs

HASTY_SLIPS = 0.7  # probability that a hasty writer's sum of two terms at a time is wrong


@dataclass(frozen=True, slots=True)
class RunningSum:
    """Knobs: how many digits stand in the list, and the modulus (2..10)."""

    name: ClassVar[str] = "running_sum"

    min_terms: int = 5
    max_terms: int = 9
    modulus: int = 10

    def __post_init__(self) -> None:
        check_knobs(
            self.name,
            min_terms=(self.min_terms, 2, "max_terms"),
            max_terms=(self.max_terms, 2, 30),
            modulus=(self.modulus, 2, 10),
        )

    def generate(self, rng: Random) -> Problem:
        """A list of `min_terms`..`max_terms` digits; the id is the list and the modulus."""
        terms = [rng.randrange(10) for _ in range(rng.randint(self.min_terms, self.max_terms))]
        listed = " ".join(map(str, terms))
        return Problem(
            id=f"{self.name}:{listed} mod {self.modulus}",
            family=self.name,
            question=f"sum {listed} mod {self.modulus}",
            reference={"terms": terms, "modulus": self.modulus, "answer": sum(terms) % self.modulus},
        )

    def solve(self, problem: Problem) -> str:
        """Every partial sum, then the last one as the answer."""
        return self._write(problem, Random(0), stride=1, slips=0.0)

    def cold_start(self, problem: Problem, rng: Random, habits: Habits) -> str:
        """Partial sums that are wrong, uniformly among the wrong residues: with `slips`, a hasty writer's more often."""
        if rng.random() < habits.hasty:
            return self._write(problem, rng, stride=2, slips=max(habits.slips, HASTY_SLIPS))
        return self._write(problem, rng, stride=1, slips=habits.slips)

    def _write(self, problem: Problem, rng: Random, stride: int, slips: float) -> str:
        total, *terms = problem.reference["terms"]
        words = [str(total)]
        for start in range(0, len(terms), stride):
            added = terms[start : start + stride]
            total = (total + sum(added)) % self.modulus
            if rng.random() < slips:
                total = (total + rng.randrange(1, self.modulus)) % self.modulus
            words += [word for term in added for word in ("+", str(term))] + ["=", str(total)]
        return " ".join([*words, "</think>", str(total)])
