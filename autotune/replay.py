"""Judges an online selector on recorded times: the whole matrix of configurations and loads is measured once, traces of
loads are replayed against it, and the selector is compared with oracles that know the matrix.

Every other sample of a cell is what deciders go by: the selector sees random ones of them, an oracle their median. The
median of the remaining samples is what each is charged. So noise misleads deciders as it does in life, and the oracle
does not look better than it is by choosing among many medians the one with the most luck.
"""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from seedthink.autotune.online import OnlineSelector
from seedthink.kernels.selector import BUILT_IN, Config, Key, Load


@dataclass(frozen=True, slots=True)
class Cell:
    """The times of one configuration at one load: samples to decide by, the seconds to charge, and their median."""

    seen: Sequence[float]
    charged: float
    median: float

    @classmethod
    def of(cls, samples: Sequence[float]) -> Cell:
        """Split samples, at least two."""
        return cls(samples[::2], statistics.median(samples[1::2]), statistics.median(samples[::2]))


@dataclass(frozen=True, slots=True)
class Column:
    """One operation of the matrix: its configurations, and their cells at each load. The key is of any load."""

    key: Key
    configs: Mapping[str, Config]
    cells: Mapping[Load, Mapping[str, Cell]]

    def best(self, load: Load) -> str:
        """The configuration that the samples to decide by call fastest at a load."""
        row = self.cells[load]
        return min(row, key=lambda name: row[name].median)


@dataclass(frozen=True, slots=True)
class Slowdown:
    """From a step on, one configuration takes `factor` times as long."""

    step: int
    config: str
    factor: float


@dataclass(slots=True)
class Outcome:
    """Seconds of one operation over a trace, under each way to choose. `lost` is what exploration cost."""

    online: float = 0.0
    oracle: float = 0.0
    built_in: float = 0.0
    start: float = 0.0
    lost: float = 0.0
    static: dict[str, float] = field(default_factory=dict)
    static_seen: dict[str, float] = field(default_factory=dict)

    @property
    def best_static(self) -> float:
        """Seconds of the one configuration that is best for the whole trace, known in hindsight."""
        return self.static[min(self.static_seen, key=lambda name: self.static_seen[name])]

    @property
    def regret(self) -> float:
        """Time above the oracle's, as a share of it."""
        return self.online / self.oracle - 1

    @property
    def gain(self) -> float:
        """Time saved against the best single configuration, as a share of that."""
        return 1 - self.online / self.best_static


def total(outcomes: Sequence[Outcome]) -> Outcome:
    """Outcomes of several operations as one; the best single configuration is chosen for each operation."""
    both = Outcome(static={"": sum(o.best_static for o in outcomes)}, static_seen={"": 0.0})
    for name in ("online", "oracle", "built_in", "start", "lost"):
        setattr(both, name, sum(getattr(o, name) for o in outcomes))
    return both


# How often each (slowdown in force, load, configuration that ran, incumbent) occurred.
Tally = Counter[tuple[Slowdown | None, Load, str, str]]


def replay(
    columns: Sequence[Column],
    traces: Mapping[str, Sequence[Load]],
    selector: OnlineSelector,
    start: Callable[[Key], Config] = lambda key: BUILT_IN,
    *,
    seed: int = 0,
    slowdowns: Mapping[str, Slowdown] | None = None,
) -> dict[str, Outcome]:
    """Outcome of each operation. `traces`: the loads of each, equally many; `start`: the selector's first choice."""
    draw, slow = random.Random(seed), slowdowns or {}
    tallies: dict[str, Tally] = {column.key.op: Counter() for column in columns}
    for step in range(len(next(iter(traces.values())))):
        for column in columns:
            op = column.key.op
            change = slow.get(op)
            slowed = change if change is not None and step >= change.step else None
            _step(column, traces[op][step], slowed, selector, draw, tallies[op])
    return {column.key.op: _outcome(column, tallies[column.key.op], start) for column in columns}


def _step(
    column: Column, load: Load, slowed: Slowdown | None, selector: OnlineSelector, draw: random.Random, tally: Tally
) -> None:
    key = column.key._replace(load=load)
    config, timed = selector.decide(key)
    tally[slowed, load, config.name, selector.site(key).incumbent.name] += 1
    if timed:
        factor = slowed.factor if slowed is not None and slowed.config == config.name else 1.0
        selector.observe(key, config, factor * draw.choice(column.cells[load][config.name].seen))


def _outcome(column: Column, tally: Tally, start: Callable[[Key], Config]) -> Outcome:
    outcome = Outcome(static=dict.fromkeys(column.configs, 0.0), static_seen=dict.fromkeys(column.configs, 0.0))
    for (slowed, load, chosen, incumbent), steps in tally.items():
        cells = column.cells[load]
        factor = {slowed.config: slowed.factor} if slowed is not None else {}
        truth = {name: steps * cell.charged * factor.get(name, 1.0) for name, cell in cells.items()}
        seen = {name: steps * cell.median * factor.get(name, 1.0) for name, cell in cells.items()}
        outcome.online += truth[chosen]
        outcome.lost += max(0.0, truth[chosen] - truth[incumbent])
        outcome.oracle += truth[min(seen, key=lambda name: seen[name])]
        outcome.built_in += truth[BUILT_IN.name]
        outcome.start += truth[start(column.key._replace(load=load)).name]
        for name in outcome.static:
            outcome.static[name] += truth[name]
            outcome.static_seen[name] += seen[name]
    return outcome
