"""The offline search: for each operation and load, prune, check, time in turns, and adopt only what is surely faster.

    for each (op, load): configurations -> roofline prune -> bits checked -> screened in few turns
                         -> the fastest against the built-in one in many turns -> adopted if outside noise and > 1 %

The screening chooses a candidate and the duel judges it on fresh measurements: choosing and judging on the same samples
would adopt luck. A configuration whose output is wrong is reported and never timed.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from seedthink.autotune.cases import Case, Outputs, build, error_of, loop_clock, same_bits
from seedthink.autotune.evidence import is_faster, p_value
from seedthink.autotune.roofline import Rates, prune
from seedthink.autotune.spaces import SPACES, ModelShape, Space
from seedthink.autotune.table import Entry
from seedthink.autotune.timing import Paired, paired_seconds, spread
from seedthink.kernels import selector
from seedthink.kernels.selector import BUILT_IN, EXACT, Config, Key, Load

SCREEN_TURNS, DUEL_TURNS = 7, 41
SAMPLE_SECONDS, SIDE_SECONDS = 0.002, 1.0
REST_SECONDS = 0.0005
CHECKED_TOKENS = 2048  # the float64 reference is asked up to this many rows; bits are compared at every size
log = logging.getLogger("seedthink.autotune")

TOKENS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
IMBALANCE = (1.0, 4.0)
FILL = (0.125, 0.625)


@dataclass(frozen=True, slots=True)
class Found:
    """What the search says of one point. `entry` None: it could not be measured, and `note` says why."""

    key: Key
    entry: Entry | None
    note: str
    seconds: float


def loads(space: Space) -> list[Load]:
    """The points of a space's load that the search measures; learning steps have many rows, so they begin at 256."""
    tokens = [t for t in TOKENS if space.phase not in ("learn", "credit") or t >= 256]
    if space.phase == "generate":
        tokens = [t for t in tokens if t <= 512]
    return [
        Load(rows, imbalance, fill)
        for imbalance in (IMBALANCE if "imbalance" in space.loads else (1.0,))
        for fill in (FILL if "cache_fill" in space.loads else (0.0,))
        for rows in tokens
    ]


def points(shape: ModelShape, dtype: str, ops: Sequence[str]) -> Iterator[Key]:
    """Every point of the named operations that a model of this shape has, the operations in turns.

    In turns, because a budget may end the search early: then every operation has had its share.
    """
    queues = [
        [space.key(shape, dtype, load) for load in loads(space)]
        for space in map(SPACES.__getitem__, ops)
        if space.relevant(shape)
    ]
    for place in range(max(map(len, queues), default=0)):
        yield from (queue[place] for queue in queues if place < len(queue))


def search(
    keys: Sequence[Key],
    threads: int,
    rates: Rates,
    sources: Mapping[str, str],
    *,
    budget_seconds: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Found]:
    """Measure points one after the other until the budget is used up; launch settings are built in afterwards."""
    began = clock()
    for key in keys:
        if clock() - began >= budget_seconds:
            return
        point = clock()
        try:
            entry, note = tune(key, threads, rates, sources.get(key.op, ""))
        finally:
            selector.apply(key.op, {})
        yield Found(key, entry, note, clock() - point)


def tune(key: Key, threads: int, rates: Rates, sources: str) -> tuple[Entry | None, str]:
    """The entry of one point, and what there is to say about it."""
    space, case = SPACES[key.op], build(key)
    configs = prune(space, key, space.configs(threads, key.load.tokens), threads, rates)
    right, wrong = checked(case, [BUILT_IN, *(config for config in configs if config.values)])
    if not right:
        return None, f"FAIL: {wrong[0]}"
    best = screened(case, right) if len(right) > 1 else BUILT_IN
    paired = timed(case, [BUILT_IN, best] if best.values else [BUILT_IN], DUEL_TURNS)
    ratios = [math.log(ratio) for ratio in paired.ratios(best.name, BUILT_IN.name)] if best.values else []
    adopted = best if is_faster(ratios) else BUILT_IN
    entry = _entry(key, adopted, paired, p_value(ratios), sources)
    if wrong:
        return entry, f"left out: {'; '.join(wrong)}"
    return entry, ""


def checked(case: Case, configs: Sequence[Config]) -> tuple[list[Config], list[str]]:
    """(configurations whose output is right, what is wrong with the others).

    The built-in output must agree with the float64 reference; every other one of its numerics class must have its bits.
    """
    selector.apply(case.key.op, BUILT_IN.values)
    expected = case.run()
    if case.key.load.tokens <= CHECKED_TOKENS:
        error = error_of(expected, case.reference())
        if not error <= case.tolerance:
            return [], [f"{case.key.op} built-in: error {error:.2g} is above {case.tolerance:.2g}"]
    right, wrong = [BUILT_IN], []
    for config in configs:
        if not config.values:
            continue
        selector.apply(case.key.op, config.values)
        problem = _problem(config, case.run(), expected, case.tolerance)
        if problem:
            wrong.append(f"{case.key.op} {config.name}: {problem}")
        else:
            right.append(config)
    selector.apply(case.key.op, BUILT_IN.values)
    return right, wrong


def _problem(config: Config, found: Outputs, expected: Outputs, tolerance: float) -> str:
    if config.numerics == EXACT:
        return "" if same_bits(found, expected) else "other bits than the built-in configuration"
    error = error_of(found, expected)
    return "" if error <= tolerance else f"error {error:.2g} is above {tolerance:.2g}"


def screened(case: Case, configs: Sequence[Config]) -> Config:
    """The configuration with the least median ratio to the built-in one, in few turns."""
    paired = timed(case, configs, SCREEN_TURNS)
    return min(configs, key=lambda c: statistics.median(paired.ratios(c.name, BUILT_IN.name)))


def timed(case: Case, configs: Sequence[Config], turns: int) -> Paired:
    """Seconds of the operation's loops under each configuration, in turns."""

    def side(config: Config) -> Callable[[], object]:
        def run() -> object:
            selector.apply(case.key.op, config.values)
            return case.run()

        return run

    clock = loop_clock(case.key.op, lambda: time.sleep(REST_SECONDS))
    sides = {config.name: side(config) for config in configs}
    return paired_seconds(sides, turns, sample_seconds=SAMPLE_SECONDS, side_seconds=SIDE_SECONDS, clock=clock)


def _entry(key: Key, adopted: Config, paired: Paired, chance: float, sources: str) -> Entry:
    samples = paired.samples(adopted.name)
    middle = spread(samples)
    return Entry(
        op=key.op,
        dtype=key.dtype,
        dims=key.dims,
        load=key.load,
        values=adopted.values,
        numerics=adopted.numerics,
        seconds=middle.median,
        p20=middle.p20,
        p80=middle.p80,
        repeats=len(samples),
        built_in_seconds=paired.spread(BUILT_IN.name).median,
        p_value=chance,
        sources=sources,
    )


def in_words(found: Found) -> str:
    """One line for the terminal."""
    load = found.key.load
    point = f"{found.key.op:13} {'x'.join(map(str, found.key.dims)):>22} T={load.tokens:<5}"
    if load.imbalance != 1.0:
        point += f" imbalance {load.imbalance:g}"
    if load.cache_fill:
        point += f" fill {load.cache_fill:g}"
    if found.entry is None:
        return f"{point} {found.note}"
    entry = found.entry
    gain = entry.built_in_seconds / entry.seconds - 1
    verdict = f"{entry.config.name}: {gain:+.1%}" if entry.values else "built-in stays"
    note = f" ({found.note})" if found.note else ""
    return f"{point} {entry.built_in_seconds * 1e6:9.1f} us  {verdict}{note}"


def facts(rates: Rates, command: str, environment: Mapping[str, Any]) -> dict[str, Any]:
    """What stands in a table's head besides the identity."""
    return {"command": command, "rates": rates.as_dict(), "environment": dict(environment), "turns": DUEL_TURNS}
