"""What a configuration field may hold, and where its documentation stands.

A field's type says its range (`Positive = Annotated[int, AtLeast(1)]`), so the loader and `config explain` speak from
one declaration. The sentence under a field is its documentation and names the unit. Sentences are read from the source
with `ast`, because Python keeps no docstring for an attribute.
"""

from __future__ import annotations

import ast
import inspect
from dataclasses import dataclass
from functools import cache
from math import inf
from typing import Annotated


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`; `above` leaves `low` itself out."""

    low: float = -inf
    high: float = inf
    above: bool = False

    def holds(self, value: float) -> bool:
        """Say whether `value` is allowed. NaN never is."""
        return (value > self.low if self.above else value >= self.low) and value <= self.high

    def __str__(self) -> str:
        if self.high < inf and self.low > -inf:
            return f"above {self.low:g}, up to {self.high:g}" if self.above else f"{self.low:g} to {self.high:g}"
        if self.low > -inf:
            return f"above {self.low:g}" if self.above else f"{self.low:g} or more"
        return f"at most {self.high:g}" if self.high < inf else "any number"


def AtLeast(low: float) -> Range:
    """Range from `low`, included, without an end."""
    return Range(low=low)


def Above(low: float) -> Range:
    """Range from `low`, left out, without an end."""
    return Range(low=low, above=True)


def Between(low: float, high: float) -> Range:
    """Range from `low` to `high`, both included."""
    return Range(low=low, high=high)


Count = Annotated[int, AtLeast(0)]
Positive = Annotated[int, AtLeast(1)]
Amount = Annotated[float, AtLeast(0)]
PositiveAmount = Annotated[float, Above(0)]
Fraction = Annotated[float, Between(0, 1)]
Share = Annotated[float, Range(0, 1, above=True)]


@cache
def field_docs(cls: type) -> dict[str, str]:
    """Map each field of a dataclass, inherited ones included, to the sentence under it ("" where there is none)."""
    docs: dict[str, str] = {}
    for owner in reversed(cls.__mro__):
        if "__dataclass_fields__" not in vars(owner):
            continue
        body = ast.parse(inspect.cleandoc("\n" + inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for here, after in zip(body.body, [*body.body[1:], None], strict=True):
            if isinstance(here, ast.AnnAssign) and isinstance(here.target, ast.Name):
                docs[here.target.id] = _sentence(after)
    return docs


def _sentence(node: ast.stmt | None) -> str:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""
