"""Replays: sums by hand, the oracle that knows each load, and a selector judged against it."""

from __future__ import annotations

import random

import pytest

from seedthink.autotune.online import OnlineSelector
from seedthink.autotune.replay import Cell, Column, Slowdown, replay, total
from seedthink.kernels.selector import BUILT_IN, Config, Key, Load

FEW, MANY = Load(8), Load(1024)
LEFT = Config("left", {"grain": 1})
KEY = Key("norm", "float32", (128,), FEW)


def column(few: dict[str, float], many: dict[str, float], noise: float = 0.0) -> Column:
    draw = random.Random(0)

    def cell(seconds: float) -> Cell:
        return Cell.of([seconds * draw.lognormvariate(0.0, noise) for _ in range(40)])

    cells = {load: {name: cell(s) for name, s in row.items()} for load, row in ((FEW, few), (MANY, many))}
    return Column(KEY, {BUILT_IN.name: BUILT_IN, "left": LEFT}, cells)


def selector() -> OnlineSelector:
    return OnlineSelector(lambda key: [BUILT_IN, LEFT], lambda key, config: 1e-6, {}, clock=lambda: 0.0)


CROSSED = column({"built-in": 2e-6, "left": 1e-6}, {"built-in": 3e-6, "left": 4e-6})


def test_the_sums_by_hand() -> None:
    found = replay([CROSSED], {"norm": [FEW, MANY, MANY]}, selector())["norm"]
    assert found.online == pytest.approx(8e-6)  # three steps: nothing is explored yet
    assert found.built_in == pytest.approx(8e-6)
    assert found.oracle == pytest.approx(1e-6 + 3e-6 + 3e-6)
    assert found.static == pytest.approx({"built-in": 8e-6, "left": 9e-6})
    assert found.best_static == pytest.approx(8e-6)
    assert found.regret == pytest.approx(1 / 7) and found.gain == pytest.approx(0.0)


def test_samples_to_decide_by_are_not_those_that_are_charged() -> None:
    cell = Cell.of([1.0, 9.0, 1.0, 9.0])
    assert (cell.seen, cell.median, cell.charged) == ([1.0, 1.0], 1.0, 9.0)


def test_a_slowdown_holds_from_its_step_on() -> None:
    trace = {"norm": [MANY] * 4}
    found = replay([CROSSED], trace, selector(), slowdowns={"norm": Slowdown(2, "built-in", 2.0)})["norm"]
    assert found.built_in == pytest.approx(3e-6 * 2 + 6e-6 * 2)
    assert found.oracle == pytest.approx(3e-6 * 2 + 4e-6 * 2)


def test_the_selector_comes_close_to_the_oracle_and_beats_every_single_choice() -> None:
    crossed = column({"built-in": 2e-6, "left": 1e-6}, {"built-in": 3e-6, "left": 4e-6}, noise=0.05)
    trace = {"norm": [FEW if step // 50 % 2 else MANY for step in range(20000)]}
    found = replay([crossed], trace, selector())["norm"]
    assert found.regret < 0.05 and found.gain > 0.1
    assert found.lost / found.online < 0.01
    assert total([found, found]).regret == pytest.approx(found.regret)
