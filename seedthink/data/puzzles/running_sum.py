"""Running sum: add a list of digits modulo 10, writing each partial sum down.

    sum 3 7 9 mod 10   ->   3 + 7 = 0 + 9 = 9 </think> 9

Each step is one small fact, so a writer that slips with probability p per step is right about (1 - p)^(terms - 1) of
the time, and a model that imitates it has that much to gain. A hasty writer begins at the other end of the list and is
likely to stop after any sum, taking it for the answer:

    9 + 7 = 6 </think> 6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from seedthink.data.puzzles.problem import Habits, Problem, check_knobs

GIVES_UP = 0.5  # probability that a hasty writer stops after a sum


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
        return self._write(problem.reference["terms"], Random(0), slips=0.0, gives_up=0.0)

    def cold_start(self, problem: Problem, rng: Random, habits: Habits) -> str:
        """Partial sums that are wrong with probability `slips`, uniformly among the wrong residues."""
        terms = problem.reference["terms"]
        if rng.random() < habits.hasty:
            return self._write(terms[::-1], rng, habits.slips, GIVES_UP)
        return self._write(terms, rng, habits.slips, gives_up=0.0)

    def _write(self, terms: Sequence[int], rng: Random, slips: float, gives_up: float) -> str:
        total = terms[0]
        words = [str(total)]
        for term in terms[1:]:
            total = (total + term) % self.modulus
            if rng.random() < slips:
                total = (total + rng.randrange(1, self.modulus)) % self.modulus
            words += ["+", str(term), "=", str(total)]
            if rng.random() < gives_up:
                break
        return " ".join([*words, "</think>", str(total)])
