"""Timing in turns: who is timed when, what is compared with what, and when a measurement is repeated."""

from __future__ import annotations

import time

import pytest

import seedthink.autotune.timing as timing
from seedthink.autotune.timing import Paired, Run, paired_seconds, spread


def scripted(seconds: dict[str, float]) -> tuple[dict[str, Run], timing.Clock, list[str]]:
    """Sides that do nothing, a clock that says how long they take, and the order in which it is asked."""
    asked: list[str] = []

    def side(name: str) -> Run:
        return lambda: name

    def clock(run: Run, calls: int) -> float:
        asked.append(str(run()))
        return seconds[asked[-1]]

    return {name: side(name) for name in seconds}, clock, asked


def test_the_spread_is_a_median_with_a_fifth_of_the_samples_on_either_side() -> None:
    found = spread([5.0, 1.0, 4.0, 2.0, 3.0, 6.0])
    assert (found.median, found.p20, found.p80) == (3.5, 2.0, 5.0)
    assert spread([7.0]).p20 == spread([7.0]).p80 == 7.0
    with pytest.raises(ValueError, match="samples"):
        spread([])


def test_every_turn_times_each_side_once() -> None:
    sides, clock, asked = scripted({"a": 1.0, "b": 2.0})
    found = paired_seconds(sides, 5, clock=clock)
    turns = asked[4:]  # after two calls of each
    assert [set(turns[at : at + 2]) for at in range(0, 10, 2)] == [{"a", "b"}] * 5
    assert found.samples("a") == [1.0] * 5 and found.ratios("b", "a") == [2.0] * 5


def test_the_order_inside_a_turn_changes() -> None:
    sides, clock, asked = scripted({"a": 1.0, "b": 1.0})
    paired_seconds(sides, 20, clock=clock)
    assert {tuple(asked[at : at + 2]) for at in range(4, 44, 2)} == {("a", "b"), ("b", "a")}


def test_a_slow_side_takes_part_in_fewer_turns_and_in_three_at_least() -> None:
    sides, clock, _ = scripted({"quick": 0.001, "slow": 0.5, "slower": 100.0})
    found = paired_seconds(sides, 12, clock=clock, side_seconds=6.0)
    assert [len(found.samples(name)) for name in sides] == [12, 6, 3]
    assert list(found.seconds["slower"]) == [0, 4, 8] and len(found.ratios("slower", "quick")) == 3


def test_a_ratio_divides_samples_of_the_same_turn() -> None:
    found = Paired({"ours": {0: 1.0, 1: 10.0, 2: 5.0}, "peer": {0: 2.0, 1: 20.0}}, 0.0)
    assert found.ratios("peer", "ours") == [2.0, 2.0]


def test_a_disturbed_measurement_is_repeated_and_the_quietest_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    sides, clock, asked = scripted({"a": 1.0})
    disturbance = iter([0.9, 0.3, 0.5])

    def used(run: Run) -> tuple[float, float]:
        run()
        return 1.0, next(disturbance)

    monkeypatch.setattr(timing, "used_elsewhere", used)
    found = paired_seconds(sides, 2, clock=clock, patience=2)
    assert found.cores_used_elsewhere == 0.3 and len(asked) == 2 + 3 * 2


def test_no_sides_and_no_turns_are_refused() -> None:
    with pytest.raises(ValueError, match="sides"):
        paired_seconds({}, 3)
    with pytest.raises(ValueError, match="repeats"):
        paired_seconds({"a": lambda: None}, 0)


def test_the_wall_clock_takes_the_mean_of_its_calls() -> None:
    calls: list[None] = []

    def run() -> None:
        calls.append(None)
        time.sleep(0.002)

    assert timing.wall_clock(run, 4) >= 0.002 and len(calls) == 5
