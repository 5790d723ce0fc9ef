"""Small worlds for the online selector: arms whose true times are known, with noise of a given size."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from seedthink.autotune.online import OnlineSelector, Policy
from seedthink.kernels.selector import BUILT_IN, Config, Key, Load

LEFT, RIGHT, OTHER_BITS = Config("left", {"grain": 1}), Config("right", {"grain": 2}), Config("bits", {"k": 2}, "split")
ARMS = (BUILT_IN, LEFT, RIGHT)
SECOND = 1e-6


def key(tokens: int = 64, op: str = "norm") -> Key:
    return Key(op, "float32", (128,), Load(tokens))


class World:
    """Runs steps: asks the selector, draws a time, tells it where it asked for it. Counts what happened."""

    def __init__(
        self,
        times: Callable[[int, Config, Key], float],
        *,
        arms: Sequence[Config] = ARMS,
        noise: float = 0.03,
        seed: int = 0,
        policy: Policy | None = None,
        **settings: Any,
    ) -> None:
        self.times, self.noise = times, random.Random(seed)
        self.deviation = noise
        self.events: list[Mapping[str, Any]] = []
        self.chosen: list[str] = []
        self.timed = 0
        self.selector = OnlineSelector(
            lambda _: arms,
            lambda asked, _: asked.load.tokens * SECOND,
            {},
            policy=policy,
            source=random.Random(seed + 1),
            clock=lambda: float(len(self.chosen)),
            note=self.events.append,
            **settings,
        )

    def run(self, steps: int, tokens: Callable[[int], int] = lambda step: 64) -> World:
        for _ in range(steps):
            step = len(self.chosen)
            asked = key(tokens(step))
            config, timed = self.selector.decide(asked)
            self.chosen.append(config.name)
            if timed:
                self.timed += 1
                seconds = self.times(step, config, asked) * asked.load.tokens * SECOND
                self.selector.observe(asked, config, seconds * self.noise.lognormvariate(0.0, self.deviation))
        return self

    def incumbent(self, tokens: int = 64) -> str:
        return self.selector.site(key(tokens)).incumbent.name

    def count(self, event: str) -> int:
        return sum(each["event"] == event for each in self.events)


def constant(**ratios: float) -> Callable[[int, Config, Key], float]:
    """Times relative to the built-in configuration's, by name."""
    return lambda step, config, asked: ratios.get(config.name, 1.0)
