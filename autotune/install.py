"""Puts a tuner together for a program: "table" runs what was measured for this device, "online" goes on learning."""

from __future__ import annotations

import atexit
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seedthink.autotune.device import Identity, identity, sources
from seedthink.autotune.learned import Learned, default_path
from seedthink.autotune.online import OnlineSelector
from seedthink.autotune.roofline import Rates, measure, prune, seconds
from seedthink.autotune.spaces import SPACES, ModelShape
from seedthink.autotune.steps import Fixed, StepTuner
from seedthink.autotune.table import Table, shipped
from seedthink.kernels import selector
from seedthink.kernels.selector import BUILT_IN, Config, Key
from seedthink.telemetry.jsonl import JsonLines

MOST_ARMS = 8
SAVE_SECONDS = 30.0
MATTERS = {op: space.loads for op, space in SPACES.items()}


def step_tuner(
    mode: str, shape: ModelShape, dtype: str, *, exact: bool = True, log: Path | None = None
) -> StepTuner | None:
    """The tuner of this process's steps; None for "off", and for "table" where this device has no table.

    mode: "off", "table" or "online". exact: never leave the numerics class of the built-in kernels. log: a folder for
    the decisions (tuner.jsonl). Installs the selector, so that kernels that ask get its answers too.
    """
    if mode == "off":
        return None
    here, built_from = identity(), sources()
    table = shipped(here, built_from)
    if mode == "table":
        if table is None:
            return None
        fixed = Fixed(table)
        selector.install(fixed)
        return StepTuner(fixed, shape, dtype)
    memory = Memory(Learned(default_path(here), here, built_from), log)
    atexit.register(memory.save)
    rates = Rates(**table.facts["rates"]) if table is not None else measure(here.threads)
    online = online_selector(here, table, rates, memory, exact=exact)
    selector.install(online)
    return StepTuner(online, shape, dtype)


def online_selector(
    here: Identity, table: Table | None, rates: Rates, memory: Memory, *, exact: bool = True
) -> OnlineSelector:
    """An online selector over the spaces of this module, that starts from a table and from what was learned before."""
    online = OnlineSelector(
        arms_of(here.threads, rates),
        expected_of(here.threads, rates),
        MATTERS,
        start=(lambda key: table.choose(key, BUILT_IN.numerics if exact else None))
        if table
        else (lambda key: BUILT_IN),
        learned=memory.load(),
        exact=exact,
        note=memory.note,
    )
    memory.attach(online)
    return online


def arms_of(threads: int, rates: Rates) -> Callable[[Key], Sequence[Config]]:
    """Candidates at a key: what the cost model leaves of the space, at most eight."""

    def arms(key: Key) -> Sequence[Config]:
        space = SPACES[key.op]
        return prune(space, key, space.configs(threads, key.load.tokens), threads, rates, most=MOST_ARMS)

    return arms


def expected_of(threads: int, rates: Rates) -> Callable[[Key, Config], float]:
    """Predicted seconds of a key under a configuration."""
    return lambda key, config: seconds(SPACES[key.op], key, config, threads, rates)


class Memory:
    """Writes decisions to a log, and what was learned to the device's file at most every half minute and at the end."""

    def __init__(self, learned: Learned, log: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._learned, self._clock, self._saved = learned, clock, clock()
        self._lines = JsonLines(log / "tuner.jsonl") if log is not None else None
        self._online: OnlineSelector | None = None

    def attach(self, online: OnlineSelector) -> None:
        """The selector whose knowledge is kept."""
        self._online = online

    def load(self) -> Mapping[str, Mapping[str, Any]]:
        """What was learned before."""
        return self._learned.load()

    def note(self, event: Mapping[str, Any]) -> None:
        """A decision was made."""
        if self._lines is not None:
            self._lines.append(event)
        if self._clock() - self._saved >= SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Merge what is known now into the device's file."""
        if self._online is not None:
            self._learned.merge(self._online.state())
        self._saved = self._clock()
