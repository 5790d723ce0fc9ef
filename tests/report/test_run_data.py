"""Reading a run folder back."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedthink.errors import DataError
from seedthink.report.run_data import read_run


def written(path: Path, *lines: str) -> Path:
    (path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines))
    return path


def test_lines_of_one_step_join_and_steps_come_in_order(tmp_path: Path) -> None:
    written(
        tmp_path,
        '{"stage":"rl","step":2,"seconds":2,"a/b":5}',
        '{"stage":"rl","step":1,"seconds":1,"a/b":4,"c/d":null}',
        '{"stage":"rl","step":2,"seconds":3,"c/d":6}',
    )
    run = read_run(tmp_path)
    assert run.series("a/b") == [(1, 4), (2, 5)] and run.series("c/d") == [(2, 6)]
    assert run.stages["rl"][1]["seconds"] == 3


def test_accuracies_carry_their_interval_and_families(tmp_path: Path) -> None:
    written(
        tmp_path,
        '{"stage":"rl","step":0,"seconds":1,"val-core/all/acc/mean@4":0.5,"val-aux/all/acc/low":0.4,"val-aux/all/acc/high":0.6}',
        '{"stage":"rl","step":9,"seconds":2,"val-core/all/acc/mean@4":0.7,"val-core/sums/acc/mean@4":0.8}',
    )
    run = read_run(tmp_path)
    assert [found[1:] for found in run.accuracies()] == [(0.5, 0.4, 0.6), (0.7, 0.7, 0.7)]
    assert run.families() == ["sums"] and run.accuracies("sums")[0][1] == 0.8


def test_broken_side_files_are_named(tmp_path: Path) -> None:
    written(tmp_path, '{"stage":"rl","step":1,"seconds":1}')
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(DataError, match=r"summary\.json is not JSON"):
        read_run(tmp_path)


def test_lines_that_lack_what_they_are_read_for_are_named_with_their_file(tmp_path: Path) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "rollouts" / "step_1.jsonl").write_text('{"prompt":"a"}\n')
    (tmp_path / "metrics.jsonl").write_text('{"stage":"rl","step":1,"a":2}\n')
    with pytest.raises(DataError, match=r"step_1.jsonl holds a sample without completion, family"):
        list(read_run(tmp_path).samples(1))
    (tmp_path / "metrics.jsonl").write_text('{"step":1}\n')
    with pytest.raises(DataError, match=r"metrics.jsonl holds a line without stage and step"):
        read_run(tmp_path)
