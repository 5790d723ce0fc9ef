"""Charts as SVG: scales, ticks, and drawings that are well-formed XML."""

from __future__ import annotations

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from seedthink.report.svg import (
    Frame,
    Series,
    interval_chart,
    line_chart,
    number,
    percent,
    smooth,
    stacked_bars,
    thin,
    ticks,
)


def test_ticks_are_round_and_cover_the_range() -> None:
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(0, 83) == [0, 25, 50, 75, 100]
    assert ticks(-0.013, 0.021) == [-0.02, -0.01, 0, 0.01, 0.02, 0.03]
    assert ticks(0, 0) == [0, 0.25, 0.5, 0.75, 1]
    assert ticks(5, 5)[0] <= 5 <= ticks(5, 5)[-1] and len(ticks(5, 5)) > 1


def test_a_frame_puts_the_ends_of_the_range_at_its_edges() -> None:
    frame = Frame(0, 10, 0, 1)
    assert frame.x(0) < frame.x(10) and frame.y(1) < frame.y(0)
    assert frame.x(5) == pytest.approx((frame.x(0) + frame.x(10)) / 2)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.123456, "0.123"),
        (5000, "5k"),
        (14_930, "14.9k"),
        (2_500_000, "2.5M"),
        (0.00002, "2e-5"),
        (1234, "1234"),
    ],
)
def test_numbers_are_written_short(value: float, text: str) -> None:
    assert number(value) == text


def test_smoothing_keeps_a_straight_line_and_flattens_noise() -> None:
    line = [(float(x), 2.0 * x) for x in range(9)]
    assert smooth(line, 3)[1:-1] == line[1:-1]
    assert smooth([(0, 0.0), (1, 3.0), (2, 0.0)], 3)[1] == (1, 1.0)


def test_thinning_averages_neighbours() -> None:
    points = [(float(x), float(x)) for x in range(1000)]
    few = thin(points, 10)
    assert len(few) == 10 and few[0] == (49.5, 49.5)
    assert thin(points[:5], 10) == points[:5]


def test_a_line_chart_is_well_formed_and_says_its_values() -> None:
    text = line_chart(
        [Series("a & <b>", [(1, 0.2), (2, 0.4)], bars=[(0.1, 0.3), (0.3, 0.5)], dots=True)], shown=percent
    )
    root = ElementTree.fromstring(text)
    titles = [node.text for node in root.iter("title")]
    assert titles == ["a & <b>: 20 % at step 1", "a & <b>: 40 % at step 2"]
    assert len([node for node in root.iter("line") if "bar" in node.attrib["class"]]) == 2
    assert "script" not in text and line_chart([Series("empty", [])]) == ""


def test_the_higher_value_is_drawn_higher() -> None:
    root = ElementTree.fromstring(line_chart([Series("a", [(1, 0.0), (2, 1.0)], dots=True)]))
    low, high = [float(node.attrib["cy"]) for node in root.iter("circle")]
    assert high < low


def test_labels_of_lines_that_end_together_do_not_overlap() -> None:
    lines = [Series(name, [(1, 0.5), (2, 0.0)]) for name in ("a", "b", "c")]
    root = ElementTree.fromstring(line_chart(lines))
    heights = [float(node.attrib["y"]) for node in root.iter("text") if "end-label" in node.attrib["class"]]
    assert heights == sorted(heights) and all(b - a >= 12 for a, b in pairwise(heights)) and heights[-1] <= 190


def test_stacked_bars_stand_on_each_other() -> None:
    root = ElementTree.fromstring(stacked_bars(["gen", "learn"], [(1, [1.0, 2.0])]))
    first, second = [(float(node.attrib["y"]), float(node.attrib["height"])) for node in root.iter("rect")]
    assert second[0] + second[1] == pytest.approx(first[0], abs=0.11) and second[1] == pytest.approx(
        2 * first[1], abs=0.2
    )
    assert stacked_bars(["gen"], []) == ""


def test_intervals_show_before_after_and_the_gain() -> None:
    text = interval_chart([("all", (0.4, 0.35, 0.45), (0.9, 0.88, 0.92)), ("new", None, (0.5, 0.4, 0.6))])
    assert ElementTree.fromstring(text) is not None
    assert "+50.0" in text and "all before: 40 % (35.0 to 45.0)" in text and text.count("before") == 2


def test_small_shares_keep_their_digits() -> None:
    assert [percent(value) for value in (0.0, 0.0025, 0.015, 0.01, 0.5, 1.0)] == [
        "0 %",
        "0.25 %",
        "1.5 %",
        "1 %",
        "50 %",
        "100 %",
    ]
