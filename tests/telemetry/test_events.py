"""Events and spans."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedthink.telemetry.events import Events
from seedthink.telemetry.jsonl import read_lines


def test_spans_of_one_name_add_up_until_they_are_taken(tmp_path: Path) -> None:
    events = Events(tmp_path, "rollout-0")
    events.step = 7
    with events.span("gen"):
        pass
    with events.span("gen", sequences=3):
        pass
    taken = events.take()
    rows = read_lines(tmp_path / "rollout-0.jsonl")
    assert set(taken) == {"timing_s/gen"} and taken["timing_s/gen"] > 0 and events.take() == {}
    assert taken["timing_s/gen"] == pytest.approx(sum(row["seconds"] for row in rows), abs=1e-5)
    assert [(row["event"], row["name"], row["step"], row["process"]) for row in rows] == [
        ("span", "gen", 7, "rollout-0")
    ] * 2
    assert rows[1]["sequences"] == 3


def test_a_span_that_fails_is_recorded_with_the_error(tmp_path: Path) -> None:
    events = Events(tmp_path, "controller")
    with pytest.raises(KeyError), events.span("reward"):
        raise KeyError("x")
    assert read_lines(tmp_path / "controller.jsonl")[0]["error"] == "KeyError"
    assert "timing_s/reward" in events.take()
