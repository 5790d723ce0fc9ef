"""Countdown with three numbers (24-point when the target range is 24..24): reach the target, each number used once.

    make 14 from 3 2 4
    4 : 3 2 + 5 9 < 20 > - 1 5 < 4 < * 6 10 < 24 > 2 : 3 4 + 7 9 < 14 = 7 * 2 </think> ( 3 + 4 ) * 2

The search sets one number aside (`4 :`) and combines the other two by + - * in turn (`3 2 + 5`). It adds the one set
aside and compares with the target (`9 <`); where that is too small it multiplies instead (`20 >`), where it is too
large it takes the difference, larger minus smaller. At the target (`14 =`) it says how that came about and answers. A
systematic search sets each number aside once and ends within 66 tokens; `big` is above the largest target. A hasty
writer begins at the other end of the list and is likely to give up after any trial, with an answer that he knows to be
wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import ClassVar, NamedTuple

from seedthink.data.puzzles.problem import Habits, Problem, check_knobs
from seedthink.errors import DataError

OPERATIONS = ("+", "-", "*")
SYSTEMATIC = (2, 1, 0)
HASTY = (0, 1, 2)
GIVES_UP = 0.8  # probability that a hasty writer stops after a trial
MAX_DRAWS = 10_000


class Trial(NamedTuple):
    """(left inside right) outer aside: one way to combine three numbers."""

    left: int
    inside: str
    right: int
    outer: str
    aside: int


def apply(operation: str, left: int, right: int) -> int:
    """The operation on two numbers, differences taken larger minus smaller."""
    if operation == "+":
        return left + right
    return left * right if operation == "*" else abs(left - right)


def expression(trial: Trial) -> str:
    """The trial as arithmetic, operands of a difference in the order that makes it positive."""
    left, inside, right, outer, aside = trial
    if inside == "-":
        left, right = max(left, right), min(left, right)
    group = f"( {left} {inside} {right} )"
    swap = outer == "-" and apply(inside, left, right) < aside
    return f"{aside} {outer} {group}" if swap else f"{group} {outer} {aside}"


@dataclass(frozen=True, slots=True)
class Countdown:
    """Knobs: the largest number given (2..9) and the range of targets (1..99)."""

    name: ClassVar[str] = "countdown"

    max_number: int = 9
    min_target: int = 10
    max_target: int = 50

    def __post_init__(self) -> None:
        check_knobs(
            self.name,
            max_number=(self.max_number, 2, 9),
            min_target=(self.min_target, 1, "max_target"),
            max_target=(self.max_target, 1, 99),
        )

    def generate(self, rng: Random) -> Problem:
        """Three numbers in random order and a target drawn among those a search finds; their plain sum is too easy."""
        for _ in range(MAX_DRAWS):
            numbers = [rng.randint(1, self.max_number) for _ in range(3)]
            if targets := _targets(tuple(sorted(numbers)), self.min_target, self.max_target):
                break
        else:
            raise DataError(f"no problem fits the knobs of {self}; widen the range of targets or raise max_number")
        target = rng.choice(targets)
        listed = " ".join(map(str, numbers))
        return Problem(
            id=f"{self.name}:{' '.join(map(str, sorted(numbers)))} make {target}",
            family=self.name,
            question=f"make {target} from {listed}",
            reference={"numbers": numbers, "target": target},
        )

    def solve(self, problem: Problem) -> str:
        """Systematic search without a slip, up to the first hit."""
        return self._write(problem, Random(0), SYSTEMATIC, slips=0.0, gives_up=0.0)

    def cold_start(self, problem: Problem, rng: Random, habits: Habits) -> str:
        """A search whose numbers are wrong with probability `slips`, systematic or a hasty writer's."""
        if rng.random() < habits.hasty:
            return self._write(problem, rng, HASTY, slips=habits.slips, gives_up=GIVES_UP)
        return self._write(problem, rng, SYSTEMATIC, slips=habits.slips, gives_up=0.0)

    def _write(self, problem: Problem, rng: Random, order: Iterable[int], slips: float, gives_up: float) -> str:
        target = problem.reference["target"]
        words: list[str] = []
        for aside, left, right in _splits(problem.reference["numbers"], order):
            words += [str(aside), ":", str(left), str(right)]
            for inside in OPERATIONS:
                inner = _slip(apply(inside, left, right), rng, slips)
                words += [inside, self._word(inner)]
                outer = "+"
                for _ in range(2):
                    value = _slip(apply(outer, inner, aside), rng, slips)
                    words += [self._word(value), "=" if value == target else "<" if value < target else ">"]
                    if value == target:
                        step = (aside, inner) if outer == "-" and inner < aside else (inner, aside)
                        words += [str(step[0]), outer, str(step[1])]
                        return f"{' '.join(words)} </think> {expression(Trial(left, inside, right, outer, aside))}"
                    outer = "*" if value < target else "-"
                trial = Trial(left, inside, right, outer, aside)
                if rng.random() < gives_up:
                    return f"{' '.join(words)} </think> {expression(trial)}"
        return f"{' '.join(words)} </think> {expression(trial)}"

    def _word(self, value: int) -> str:
        return str(value) if value <= self.max_target else "big"


@lru_cache(maxsize=4096)
def _targets(numbers: tuple[int, ...], lowest: int, highest: int) -> tuple[int, ...]:
    """Every target in the range that the systematic search reaches, but the sum of all three."""
    found = set()
    for aside, left, right in _splits(numbers, SYSTEMATIC):
        for inside in OPERATIONS:
            inner = apply(inside, left, right)
            for outer in ("*", "-"):
                target = apply(outer, inner, aside)
                # The search multiplies after a sum too small and takes the difference after one too large.
                if (inner + aside < target) == (outer == "*") and inner + aside != target:
                    found.add(target)
    return tuple(sorted(target for target in found - {sum(numbers)} if lowest <= target <= highest))


def _splits(numbers: Sequence[int], order: Iterable[int]) -> Iterator[tuple[int, int, int]]:
    """(the number set aside, the other two in order) for each index to set aside."""
    for index in order:
        left, right = (number for other, number in enumerate(numbers) if other != index)
        yield numbers[index], left, right


def _slip(value: int, rng: Random, probability: float) -> int:
    """The value, or with the given probability a wrong one within 3 of it."""
    if rng.random() >= probability:
        return value
    return rng.choice([other for other in range(max(0, value - 3), value + 4) if other != value])
