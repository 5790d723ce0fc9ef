"""Lines on disk: what a crash may cost, and what it may not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seedthink.errors import DataError, RunError
from seedthink.telemetry.jsonl import JsonLines, keep_until, mend, read_lines, write_atomic


def test_a_torn_last_line_is_ignored_by_readers_and_cut_by_writers(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for torn in (b'{"n":', b'{"n":3}', b"{" + b"x" * 200_000):
        path.write_bytes(b'{"n":1}\n{"n":2}\n' + torn)
        assert read_lines(path) == [{"n": 1}, {"n": 2}]
        lines = JsonLines(path)
        lines.append({"n": 9})
        lines.close()
        assert read_lines(path) == [{"n": 1}, {"n": 2}, {"n": 9}]


def test_a_file_that_is_one_torn_line_becomes_empty(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"n":')
    mend(path)
    assert path.read_bytes() == b""


def test_a_line_is_readable_as_soon_as_append_returns(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "deep" / "a.jsonl")
    lines.append({"text": "a\nb"})
    assert read_lines(lines.path) == [{"text": "a\nb"}]


def test_numbers_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    lines = JsonLines(tmp_path / "a.jsonl")
    lines.append({"a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("-inf")}})
    assert json.loads(lines.path.read_text()) == {"a": None, "b": [None, 1.5], "c": {"d": None}}


def test_a_broken_line_in_the_middle_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"n":1}\nnot json\n{"n":2}\n')
    with pytest.raises(DataError, match=r"a\.jsonl line 2 is not JSON"):
        read_lines(tmp_path / "a.jsonl")


def test_cutting_keeps_everything_before_the_first_line_beyond(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"n":1}\n{"n":2}\n{"n":3}\n{"n":1}\n')
    assert keep_until(path, lambda row: row["n"] > 2) == {"n": 2}
    assert read_lines(path) == [{"n": 1}, {"n": 2}]
    assert keep_until(tmp_path / "none.jsonl", lambda row: True) is None


def test_an_atomic_write_that_fails_leaves_the_old_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_atomic(tmp_path / "a", "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError, match="No space"):
        write_atomic(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_full_disk_ends_a_run_with_the_file_and_the_next_step() -> None:
    lines = JsonLines(Path("/dev/full"))
    with pytest.raises(
        RunError, match=r"cannot write /dev/full: No space left on device. What was saved .* start again"
    ):
        lines.append({"n": 1})
    lines.close()


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/summary.json: File exists \(.*file\)"):
        write_atomic(tmp_path / "file" / "summary.json", "{}")


@pytest.mark.parametrize("line", ["{broken", "[1]"])
def test_a_line_that_is_no_object_is_named_when_a_file_is_cut(tmp_path: Path, line: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(f'{{"n":1}}\n{line}\n{{"n":2}}\n')
    with pytest.raises(DataError, match=r"a.jsonl line 2 is .*delete that line to go on"):
        keep_until(path, lambda row: False)
