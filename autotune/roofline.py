"""A cost model that ranks configurations before they are measured: bytes, FLOPs, the cut, and what a wake-up costs.

    seconds = max(share * max(bytes / B1, flops / F1), bytes / Bp) + wake + pieces * piece

share = ceil(pieces / p) / pieces is the part of the slowest of p threads; B1, F1 are one thread's rates, Bp what all
threads together get from memory. The model only has to be right enough not to throw the best away: `prune` keeps
whatever is predicted within `slack` of the best, and benchmarks/tuner.py reports how often that lost the true best.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import ceil

from seedthink.autotune.cases import build, loop_clock
from seedthink.autotune.spaces import Space
from seedthink.kernels import selector
from seedthink.kernels.selector import Config, Key, Load

SLACK = 1.5


@dataclass(frozen=True, slots=True)
class Rates:
    """What this machine does, measured with our own kernels: bytes/s, FLOP/s of one thread, bytes/s of all, seconds."""

    bytes_one: float = 6e9
    flops_one: float = 4e10
    bytes_all: float = 12e9
    wake: float = 3e-6
    piece: float = 4e-8

    def as_dict(self) -> dict[str, float]:
        """For a table's file."""
        return asdict(self)


def seconds(space: Space, key: Key, config: Config, threads: int, rates: Rates) -> float:
    """Predicted seconds of one call."""
    values = space.complete(config.values, threads)
    work = space.work(key.dims, key.load, values)
    pieces, team = max(1.0, work.pieces), min(values["threads"], max(1, int(work.pieces)))
    alone = max(work.bytes / rates.bytes_one, work.flops / rates.flops_one)
    if team == 1:
        return alone + pieces * rates.piece
    share = ceil(pieces / team) / pieces
    return max(share * alone, work.bytes / rates.bytes_all) + rates.wake + pieces * rates.piece


def prune(
    space: Space,
    key: Key,
    configs: Sequence[Config],
    threads: int,
    rates: Rates,
    slack: float = SLACK,
    most: int | None = None,
) -> list[Config]:
    """Configurations within `slack` of the best prediction, best first, at most `most`; the built-in one always."""
    cost = {config.name: seconds(space, key, config, threads, rates) for config in configs}
    bound = slack * min(cost.values())
    kept = sorted((c for c in configs if cost[c.name] <= bound), key=lambda config: cost[config.name])[:most]
    return kept if any(not config.values for config in kept) else [*kept[: most and most - 1], configs[0]]


def measure(threads: int) -> Rates:
    """Measure this machine in well under a second: a product, and norms of many rows and of one."""
    product = Key("linear", "float32", (512, 512, 0, 0, 0), Load(256))
    large, tiny = Key("norm", "float32", (1024,), Load(2048)), Key("norm", "float32", (16,), Load(2))
    flops_one = 2 * 256 * 512 * 512 / _least(product, {"threads": 1})
    moved = 8.0 * 2048 * 1024
    bytes_one, bytes_all = moved / _least(large, {"threads": 1}), moved / _least(large, {})
    inline, woken = _least(tiny, {"threads": 1}), _least(tiny, {"grain": 1})
    wake = max(1e-7, woken - inline) if threads > 1 else 0.0
    return Rates(bytes_one, flops_one, bytes_all, wake)


def _least(key: Key, values: dict[str, int]) -> float:
    case, clock = build(key), loop_clock(key.op)
    before = selector.applied(key.op)
    selector.apply(key.op, values)
    try:
        return min(clock(case.run, 3) for _ in range(5))
    finally:
        selector.apply(key.op, before)
