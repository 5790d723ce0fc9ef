"""Metrics typed at birth, so that reducing them over micro-batches and ranks is exact.

A `Mean` carries its total and its count: the mean of a split batch is the mean of the whole, however it was split. A
loss that was already divided by a global count is a `Sum`. Merging is associative and commutative up to float rounding,
except for `Last`, which keeps the later value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from typing import NamedTuple


class Mean(NamedTuple):
    """A weighted mean: `total` over `count` entries; nan where nothing was counted."""

    total: float
    count: float  # type: ignore[assignment]  # shadows tuple.count, which nobody calls on a metric


class Max(NamedTuple):
    """The largest value seen."""

    value: float


class Sum(NamedTuple):
    """A plain sum, also of terms that were divided by a global count before."""

    value: float


class Last(NamedTuple):
    """The newest value: a learning rate, a version."""

    value: float


Metric = Mean | Max | Sum | Last


def merge(into: MutableMapping[str, Metric], found: Mapping[str, Metric]) -> None:
    """Adds the metrics of one more micro-batch or rank to `into`. A name keeps its kind (TypeError otherwise)."""
    for name, new in found.items():
        into[name] = _joined(name, into[name], new) if name in into else new


def reduce(metrics: Mapping[str, Metric]) -> dict[str, float]:
    """The plain numbers behind metrics."""
    return {name: _number(metric) for name, metric in metrics.items()}


def _joined(name: str, old: Metric, new: Metric) -> Metric:
    match old, new:
        case Mean(), Mean():
            return Mean(old.total + new.total, old.count + new.count)
        case Max(), Max():
            return Max(max(old.value, new.value))
        case Sum(), Sum():
            return Sum(old.value + new.value)
        case Last(), Last():
            return new
    raise TypeError(f"metric '{name}' was a {type(old).__name__} and is now a {type(new).__name__}")


def _number(metric: Metric) -> float:
    if isinstance(metric, Mean):
        return metric.total / metric.count if metric.count else math.nan
    return metric.value
