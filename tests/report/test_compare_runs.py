"""Several runs side by side."""

from __future__ import annotations

from pathlib import Path

from synthetic import write_run

from seedthink.report.compare import comparison, differences, labels, table, write_comparison
from seedthink.report.run_data import read_run


def test_runs_are_told_apart_by_results_and_by_settings(tmp_path: Path) -> None:
    runs = [
        read_run(write_run(tmp_path / "vapo", steps=40)),
        read_run(write_run(tmp_path / "grpo", steps=80, **{"algorithm.preset": "grpo", "rollout.group_size": 16})),
    ]
    first, second = table(runs)
    assert first["command"] == "rl vapo" and second["steps"] == "80" and first["before"] == "38.0 % (35.0 to 41.0)"
    found = dict(differences(runs))
    assert found["rollout.group_size"] == ("8", "16") and found["algorithm.preset"] == ("vapo", "grpo")
    assert "run.name" not in found and "rollout.temperature" not in found
    both = comparison(runs)
    assert both.by_time.count("<path") == both.by_step.count("<path") == 2 and "at minutes" in both.by_time


def test_steps_of_another_command_do_not_share_the_axis(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, steps=40)) for name in ("rl", "sft")]
    runs[1].summary["command"] = "sft"
    both = comparison(runs)
    assert both.by_time.count("<path") == 2 and both.by_step.count("<path") == 1


def test_runs_of_one_name_carry_their_parents(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / seed / "rl", steps=2)) for seed in ("s0", "s1")]
    assert labels(runs) == ["s0/rl", "s1/rl"]


def test_the_page_of_a_comparison_holds_every_run(tmp_path: Path) -> None:
    runs = [read_run(write_run(tmp_path / name, steps=40)) for name in ("a", "b")]
    text = write_comparison(runs, tmp_path / "compare.html").read_text()
    assert "2 runs side by side" in text and ">a</td>" in text and ">b</td>" in text and "http" not in text
