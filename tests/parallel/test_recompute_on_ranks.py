"""Ranks that share a model make its blocks again together: same bits, same exchanges, nobody waits for another."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mesh_cases
import pytest
import torch
from ranks import outcome, start_ranks
from recompute_program import WAYS

from seedthink.parallel.launch import free_port

PROGRAM = str(Path(__file__).with_name("recompute_program.py"))
Found = dict[tuple[str, str, str], Any]


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What each of two ranks found, by layout, model and way."""
    folder = tmp_path_factory.mktemp("ranks")
    ended = outcome(start_ranks(2, PROGRAM, f"127.0.0.1:{free_port()}", str(folder)), 240.0)
    assert [code for code, _, _ in ended] == [0, 0], ended
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


@pytest.mark.parametrize("way", WAYS[1:])
@pytest.mark.parametrize("layout", mesh_cases.LAYOUTS[2])
def test_every_rank_has_the_gradients_and_weights_of_a_step_that_keeps_everything(
    layout: str, way: str, on_two_ranks: list[Found]
) -> None:
    for found in on_two_ranks:
        for model in mesh_cases.FEW:
            expected, mine = found[layout, model, "none"], found[layout, model, way]
            assert mine["norms"] == expected["norms"] and mine["skipped"] == ["", ""]
            for part in ("gradients", "weights"):
                assert all(torch.equal(one, other) for one, other in zip(mine[part], expected[part], strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_a_router_without_numbers_makes_all_skip_and_leaves_nobody_waiting(way: str, on_two_ranks: list[Found]) -> None:
    cases = [(rank, each) for rank, found in enumerate(on_two_ranks) for each in found if each[1:] == ("spoilt", way)]
    assert len(cases) == 2 * 4
    for rank, each in cases:
        assert all(on_two_ranks[rank][each]["skipped"])
