"""`seedthink tune`: a table for this machine, in a time one says; unknown names are told the nearest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seedthink import _C
from seedthink.autotune.device import identity, sources
from seedthink.autotune.table import read
from seedthink.cli.main import main


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    """The command sets the process's threads; give them back."""
    torch_threads, ours = torch.get_num_threads(), _C.threads()
    yield
    torch.set_num_threads(torch_threads)
    _C.set_threads(ours)


def test_a_table_is_written_within_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.json"
    arguments = ["tune", "--op", "norm", "--budget-seconds", "0.001", "--threads", "2", "--out", str(path)]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "the budget ended after" in said and f"written to {path}" in said
    table = read(path, identity(), sources())
    assert table is not None and {entry.op for entry in table.entries} == {"norm"}
    assert table.facts["command"] == f"seedthink {' '.join(arguments)}"
    assert table.facts["rates"]["bytes_one"] > 0


def test_a_later_search_keeps_the_points_that_it_did_not_measure(tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    for op in ("norm", "heads"):
        assert main(["tune", "--op", op, "--budget-seconds", "0.001", "--threads", "2", "--out", str(path)]) == 0
    table = read(path, identity(), sources())
    assert table is not None and {entry.op for entry in table.entries} == {"norm", "heads"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--op", "nrom"], 'tune: --op "nrom" is unknown; did you mean norm?'),
        (["--shape", "quickstrat"], "did you mean quickstart?"),
        (["--budget-seconds", "0"], "--budget-seconds above 0"),
        (["--dtype", "float16"], "invalid choice"),
    ],
)
def test_mistakes_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tune", *arguments]) == 2
    assert said in capsys.readouterr().err
