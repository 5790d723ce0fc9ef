"""Countdown with three numbers (24-point when the target range is 24..24): reach the target, each number used once.

    make 14 from 3 2 4
    4 : 3 2 + 5 9 1 20 - 1 5 3 4 * 6 10 2 24 2 : 3 4 + 7 9 5 14 from 7 * 2 </think> ( 3 + 4 ) * 2

The search sets one number aside (`4 :`), combines the other two by + - * (`3 2 + 5`), and after each lists what the one
set aside makes of it by + - * (`9 1 20`; differences are larger minus smaller, `big` is above the largest target). At
the target it stops, says how it came about (`from 7 * 2`) and answers. Three numbers set aside in turn cover every
expression, so a systematic search takes at most 57 tokens.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from seedthink.data.puzzles.problem import Problem

OPERATIONS = ("+", "-", "*")
SYSTEMATIC = (2, 1, 0)
# Of the imperfect chains, this share sets numbers aside in turn; the others choose at random, with repeats.
SYSTEMATIC_SHARE = 0.5
REPEATS = 5


def apply(operation: str, left: int, right: int) -> int:
    """The operation on two numbers, differences taken larger minus smaller."""
    if operation == "+":
        return left + right
    return left * right if operation == "*" else abs(left - right)


@dataclass(frozen=True, slots=True)
class Countdown:
    """Knobs: the largest number given (2..9) and the range of targets (1..99)."""

    name: ClassVar[str] = "countdown"

    max_number: int = 9
    min_target: int = 5
    max_target: int = 40

    def generate(self, rng: Random) -> Problem:
        """Three numbers in random order and a target drawn among those they reach; their plain sum is too easy."""
        while True:
            numbers = [rng.randint(1, self.max_number) for _ in range(3)]
            targets = sorted(self._reachable(numbers) - {sum(numbers)})
            if targets:
                break
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
        return self._write(problem, Random(0), 0.0, SYSTEMATIC)

    def cold_start(self, problem: Problem, rng: Random, noise: float) -> str:
        """Gives up after a trial with probability `noise`, slips in each number with a quarter of it, may repeat."""
        if rng.random() < SYSTEMATIC_SHARE:
            return self._write(problem, rng, noise, SYSTEMATIC)
        return self._write(problem, rng, noise, [rng.randrange(3) for _ in range(REPEATS)])

    def _reachable(self, numbers: list[int]) -> set[int]:
        found = set()
        for aside in range(3):
            left, right = (number for index, number in enumerate(numbers) if index != aside)
            for operation in OPERATIONS:
                inner = apply(operation, left, right)
                if inner <= self.max_target:
                    found |= {apply(outer, inner, numbers[aside]) for outer in OPERATIONS}
        return {value for value in found if self.min_target <= value <= self.max_target}

    def _write(self, problem: Problem, rng: Random, noise: float, order: Iterable[int]) -> str:
        numbers, target = problem.reference["numbers"], problem.reference["target"]
        words: list[str] = []
        for aside in order:
            third = numbers[aside]
            left, right = (number for index, number in enumerate(numbers) if index != aside)
            words += [str(third), ":", str(left), str(right)]
            for operation in OPERATIONS:
                inner = _slip(apply(operation, left, right), rng, noise / 4)
                words += [operation, self._word(inner)]
                for outer in OPERATIONS:
                    value = _slip(apply(outer, inner, third), rng, noise / 4)
                    words.append(self._word(value))
                    if value == target:
                        words += ["from", *_order(inner, outer, third)]
                        return " ".join([*words, "</think>", *_expression(left, operation, right, inner, outer, third)])
                if rng.random() < noise:
                    break
            else:
                continue
            break
        guess = rng.choice(OPERATIONS)
        return " ".join([*words, "</think>", *_expression(left, operation, right, inner, guess, third)])

    def _word(self, value: int) -> str:
        return str(value) if value <= self.max_target else "big"


def _order(inner: int, outer: str, third: int) -> list[str]:
    """Operands in the order that the operation takes them: the larger first where it is a difference."""
    return [str(third), outer, str(inner)] if outer == "-" and inner < third else [str(inner), outer, str(third)]


def _expression(left: int, inside: str, right: int, inner: int, outer: str, third: int) -> list[str]:
    if inside == "-":
        left, right = max(left, right), min(left, right)
    group = ["(", str(left), inside, str(right), ")"]
    return [str(third), outer, *group] if outer == "-" and inner < third else [*group, outer, str(third)]


def _slip(value: int, rng: Random, probability: float) -> int:
    """The value, or with the given probability a wrong one within 3 of it."""
    if rng.random() >= probability:
        return value
    return rng.choice([other for other in range(max(0, value - 3), value + 4) if other != value])
