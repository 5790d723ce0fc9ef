"""Verifiers of the puzzles: they compute with the answer, they never compare it with a stored string.

Answers are ASCII and read by a parser of our own: no eval, bounded length and depth, exact rational arithmetic. A think
block that is not closed exactly once is wrong, so a response cannot answer twice.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from seedthink.rewards.response import split_response
from seedthink.types import Judgement, Verdict

MAX_ANSWER = 400
MAX_DEPTH = 40
_TOKEN = re.compile(r"\s*([0-9]{1,9}(?![0-9])|[-+*/()=])")


class _Refused(Exception):
    """Why an answer is wrong, in words."""


def running_sum(prompt: Mapping[str, Any], text: str) -> Judgement:
    """The answer is one integer: the sum of `terms` modulo `modulus` (or `answer` where the reference has it)."""
    return _judge(prompt, text, _check_running_sum)


def countdown(prompt: Mapping[str, Any], text: str) -> Judgement:
    """The answer is an expression over + - * / that uses each of `numbers` once and equals `target`.

    `expression = target` is accepted too.
    """
    return _judge(prompt, text, _check_countdown)


def evaluate(expression: str) -> tuple[Fraction, list[int]]:
    """Exact value of an arithmetic expression and the numbers in it, left to right.

    Raises `ValueError` in words for anything that is no expression of integers, + - * / and parentheses.
    """
    try:
        return _Parser(_tokens(expression)).whole()
    except _Refused as refusal:
        raise ValueError(str(refusal)) from None


def _judge(prompt: Mapping[str, Any], text: str, check: Callable[[Mapping[str, Any], str], str]) -> Judgement:
    reference = prompt["reference"]
    response = split_response(text, reference)
    parts = {"format": 0.0 if response.fault else 1.0}
    try:
        if response.fault:
            raise _Refused(response.fault)
        evidence = check(reference, response.answer)
    except _Refused as refusal:
        return Judgement(Verdict.WRONG, 0.0, {"answer": 0.0, **parts}, str(refusal))
    return Judgement(Verdict.RIGHT, 1.0, {"answer": 1.0, **parts}, evidence)


def _check_running_sum(reference: Mapping[str, Any], answer: str) -> str:
    due = sum(reference["terms"]) % reference["modulus"]
    if not re.fullmatch(r"[0-9]{1,9}", answer):
        raise _Refused(f"the answer {_quote(answer)} is no integer")
    if int(answer) != due:
        raise _Refused(f"{answer} is not {due}")
    return f"{due} is right"


def _check_countdown(reference: Mapping[str, Any], answer: str) -> str:
    target = reference["target"]
    tokens = _tokens(answer)
    if tokens[-2:-1] == ["="]:
        if tokens[-1] != str(target):
            raise _Refused(f"the answer ends with = {tokens[-1]}, the target is {target}")
        tokens = tokens[:-2]
    value, used = _Parser(tokens).whole()
    if Counter(used) != Counter(reference["numbers"]):
        raise _Refused(f"uses {_listed(used)}, the numbers are {_listed(reference['numbers'])}")
    if value != target:
        raise _Refused(f"{_quote(answer)} is {value}, the target is {target}")
    return f"{_quote(answer)} is {target}"


def _tokens(expression: str) -> list[str]:
    if len(expression) > MAX_ANSWER:
        raise _Refused(f"the answer has {len(expression)} characters, an expression has at most {MAX_ANSWER}")
    expression = expression.strip()
    found, position = [], 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise _Refused(f"{_quote(expression[position:].strip())} is not arithmetic on integers")
        found.append(match[1])
        position = match.end()
    return found


class _Parser:
    """Recursive descent: sum = product {(+|-) product}, product = atom {(*|/) atom}, atom = integer | ( sum )."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens, self._next, self._depth = tokens, 0, 0
        self._numbers: list[int] = []

    def whole(self) -> tuple[Fraction, list[int]]:
        value = self._sum()
        if self._peek():
            raise _Refused(f"'{self._peek()}' follows a complete expression")
        return value, self._numbers

    def _sum(self) -> Fraction:
        value = self._product()
        while self._peek() in ("+", "-"):
            value = value + self._product() if self._take() == "+" else value - self._product()
        return value

    def _product(self) -> Fraction:
        value = self._atom()
        while self._peek() in ("*", "/"):
            if self._take() == "*":
                value *= self._atom()
                continue
            divisor = self._atom()
            if divisor == 0:
                raise _Refused("divides by zero")
            value /= divisor
        return value

    def _atom(self) -> Fraction:
        token = self._take()
        if token.isdigit():
            self._numbers.append(int(token))
            return Fraction(int(token))
        if token != "(":
            raise _Refused(f"'{token}' stands where a number belongs" if token else "the expression breaks off")
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _Refused(f"parentheses are nested deeper than {MAX_DEPTH}")
        value = self._sum()
        if self._take() != ")":
            raise _Refused("a parenthesis stays open")
        self._depth -= 1
        return value

    def _peek(self) -> str:
        return self._tokens[self._next] if self._next < len(self._tokens) else ""

    def _take(self) -> str:
        token = self._peek()
        self._next += 1
        return token


def _listed(numbers: list[int]) -> str:
    return " ".join(map(str, numbers)) or "no number"


def _quote(text: str, limit: int = 60) -> str:
    return repr(text if len(text) <= limit else text[:limit] + "...")
