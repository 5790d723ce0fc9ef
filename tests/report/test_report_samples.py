"""Samples: filters, telling ones, reasons, colours."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from synthetic import sample, write_run

from seedthink.errors import DataError
from seedthink.report.run_data import read_run
from seedthink.report.samples import Filter, chosen, coloured, plain, reason, spans, telling


def row(index: int = 1, **changes: Any) -> dict[str, Any]:
    return sample(1, index, random.Random(0)) | changes


def test_the_newest_step_is_shown_unless_asked_otherwise(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", steps=3, samples_at=(1, 3)))
    assert {step for step, _ in chosen(run, Filter())} == {3}
    assert {step for step, _ in chosen(run, Filter(step=1))} == {1}
    assert {step for step, _ in chosen(run, Filter(problem="countdown-0"))} == {1, 3}
    assert all(found["reward"] < 0 for _, found in chosen(run, Filter(reward_below=0)))
    with pytest.raises(DataError, match="stored are 1, 3"):
        next(chosen(run, Filter(step=2)))


def test_a_run_without_samples_says_so(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "a", steps=3, samples_at=()))
    with pytest.raises(DataError, match="holds no samples"):
        next(chosen(run, Filter()))


@pytest.mark.parametrize(
    ("wanted", "passes"),
    [
        (Filter(text="USE 7"), True),
        (Filter(text="absent"), False),
        (Filter(family="countdown", verdict="right", finish="stop"), True),
        (Filter(verdict="wrong"), False),
        (Filter(reward_above=1.0), False),
        (Filter(reward_above=0.5), True),
    ],
)
def test_filters_join(wanted: Filter, passes: bool) -> None:
    assert wanted.keeps(row()) is passes


def test_telling_samples_are_best_median_and_worst() -> None:
    rows = [row(1, id=str(reward), reward=reward) for reward in (0.5, -1.0, 1.0)]
    assert {kind: found["id"] for kind, found in telling(rows).items()} == {
        "best": "1.0",
        "median": "0.5",
        "worst": "-1.0",
    }
    assert telling([]) == {}


def test_the_reason_names_verdict_evidence_truncation_and_drop() -> None:
    text = reason(row(0, kept=False, reason="all wrong"))
    assert text == (
        "wrong; no answer after the think block; answer 0; cut off after 15 tokens; left out of learning: all wrong"
    )


def test_colour_strength_follows_the_advantage() -> None:
    tokens = coloured(row(pieces=["a", "b", "c"], advantages=[2.0, -1.0, 0.0]))
    assert [(text, tip) for text, _, tip in tokens] == [
        ("a", "advantage +2"),
        ("b", "advantage -1"),
        ("c", "advantage +0"),
    ]
    assert (
        tokens[0][1] == "--t:62%;--c:var(--plus)" and tokens[1][1] == "--t:31%;--c:var(--minus)" and tokens[2][1] == ""
    )
    assert coloured(row(pieces=None, completion="x")) == [("x", "", "")]


def test_a_sample_reads_as_plain_text() -> None:
    text = plain(7, row())
    assert "step 7  countdown" in text and "Use 7, 8 and 32" in text and "reference: target = 24" in text


def test_numbers_are_joined_into_ranges() -> None:
    assert spans([1, 2, 3, 7, 9, 10]) == "1-3, 7, 9-10"
