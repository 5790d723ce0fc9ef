"""Running cases: the check comes first, a side that fails has no time, and rows survive the way through a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from rich.console import Console

from seedthink.autotune.timing import Spread
from seedthink.bench.case import Case, Draw, Maker, Missing, Outputs, Prepared, Run, Work, against
from seedthink.bench.compare import differences
from seedthink.bench.memory import freed_memory_kept, peak_of
from seedthink.bench.plots import drawing
from seedthink.bench.rows import Row, load, save
from seedthink.bench.run import Settings, measured
from seedthink.bench.table import seconds, show, times
from seedthink.errors import DataError

CPU = torch.device("cpu")
QUICK = Settings(CPU, threads=1, repeats=3, patience=0)


def doubled(by: float = 2.0) -> Maker:
    x = torch.ones(1000)

    def run() -> Outputs:
        return (x * by,)

    return lambda: run


def absent() -> Run:
    raise Missing("libother is not installed")


def broken() -> Run:
    raise RuntimeError("no kernel\nand a long story")


def a_case(ours: Mapping[str, Maker], peers: Mapping[str, Maker], memory: float = 0.0) -> Case:
    reference = against(lambda: (torch.full((1000,), 2.0, dtype=torch.float64),))
    prepared = Prepared(ours, peers, reference, 1e-6)
    return Case("double", {"T": 1000}, "float32", Work(8000.0, 1000.0), lambda draw: prepared, memory)


def rows_of(ours: Mapping[str, Maker], peers: Mapping[str, Maker]) -> dict[str, Row]:
    return {row.implementation: row for row in measured(a_case(ours, peers), "tiny", QUICK)}


def shown(rows: list[Row], tmp_path: Path) -> str:
    with (tmp_path / "table").open("w") as file:
        show(rows, Console(file=file))
    return (tmp_path / "table").read_text()


def test_a_row_says_what_was_measured_and_the_command_that_repeats_it() -> None:
    row = rows_of({"cpu": doubled()}, {"eager": doubled()})["cpu"]
    assert (row.status, row.error, row.repeats) == ("ok", 0.0, 3)
    assert row.command == (
        "seedthink bench kernels --op double --shapes tiny --at T=1000 --dtype float32 --device cpu --threads 1"
        " --repeats 3"
    )
    assert row.seconds and row.seconds.p20 <= row.seconds.median <= row.seconds.p80
    assert row.gb_per_second == 8000.0 / row.seconds.median / 1e9
    assert row.copy_bytes_per_second and row.of_ceiling
    assert row.of_ceiling == pytest.approx(8000.0 / row.copy_bytes_per_second / row.seconds.median)
    assert row.ratios and list(row.ratios) == ["eager"]


def test_work_with_more_flops_than_bytes_is_held_against_a_matmul_of_its_dtype() -> None:
    case = replace(a_case({"cpu": doubled()}, {}), work=Work(8.0, 2e6))
    (row,) = measured(case, "tiny", QUICK)
    assert row.seconds and row.matmul_flops_per_second and row.of_ceiling
    assert row.of_ceiling == pytest.approx(2e6 / row.matmul_flops_per_second / row.seconds.median)


def test_a_side_that_fails_its_check_shows_fail_in_place_of_a_time(tmp_path: Path) -> None:
    found = rows_of({"cpu": doubled()}, {"eager": doubled(by=2.1), "other": broken})
    assert found["eager"].status == found["other"].status == "FAIL"
    assert found["eager"].seconds is None and found["cpu"].ratios == {}
    assert found["other"].reason == "RuntimeError: no kernel"
    table = shown(list(found.values()), tmp_path)
    assert table.count("FAIL") == 2 and "error 0.05 against float64" in table


def test_ours_fails_like_any_other(tmp_path: Path) -> None:
    found = rows_of({"cpu": doubled(by=1.9)}, {"eager": doubled()})
    assert found["cpu"].status == "FAIL" and found["cpu"].seconds is None
    assert found["eager"].seconds is not None


def test_a_peer_that_is_not_there_is_left_out_with_its_reason() -> None:
    row = rows_of({"cpu": doubled()}, {"other": absent})["other"]
    assert (row.status, row.reason, row.seconds) == ("left out", "libother is not installed", None)


def test_a_case_that_does_not_fit_into_memory_is_left_out() -> None:
    (row,) = measured(a_case({"cpu": doubled()}, {}, memory=1e15), "tiny", QUICK)
    assert row.status == "left out" and row.reason.startswith("takes 931322.6 GiB")


def test_only_the_implementations_that_are_asked_for_run() -> None:
    case = a_case({"cpu": doubled()}, {"eager": broken, "compile": broken})
    rows = measured(case, "tiny", replace(QUICK, implementations=("cpu",)))
    assert [row.implementation for row in rows] == ["cpu"] and rows[0].command.endswith("--impl cpu")
    rows = measured(case, "tiny", replace(QUICK, compiled=False))
    assert [row.implementation for row in rows] == ["cpu", "eager"]


def test_rows_come_back_from_a_file_as_they_were(tmp_path: Path) -> None:
    rows = list(rows_of({"cpu": doubled()}, {"eager": doubled(), "other": absent}).values())
    save(tmp_path / "new" / "rows.json", rows, {"commit": "abc"})
    assert load(tmp_path / "new" / "rows.json") == (rows, {"commit": "abc"})
    entry = json.loads((tmp_path / "new" / "rows.json").read_text())["rows"][0]
    assert entry["gb_per_second"] == rows[0].gb_per_second and entry["seconds"]["median"] > 0


@pytest.mark.parametrize("text", ["", "{}", '{"rows": [{}], "environment": {}}'])
def test_a_file_that_holds_no_rows_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(DataError, match=r"a\.json"):
        load(tmp_path / "a.json")
    with pytest.raises(DataError, match="cannot be read"):
        load(tmp_path / "none.json")


def timed(median: float, *, share: float | None = 0.5, status: str = "ok", name: str = "cpu") -> Row:
    took = Spread(median, 0.99 * median, 1.01 * median)
    return Row(
        "gae", name, name == "cpu", "tiny", {"T": 8}, "float32", "cpu", "avx2", 1, status, "seedthink bench kernels",  # type: ignore[arg-type]
        seconds=None if status != "ok" else took, of_ceiling=share, bytes=1e6, flops=1e5, copy_bytes_per_second=1e10,
        ratios={"eager": Spread(4.0, 3.0, 5.0), "torchrl": Spread(0.5, 0.4, 0.6)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("after", "verdict"),
    [
        (timed(1.04), "same"),
        (timed(1.2, share=0.4), "slower"),
        (timed(1.2, share=0.5), "same"),  # the machine became slower, and the copy beside it, too
        (timed(1.2, share=None), "slower"),
        (timed(0.8, share=0.7), "faster"),
        (timed(1.0, status="FAIL"), "broken"),
        (timed(1.0, status="left out"), "gone"),
    ],
)
def test_slower_is_what_noise_and_the_machine_do_not_explain(after: Row, verdict: str) -> None:
    (found,) = differences([timed(1.0)], [after])
    assert found.verdict == verdict


def test_a_wide_spread_hides_a_difference() -> None:
    noisy = replace(timed(1.2, share=0.3), seconds=Spread(1.2, 0.9, 1.5))
    assert differences([timed(1.0)], [noisy])[0].verdict == "same"


def test_peers_are_no_regressions_and_rows_of_one_file_are_told() -> None:
    found = differences([timed(1.0), timed(1.0, name="eager")], [timed(1.0), timed(9.0, name="eager")])
    assert [each.verdict for each in found] == ["same"]
    assert [each.verdict for each in differences([timed(1.0)], [])] == ["gone"]
    assert [each.verdict for each in differences([], [timed(1.0)])] == ["new"]
    assert str(differences([timed(0.001)], [timed(0.0012, share=0.3)])[0]) == (
        "slower  gae T=8 float32 cpu  1 ms -> 1.2 ms  +20.0%"
    )


def test_a_crowd_is_told_below_the_table(tmp_path: Path) -> None:
    assert "say little" not in shown([replace(timed(1.0), cores_used_elsewhere=0.05)], tmp_path)
    text = shown([replace(timed(1.0), cores_used_elsewhere=1.24), timed(1.0)], tmp_path)
    assert "1 of 2 rows were taken while others used up to 1.2 cores" in text


def test_numbers_are_short() -> None:
    assert [seconds(value) for value in (1.2345e-6, 0.0123, 2.5)] == ["1.23 us", "12.3 ms", "2.5 s"]
    assert [times(value) for value in (0.52, 3.14159, 123.4)] == ["0.52x", "3.1x", "123x"]


def test_the_drawing_is_one_svg_that_needs_nothing_else() -> None:
    text = drawing([timed(1e-3), replace(timed(1e-3), matmul_flops_per_second=1e11, shape={"T": 9})])
    tree = ElementTree.fromstring(text)
    kinds = [element.tag.rpartition("}")[2] for element in tree.iter()]
    assert kinds.count("circle") == 2 and kinds.count("rect") == 4 and "script" not in kinds
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert "torchrl takes 0.5x" in text and 'class="lost"' in text


def test_a_drawing_without_rows_is_still_one() -> None:
    ElementTree.fromstring(drawing([]))


def test_the_peak_of_a_call_counts_what_it_takes_for_a_while_and_nothing_before_it() -> None:
    def run(mebibytes: int) -> Outputs:
        held = torch.ones(mebibytes << 18)
        return (held[:1].clone(),)

    with freed_memory_kept():
        run(100)
        _, peak = peak_of(partial(run, 32), CPU)
    assert peak is None or 32 << 20 <= peak <= 48 << 20


def test_draws_reach_the_case() -> None:
    seen: list[Draw] = []
    case = a_case({"cpu": doubled()}, {})
    measured(replace(case, prepare=lambda draw: (seen.append(draw), case.prepare(draw))[1]), "tiny", QUICK)
    assert seen[0].device == CPU
