"""The page of a run: complete, self-contained, honest about what is missing."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic import write_run

from seedthink.errors import DataError
from seedthink.report.page import write_report
from seedthink.report.run_data import principal, read_run

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Balanced(HTMLParser):
    """Checks that every element that opens also closes, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, (tag, self.open[-3:])


def page(path: Path) -> str:
    text = write_report(path).read_text()
    parser = Balanced()
    parser.feed(text)
    assert parser.open == [] and parser.links == []
    return text


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "vapo", steps=60, samples_at=(1, 60))


def test_the_page_needs_nothing_beside_itself(run: Path) -> None:
    text = page(run)
    assert "http" not in re.sub(r"http-equiv", "", text) and "<script" not in text and "@import" not in text
    assert "url(" not in text


def test_the_headline_gives_accuracy_before_and_after_with_intervals(run: Path) -> None:
    text = page(run)
    assert '<span class="from">38.0</span>' in text and "intervals disjoint" in text and "before 35.0 to 41.0" in text
    for part in ("peak memory", "tok/s", "value pretraining", "0 bits", "1.83M parameters, 1.01M active"):
        assert part in text


def test_every_curve_of_the_run_is_there_with_its_metric_and_its_health(run: Path) -> None:
    text = page(run)
    for metric in (
        "critic/score/mean",
        "val-core/*/acc/mean@k",
        "response_length/mean",
        "actor/entropy",
        "critic/vf_explained_var",
        "rollout/logp_gap_max",
        "actor/pg_clipfrac",
    ):
        assert metric in text
    assert (
        "Time per stage" in text and "update_actor" in text and "Healthy: At least 0.4 after value pretraining" in text
    )


def test_samples_come_with_reason_and_token_credit(run: Path) -> None:
    text = page(run)
    for kind in ("best", "median", "worst"):
        assert f"<b>{kind}</b>" in text
    assert "no answer after the think block" in text and "advantage +" in text and "--plus" in text
    assert "&lt;think&gt;" in text and "<think>" not in text


def test_settings_and_environment_allow_a_repetition(run: Path) -> None:
    text = page(run)
    assert "gae_length_alpha = 0.7" in text and "An 8-core processor" in text and "torch 2.13.0" in text


def test_warnings_are_in_words(run: Path) -> None:
    rows = run / "metrics.jsonl"
    kept = rows.read_text()
    rows.write_text(kept + '{"stage":"rl","step":60,"seconds":99,"response_length/clip_ratio":0.4}\n')
    assert "truncated 40 % of answers at the limit in rollout.max_tokens; in 1 of 60 steps" in page(run)
    rows.write_text(kept)


def test_a_run_under_way_still_makes_a_page(tmp_path: Path) -> None:
    path = tmp_path / "young"
    path.mkdir()
    (path / "metrics.jsonl").write_text('{"stage":"sft","step":1,"seconds":1.0,"train/loss":2.0}\n{"stage":"sf')
    text = page(path)
    assert "the run is under way, or ended early" in text and "train/loss" in text


def test_values_are_escaped(tmp_path: Path) -> None:
    path = write_run(tmp_path / "odd", steps=2, samples_at=(2,))
    row = json.loads((path / "rollouts" / "step_2.jsonl").read_text().splitlines()[0])
    row |= {"prompt": "<img src=x onerror=alert(1)>", "evidence": '"><q>', "reward": 99}
    (path / "rollouts" / "step_2.jsonl").write_text(json.dumps(row) + "\n")
    text = page(path)
    assert "<img" not in text and '"><q>' not in text


def test_other_runs_are_shown_side_by_side(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path / "grpo", steps=40, seed=1, **{"algorithm.preset": "grpo"})
    text = write_report(run, beside=[other]).read_text()
    assert "Side by side" in text and "rl grpo" in text and "algorithm.preset" in text
    assert "Side by side" not in page(run)


def test_a_folder_of_runs_is_reported_as_one(tmp_path: Path) -> None:
    write_run(tmp_path / "all" / "grpo", steps=40, **{"algorithm.preset": "grpo"})
    main = write_run(tmp_path / "all" / "vapo", steps=40)
    write_run(tmp_path / "all" / "vapo-1", steps=3)
    whole = read_run(tmp_path / "all")
    assert principal(whole).path == main and {part.name for part in whole.parts} == {"grpo", "vapo"}
    assert "Side by side" in page(tmp_path / "all")


def test_what_is_no_run_folder_is_refused_with_the_runs_beside_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"does not exist; runs here: .*vapo"):
        write_report(run.parent / "vap")
    with pytest.raises(DataError, match="no run folder"):
        write_report(tmp_path)
