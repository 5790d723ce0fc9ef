"""The line per step."""

from __future__ import annotations

import io

import pytest

from seedthink.telemetry.terminal import BARS, Terminal, colourful, duration, fancy, line, sparkline


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


METRICS = {"critic/score/mean": 0.6125, "response_length/mean": 84.2, "actor/entropy": 0.7, "actor/lr": 1e-3}


def test_without_a_terminal_each_step_is_one_plain_line() -> None:
    stream = io.StringIO()
    with Terminal("rl", 400, stream=stream) as view:
        view.say("resumed step 136 of 400")
        view.step(137, METRICS)
        view.warn("truncated 11 % of answers")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "resumed step 136 of 400" and lines[2] == "! truncated 11 % of answers"
    assert lines[1].startswith("rl step 137/400  34 %  eta ")
    assert lines[1].endswith("score 0.613  length 84  entropy 0.700") or "score 0.612" in lines[1]
    assert "\x1b" not in stream.getvalue()


def test_a_stage_before_counts_its_own_steps() -> None:
    stream = io.StringIO()
    with Terminal("rl", 400, stream=stream) as view:
        view.step(1, METRICS, "value", 40)
        view.step(1, METRICS)
    first, second = stream.getvalue().splitlines()
    assert first.startswith("value step  1/40   2 %") and second.startswith("rl step   1/400")


def test_steps_faster_than_a_line_a_second_share_lines_but_the_last_step_has_its_own() -> None:
    stream, now = io.StringIO(), [0.0]
    with Terminal("sft", 10, stream=stream, clock=lambda: now[0]) as view:
        for step in range(1, 11):  # at 0.0, 0.4, ... 3.6 seconds
            view.step(step, METRICS | ({"critic/vf_explained_var_held_out": 0.5} if step == 3 else {}))
            now[0] += 0.4
    lines = stream.getvalue().splitlines()
    assert [text.split("/")[0] for text in lines] == ["sft step  1", "sft step  4", "sft step  7", "sft step 10"]
    assert ["held-out 0.50" in text for text in lines] == [False, True, False, False]


def test_a_health_note_is_shown_once() -> None:
    stream = io.StringIO()
    with Terminal("rl", 9, stream=stream) as view:
        for step in (1, 2, 3):
            view.step(step, METRICS | {"response_length/clip_ratio": 0.5 * (step > 1)})
    warnings = [text for text in stream.getvalue().splitlines() if text.startswith("!")]
    assert warnings == ["! step 2: truncated 50 % of answers at the limit in rollout.max_tokens"]


def test_verbose_shows_more_of_the_same_step() -> None:
    assert "lr 1.00e-03" in line(METRICS, verbose=True) and "lr" not in line(METRICS)
    assert line({}) == ""


def test_a_bar_needs_a_terminal_and_colour_needs_no_objection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert fancy(Tty()) and colourful(Tty()) and not fancy(io.StringIO())
    monkeypatch.setenv("NO_COLOR", "1")
    assert fancy(Tty()) and not colourful(Tty())
    monkeypatch.setenv("TERM", "dumb")
    assert not fancy(Tty())


def test_on_a_terminal_the_bar_carries_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    stream = Tty()
    with Terminal("rl", 10, stream=stream) as view:
        view.step(1, METRICS)
        view.warn("watch [bold]this[/bold]")
        view.step(10, METRICS)
    assert "10/10" in stream.getvalue() and "score 0.61" in stream.getvalue()
    assert "watch [bold]this[/bold]" in stream.getvalue()


def test_a_sparkline_spans_lowest_to_highest() -> None:
    assert sparkline([0.0, 1.0]) == BARS[0] + BARS[7]
    assert sparkline([3.0, 3.0, 3.0]) == BARS[0] * 3
    assert len(sparkline(list(range(1000)), width=24)) == 24 and sparkline([]) == ""


def test_durations_read_at_a_glance() -> None:
    assert [duration(seconds) for seconds in (0, 59, 185, 4320)] == ["0s", "59s", "3m05", "1h12"]
