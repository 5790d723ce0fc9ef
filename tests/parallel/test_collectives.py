"""Moves of rows and columns between ranks: what arrives, and where its gradient goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import outcome, start_ranks

from seedthink.parallel.launch import free_port

PROGRAM = str(Path(__file__).with_name("collectives_program.py"))


def run(size: int) -> list[dict[str, Any]]:
    found = outcome(start_ranks(size, PROGRAM, f"127.0.0.1:{free_port()}"))
    assert [code for code, _, _ in found] == [0] * size, found
    return [json.loads(out) for _, out, _ in found]


@pytest.fixture(scope="module")
def two() -> list[dict[str, Any]]:
    return run(2)


def test_gathered_rows_stand_rank_after_rank_and_their_gradients_are_summed_over_ranks(two: Any) -> None:
    whole = [[1.0, 2.0], [11.0, 12.0]]
    # dy is 10 i + j on rank 0 and twice that on rank 1.
    assert two[0]["gather_rows"] == [whole, [[0.0, 3.0]]]
    assert two[1]["gather_rows"] == [whole, [[30.0, 33.0]]]


def test_gathered_columns_stand_rank_beside_rank_and_their_gradients_are_summed_over_ranks(two: Any) -> None:
    whole = [[1.0, 2.0, 11.0, 12.0]]
    assert two[0]["gather_columns"] == [whole, [[0.0, 3.0]]]
    assert two[1]["gather_columns"] == [whole, [[6.0, 9.0]]]


def test_columns_change_places_with_rows_and_gradients_go_the_way_back(two: Any) -> None:
    assert two[0]["columns_to_rows"] == [[[1.0, 11.0]], [[0.0], [0.0]]]
    assert two[1]["columns_to_rows"] == [[[2.0, 12.0]], [[1.0], [2.0]]]
    assert two[0]["rows_to_columns"] == [[[1.0], [11.0]], [[0.0, 0.0]]]
    assert two[1]["rows_to_columns"] == [[[2.0], [12.0]], [[10.0, 20.0]]]


def test_uneven_rows_go_to_their_ranks_and_gradients_come_home(two: Any) -> None:
    assert two[0]["exchange_rows"] == [[[11.0]], [[0.0], [20.0]]]
    assert two[1]["exchange_rows"] == [[[1.0], [2.0]], [[0.0]]]


def test_shared_rows_stand_in_their_order_everywhere_and_each_rank_takes_its_own_gradients(two: Any) -> None:
    assert two[0]["share_rows"] == [[[1.0], [11.0], [2.0]], [[0.0], [20.0]]]
    assert two[1]["share_rows"] == [[[1.0], [11.0], [2.0]], [[10.0]]]


def test_values_are_rounded_on_the_way_where_asked_and_gradients_never(two: Any) -> None:
    assert two[0]["rounded on the way"][0] == [[1.0, 1.0], [1.0, 1.0]]
    assert two[0]["rounded on the way"][1] == [[0.0, 2.0 + 2.0**-19]]


def test_the_largest_number_is_known_to_all(two: Any) -> None:
    assert [each["most"] for each in two] == [[1, 0], [1, 0]]


def test_gradients_are_summed_in_the_order_of_the_ranks() -> None:
    assert [each["order"] for each in run(4)] == [True] * 4
