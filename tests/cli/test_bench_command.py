"""`seedthink bench` from end to end on two small operations."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from seedthink.bench.cases import OPS
from seedthink.cli.main import main

TINY = (
    '[tiny]\nsource = "a test"\nwidth = 64\nexperts = 4\nexperts_per_token = 2\nexpert_width = 16\ntokens = [8, 16]\n'
)


def bench(*words: str) -> int:
    return main(["bench", *words])


def test_two_operations_are_checked_timed_shown_saved_and_drawn(
    in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("tiny.toml").write_text(TINY)
    words = ["kernels", "--op", "rms_norm,swiglu", "--shapes", "tiny.toml", "--impl", "cpu,eager", "--threads", "1"]
    assert bench(*words, "--quick", "--json", "out/a.json", "--plot", "out/a.svg") == 0
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 2 and "rms_norm" in shown.out and "FAIL" not in shown.out
    table = json.loads(Path("out/a.json").read_text())
    assert [(row["op"], row["implementation"]) for row in table["rows"]] == [
        ("rms_norm", "cpu"), ("rms_norm", "eager"), ("swiglu", "cpu"), ("swiglu", "eager"),
    ]  # fmt: skip
    for row in table["rows"]:
        assert row["status"] == "ok" and row["shape"]["T"] == 8 and row["seconds"]["median"] > 0
    assert table["environment"]["threads"] == 1 and table["environment"]["native"]["isa"]
    ElementTree.parse("out/a.svg")


def test_the_command_of_a_row_repeats_that_row_alone(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.toml").write_text(TINY)
    bench("kernels", "--op", "norm", "--shapes", "tiny.toml", "--impl", "cpu", "--repeats", "3", "--json", "a.json")
    rows = json.loads(Path("a.json").read_text())["rows"]
    assert len(rows) == 6
    words = rows[4]["command"].split()[2:]
    assert bench(*words, "--json", "b.json") == 0
    (row,) = json.loads(Path("b.json").read_text())["rows"]
    assert {name: row[name] for name in ("op", "shape", "dtype", "command")} == {
        name: rows[4][name] for name in ("op", "shape", "dtype", "command")
    }


def test_comparing_tells_a_regression_by_the_exit_code(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("tiny.toml").write_text(TINY)
    bench("kernels", "--op", "swiglu", "--shapes", "tiny.toml", "--impl", "cpu", "--quick", "--json", "a.json")
    table = json.loads(Path("a.json").read_text())
    for name, milliseconds, share in (("a", 1.0, 0.5), ("b", 2.0, 0.2)):
        for row in table["rows"]:
            row |= {"seconds": dict.fromkeys(("median", "p20", "p80"), milliseconds / 1e3), "of_ceiling": share}
        Path(f"{name}.json").write_text(json.dumps(table))
    capsys.readouterr()
    assert bench("compare", "a.json", "b.json") == 1
    assert "slower  swiglu T=8,I=32 float32 cpu  1 ms -> 2 ms  +100.0%" in capsys.readouterr().out
    assert bench("compare", "b.json", "a.json") == bench("compare", "a.json", "a.json") == 0


def test_listing_names_operations_presets_and_peers(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("list") == 0
    text = capsys.readouterr().out
    assert all(f"  {op} " in text for op in OPS) and "deepseek-v3" in text and "torchrl" in text


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["kernels", "--op", "gaee"], "did you mean gae"),
        (["kernels", "--shapes", "quickstrat"], "did you mean quickstart"),
        (["kernels", "--op", "gae", "--shapes", "quickstart", "--at", "T=1"], "nothing to measure"),
        (["kernels", "--op", "gae", "--shapes", "quickstart", "--impl", "egaer"], "has an implementation egaer"),
        (["kernels", "--threads", "0"], "--threads: 0 is not at least 1"),
        (["kernels", "--opp", "gae"], "--op"),
        (["compare", "none.json", "none.json"], "none.json cannot be read"),
        (["kernel"], "did you mean kernels"),
    ],
)
def test_a_mistake_is_told_with_what_was_meant(
    words: list[str], said: str, in_tmp: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench(*words) == 2
    assert said in capsys.readouterr().err
