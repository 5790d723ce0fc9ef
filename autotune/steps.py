"""Tunes a running program's steps: before a step the selector decides for each operation, after it learns from a few.

    with tuner.step("generate", tokens, cache_fill):
        ...the step...

Launch settings are set between steps, so kernels pay nothing for them. The time of an operation is what its own loops
take in the step, all layers together, measured inside the library in the few steps that the selector asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from seedthink.autotune.online import Decision
from seedthink.autotune.spaces import SPACES, ModelShape, Space
from seedthink.kernels import selector
from seedthink.kernels.selector import Config, Key, Load


class Around(Protocol):
    """What a step is run inside of: phase ("generate" or "learn"), rows, share of the KV pages in use."""

    def __call__(self, phase: str, tokens: int, cache_fill: float = 0.0) -> AbstractContextManager[None]:
        """Enter it, run the step, leave it."""
        ...


def untuned(phase: str, tokens: int, cache_fill: float = 0.0) -> AbstractContextManager[None]:
    """A step under whatever settings there are."""
    return nullcontext()


class Decider(Protocol):
    """What a StepTuner asks: `OnlineSelector`, or `Fixed` over a table."""

    def decide(self, key: Key) -> Decision:
        """The configuration to run, and whether to time it."""
        ...

    def observe(self, key: Key, config: Config, seconds: float) -> None:
        """What one timed step took."""
        ...


class Fixed:
    """Always the answer of another selector (a table), never timed."""

    def __init__(self, chosen: selector.Selector) -> None:
        self._chosen = chosen

    def choose(self, key: Key) -> Config:
        """The table's configuration."""
        return self._chosen.choose(key)

    def decide(self, key: Key) -> Decision:
        """The table's configuration, not timed."""
        return Decision(self._chosen.choose(key), False)

    def observe(self, key: Key, config: Config, seconds: float) -> None:
        """Nothing to learn."""


class StepTuner:
    """Decides for the operations of one model. Steps do not nest."""

    def __init__(self, decider: Decider, shape: ModelShape, dtype: str) -> None:
        """dtype: "float32" or "bfloat16", of the products' operands."""
        self._decider, self._shape, self._dtype = decider, shape, dtype
        spaces = [space for space in SPACES.values() if space.relevant(shape)]
        self._of: dict[str, Sequence[Space]] = {
            phase: [space for space in spaces if space.phase in (phase, "both")] for phase in ("generate", "learn")
        }
        self._set: dict[str, str] = {}

    @contextmanager
    def step(self, phase: str, tokens: int, cache_fill: float = 0.0) -> Iterator[None]:
        """One step of `tokens` rows; phase "generate" or "learn". `cache_fill`: share of the KV pages in use."""
        timed = self._begin(phase, Load(tokens, selector.imbalance(), cache_fill))
        try:
            yield
        finally:
            if timed:
                selector.watch([key.op for key, _ in timed], False)
        for key, config in timed:
            loops, seconds = selector.watched(key.op)
            if loops:
                self._decider.observe(key, config, seconds)

    def _begin(self, phase: str, load: Load) -> list[tuple[Key, Config]]:
        timed = []
        for space in self._of[phase]:
            key = Key(space.op, self._dtype, space.dims(self._shape), load)
            config, measure = self._decider.decide(key)
            if self._set.get(space.op, selector.BUILT_IN.name) != config.name:
                selector.apply(space.op, config.values)
                self._set[space.op] = config.name
            if measure:
                selector.watched(space.op)
                timed.append((key, config))
        if timed:
            selector.watch([key.op for key, _ in timed], True)
        return timed
