"""Tables: written and read back, nearest entries, foreign and broken files, entries of other sources or classes."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest

from seedthink.autotune.device import Identity
from seedthink.autotune.table import Entry, Table, merged, read, write
from seedthink.kernels.selector import BUILT_IN, Key, Load

HERE = Identity("Some(R) CPU @ 2GHz", "", 2, "avx2", "2.13", "3.6")
SOURCES = {"norm": "n1", "experts": "e1"}


def entry(
    tokens: int, values: dict[str, int], op: str = "norm", dims: tuple[int, ...] = (128,), **changes: object
) -> Entry:
    base = Entry(
        op=op,
        dtype="float32",
        dims=dims,
        load=Load(tokens),
        values=values,
        numerics="exact",
        seconds=1e-5,
        p20=0.9e-5,
        p80=1.1e-5,
        repeats=41,
        built_in_seconds=1.2e-5,
        p_value=1e-6,
        sources=SOURCES[op],
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def ask(tokens: int, dims: tuple[int, ...] = (128,), dtype: str = "float32") -> Key:
    return Key("norm", dtype, dims, Load(tokens))


def test_a_table_comes_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    entries = [entry(64, {"threads": 1}), entry(8, {})]
    write(path, Table(HERE.as_dict(), entries, {"command": "seedthink tune"}))
    found = read(path, HERE, SOURCES)
    assert found is not None
    assert sorted(found.entries, key=lambda e: -e.load.tokens) == entries
    assert found.facts["command"] == "seedthink tune"


def test_the_nearest_bucket_answers_in_log_distance() -> None:
    table = Table(HERE.as_dict(), [entry(8, {"grain": 8}), entry(512, {"grain": 512})])
    assert [table.choose(ask(tokens)).values["grain"] for tokens in (1, 8, 40, 100, 100000)] == [8, 8, 8, 512, 512]


def test_an_answer_does_not_depend_on_what_was_asked_before() -> None:
    entries = [entry(48, {"grain": 48}), entry(64, {"grain": 64})]
    forwards, backwards = Table(HERE.as_dict(), entries), Table(HERE.as_dict(), entries)
    first = [forwards.choose(ask(tokens)) for tokens in (48, 64, 80)]
    second = [backwards.choose(ask(tokens)) for tokens in (80, 64, 48)][::-1]
    assert first == second == [entries[1].config] * 3


def test_sizes_far_away_say_nothing() -> None:
    table = Table(HERE.as_dict(), [entry(8, {"grain": 8})])
    assert table.choose(ask(8, dims=(256,))).values
    assert table.choose(ask(8, dims=(1024,))) is BUILT_IN
    assert table.choose(ask(8, dtype="bfloat16")) is BUILT_IN
    assert table.choose(Key("no such op", "float32", (), Load(1))) is BUILT_IN


def test_another_numerics_class_is_chosen_only_where_it_is_allowed() -> None:
    split = entry(8, {"split": 4}, numerics="split-k")
    table = Table(HERE.as_dict(), [split, entry(64, {"grain": 64})])
    assert table.choose(ask(8)).values == {"grain": 64}
    assert table.choose(ask(8), numerics=None).values == {"split": 4}


def test_entries_of_other_sources_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write(
        path,
        Table(HERE.as_dict(), [entry(8, {"grain": 8}), entry(8, {"block": 24}, op="experts", dims=(8, 2, 64, 64))]),
    )
    found = read(path, HERE, {**SOURCES, "experts": "e2"})
    assert found is not None
    assert [each.op for each in found.entries] == ["norm"]


def test_a_table_of_another_device_is_refused_with_one_message(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table.json"
    write(path, Table(HERE.as_dict(), [entry(8, {"grain": 8})]))
    with caplog.at_level(logging.WARNING):
        assert read(path, replace(HERE, threads=4), SOURCES) is None
    assert len(caplog.records) == 1 and "threads 2 is not 4" in caplog.text


def test_the_version_of_torch_does_not_bind_kernels_of_the_cpu(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write(path, Table(HERE.as_dict(), []))
    assert read(path, replace(HERE, torch="2.14"), SOURCES) is not None
    gpu = replace(HERE, driver="580.1 CUDA 13.0")
    write(path, Table(gpu.as_dict(), []))
    assert read(path, replace(gpu, triton="3.9"), SOURCES) is None


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"format": 99, "entries": []}', '{"format": 1, "entries": [{"op": 3}]}']
)
def test_a_broken_file_is_refused_and_never_an_error(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    assert read(path, HERE, SOURCES) is None
    assert len(caplog.records) == 1 and "seedthink tune" in caplog.text


def test_no_file_is_no_table_and_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read(tmp_path / "none.json", HERE, SOURCES) is None
    assert not caplog.records


def test_new_points_replace_old_ones_and_keep_the_rest() -> None:
    old = Table(HERE.as_dict(), [entry(8, {"grain": 8}), entry(64, {"grain": 64})])
    assert {e.load.tokens: e.values for e in merged(old, [entry(8, {})])} == {8: {}, 64: {"grain": 64}}


def test_the_file_can_be_read_by_people(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    write(path, Table(HERE.as_dict(), [entry(64, {"threads": 1})]))
    line = next(line for line in path.read_text().splitlines() if '"op": "norm"' in line)
    assert json.loads(line.strip().rstrip(","))["values"] == {"threads": 1}
    assert HERE.slug == "some-2ghz-2-threads-avx2"
