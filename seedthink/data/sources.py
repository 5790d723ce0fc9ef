"""Streams of prompts or examples with a cursor: `next(n)` draws, `state()` and `restore(state)` resume it exactly.

A `ShuffledSource` passes over its items in an order drawn anew for each epoch from (seed, epoch). A `MixedSource` draws
from several by weight: always from the one furthest behind its share, so proportions hold in every window, not only on
average. A state is JSON-able, and says which items it belongs to: a changed dataset is refused, not resumed wrongly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any, Generic, Protocol, TypeVar

from seedthink.errors import ConfigError, DataError
from seedthink.types import Prompt


class Identified(Protocol):
    """Anything with an id: a `Prompt`, an `SftExample`."""

    @property
    def id(self) -> str:
        """Stable and unique within its dataset."""
        ...


Item = TypeVar("Item", bound=Identified)
ItemOut = TypeVar("ItemOut", bound=Identified, covariant=True)


class Source(Protocol[ItemOut]):
    """An endless stream with a cursor."""

    def next(self, count: int) -> Sequence[ItemOut]:
        """The next `count` items."""
        ...

    def state(self) -> dict[str, Any]:
        """Where the stream stands, JSON-able."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state. Raises `DataError` when it belongs to other items, weights or another seed."""
        ...


PromptSource = Source[Prompt]


class ShuffledSource(Generic[Item]):
    """Endless passes over a list of items, in a new order each epoch; with `shuffle=False` in the list's order."""

    def __init__(self, items: Sequence[Item], *, seed: int, shuffle: bool = True, name: str = "dataset") -> None:
        """Raises `DataError` when there are no items; `name` names the source in errors."""
        if not items:
            raise DataError(f"{name} holds nothing to draw from")
        self.items = items
        self.name = name
        self._seed, self._shuffle = seed, shuffle
        ids = hashlib.sha256("\n".join(item.id for item in items).encode()).hexdigest()[:16]
        self._fingerprint = f"{ids}/{len(items)}/{seed if shuffle else 'unshuffled'}"
        self._epoch, self._position = 0, 0
        self._order = self._draw_order()

    @property
    def epoch(self) -> float:
        """Passes made over the items, with the fraction of the current one."""
        return self._epoch + self._position / len(self.items)

    def next(self, count: int) -> list[Item]:
        """The next `count` items, across the end of an epoch if need be."""
        drawn = []
        for _ in range(count):
            if self._position == len(self.items):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._draw_order()
            drawn.append(self.items[self._order[self._position]])
            self._position += 1
        return drawn

    def state(self) -> dict[str, Any]:
        """Epoch, position and the fingerprint of the items."""
        return {"epoch": self._epoch, "position": self._position, "fingerprint": self._fingerprint}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same items and seed."""
        if state["fingerprint"] != self._fingerprint:
            raise DataError(
                f"{self.name} is not what the checkpoint was made with (items/count/seed {state['fingerprint']}, now "
                f"{self._fingerprint}); bring the data and seed back, or start a new run"
            )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._order = self._draw_order()

    def _draw_order(self) -> Sequence[int]:
        order = list(range(len(self.items)))
        if self._shuffle:
            Random(f"{self._seed}/{self._epoch}").shuffle(order)
        return order


class MixedSource(Generic[Item]):
    """Several sources drawn by weight: after n draws, each has given its share of n to within one item."""

    def __init__(self, sources: Mapping[str, Source[Item]], weights: Mapping[str, float]) -> None:
        """`weights` has the sources' names and positive numbers. Raises `ConfigError` otherwise."""
        if set(sources) != set(weights):
            raise ConfigError(f"sources {sorted(sources)} and their weights {sorted(weights)} differ in names")
        for name, weight in weights.items():
            if not weight > 0:
                raise ConfigError(f"the weight of source '{name}' is {weight}; it must be above 0 (or leave it out)")
        total = sum(weights.values())
        self._sources = dict(sources)
        self._shares = {name: weights[name] / total for name in sources}
        self._taken = dict.fromkeys(sources, 0)

    def next(self, count: int) -> list[Item]:
        """The next `count` items, each from the source furthest behind its share (ties: first named)."""
        drawn: list[Item] = []
        for _ in range(count):
            ahead = sum(self._taken.values()) + 1
            name = max(self._shares, key=lambda each: self._shares[each] * ahead - self._taken[each])
            self._taken[name] += 1
            drawn += self._sources[name].next(1)
        return drawn

    def state(self) -> dict[str, Any]:
        """How many came from each source, and the state of each."""
        return {
            "taken": dict(self._taken),
            "shares": dict(self._shares),
            "sources": {name: source.state() for name, source in self._sources.items()},
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from a state of the same sources and weights."""
        if dict(state["shares"]) != self._shares:
            raise DataError(
                f"the mixture was {dict(state['shares'])} when the checkpoint was made and is {self._shares} now; "
                "bring sources and weights back, or start a new run"
            )
        for name, source in self._sources.items():
            source.restore(state["sources"][name])
        self._taken = {name: int(state["taken"][name]) for name in self._sources}
