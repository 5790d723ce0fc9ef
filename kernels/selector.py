"""What a kernel asks of a tuner and what it gets, and the launch settings that hold in this process.

Kernels never import the tuner: they ask `choose`, which gives the built-in configuration until a program installs a
selector (the engine's worker does). Launch settings of the CPU kernels (threads, grain, block: csrc/common/tuning.h)
are pushed instead of asked for: `apply` sets them between two steps, and no call in between pays for a question.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol

from seedthink import _C

EXACT = "exact"


class Load(NamedTuple):
    """What changes from step to step: rows of the step, largest expert's rows over the mean, share of KV pages used."""

    tokens: int
    imbalance: float = 1.0
    cache_fill: float = 0.0


class Key(NamedTuple):
    """One question: operation, dtype of its operands, sizes that stay (in the order of its search space), load."""

    op: str
    dtype: str
    dims: tuple[int, ...]
    load: Load


class Config(NamedTuple):
    """One answer. `values` are the kernel's parameters by name; 0, or no entry, means the built-in value.

    Configurations of one `numerics` class give the same bits. "exact" is the class of the built-in configuration.
    """

    name: str
    values: Mapping[str, int]
    numerics: str = EXACT


BUILT_IN = Config("built-in", {})


class Selector(Protocol):
    """Who answers. Called on the way to a launch: it must not block, and may not take longer than 2 microseconds."""

    def choose(self, key: Key) -> Config:
        """The configuration to use for this key now."""
        ...


class BuiltIn:
    """The selector of a process that has installed none."""

    def choose(self, key: Key) -> Config:
        """The built-in configuration, whatever the key."""
        return BUILT_IN


_installed: Selector = BuiltIn()


def install(selector: Selector | None) -> None:
    """Ask `selector` from now on; None goes back to the built-in configurations, launch settings included."""
    global _installed
    _installed = BuiltIn() if selector is None else selector
    if selector is None:
        reset()


def installed() -> Selector:
    """The selector that answers now."""
    return _installed


def choose(key: Key) -> Config:
    """The installed selector's answer."""
    return _installed.choose(key)


def operations() -> list[str]:
    """Names of the CPU operations that have launch settings."""
    return sorted(_C.tuning())


def apply(op: str, values: Mapping[str, int]) -> None:
    """Set an operation's launch settings for the calls to come. ValueError for an unknown operation or value."""
    _C.tune(op, values.get("threads", 0), values.get("grain", 0), values.get("block", 0))


def applied(op: str) -> dict[str, int]:
    """An operation's launch settings that are not built in."""
    found = dict(zip(("threads", "grain", "block"), _C.tuning()[op], strict=True))
    return {name: value for name, value in found.items() if value}


def reset() -> None:
    """Built-in launch settings everywhere, and no operation watched."""
    for op in operations():
        apply(op, {})
        _C.watch(op, False)


def watch(ops: Iterable[str], on: bool) -> None:
    """Start or stop to time the loops of operations; costs a call under 0.1 microseconds while it is on."""
    for op in ops:
        _C.watch(op, on)


def watched(op: str) -> tuple[int, float]:
    """(loops, seconds) that an operation has spent while watched since the last question."""
    loops, seconds = _C.watched(op)
    return int(loops), float(seconds)


def imbalance() -> float:
    """Rows of the largest expert over the mean in the experts' last call; 1.0 before the first."""
    return float(_C.imbalance())


def source_hash(families: Iterable[str]) -> str:
    """A name for the native sources of these operation families; another build of the same sources has the same."""
    hashes = dict(part.split("=") for part in _C.build_info()["sources"].split(",") if part)
    return "-".join(hashes.get(family, "unknown") for family in families)
