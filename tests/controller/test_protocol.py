from __future__ import annotations

import numpy as np
import pytest
from toy_workers import Toy

from seedthink.controller.groups import Place
from seedthink.controller.protocol import (
    FIRST,
    GATHERED,
    ONE_TO_ALL,
    PER_RANK,
    RANK_ZERO,
    SPLIT,
    concatenated,
    one_each,
    remote,
    split_evenly,
    verbs_of,
)
from seedthink.parallel.layout import Layout


def arguments(calls: dict) -> dict:
    return {rank: call.args for rank, call in calls.items()}


def test_one_to_all_gives_every_rank_everything_and_lists_the_results() -> None:
    calls = ONE_TO_ALL.split(3, (7,), {"flag": True})
    assert arguments(calls) == {0: (7,), 1: (7,), 2: (7,)}
    assert all(call.kwargs == {"flag": True} for call in calls.values())
    assert ONE_TO_ALL.gather([1, 2, 3]) == [1, 2, 3]


def test_rank_zero_leaves_the_other_ranks_alone() -> None:
    assert arguments(RANK_ZERO.split(3, (7,), {})) == {0: (7,)}
    assert RANK_ZERO.gather([5]) == 5


def test_first_runs_everywhere_but_takes_one_answer() -> None:
    assert arguments(FIRST.split(2, (), {})) == {0: (), 1: ()}
    assert FIRST.answers == "first"
    assert FIRST.gather([5]) == 5


def test_split_cuts_positional_arguments_contiguously_and_keeps_keywords_whole() -> None:
    calls = SPLIT.split(2, ([1, 2, 3, 4, 5], ("a", "b", "c", "d", "e")), {"factor": 9})
    assert arguments(calls) == {0: ([1, 2], ("a", "b")), 1: ([3, 4, 5], ("c", "d", "e"))}
    assert all(call.kwargs == {"factor": 9} for call in calls.values())


def test_split_lets_every_rank_run_even_without_items() -> None:
    assert arguments(SPLIT.split(3, ([1],), {})) == {0: ([],), 1: ([],), 2: ([1],)}


@pytest.mark.parametrize("count", range(9))
@pytest.mark.parametrize("size", range(1, 5))
def test_splitting_and_chaining_gives_back_what_went_in(count: int, size: int) -> None:
    items = list(range(count))
    parts = [split_evenly(size, (items,), {})[rank].args[0] for rank in range(size)]
    assert concatenated(parts) == items
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_per_rank_hands_out_one_element_each() -> None:
    assert arguments(PER_RANK.split(2, (["x", "y"], [1, 2]), {})) == {0: ("x", 1), 1: ("y", 2)}


@pytest.mark.parametrize(
    ("split", "args", "says"),
    [
        (one_each, ([1, 2, 3],), "got 3 for 2"),
        (one_each, ([1, 2], [1]), r"common length, got \[2, 1\]"),
        (split_evenly, ([1, 2], [1]), r"common length, got \[2, 1\]"),
        (split_evenly, ([1], 5), "argument 1 .* not int"),
        (split_evenly, ("text",), "argument 0 .* not str"),
        (split_evenly, ({"a": 1},), "argument 0 .* not dict"),
    ],
)
def test_arguments_that_do_not_fit_the_protocol_are_refused(split, args, says) -> None:
    with pytest.raises(ValueError, match=says):
        split(2, args, {})


PLANES = Layout(dp_shard=2, cp=1, tp=2)


def test_ranks_of_one_data_index_get_the_same_part_and_the_first_of_them_answers() -> None:
    calls = SPLIT.calls(PLANES, ([1, 2, 3],), {"factor": 9})
    assert arguments(calls) == {0: ([1],), 1: ([1],), 2: ([2, 3],), 3: ([2, 3],)}
    assert all(call.kwargs == {"factor": 9} for call in calls.values())
    assert arguments(PER_RANK.calls(PLANES, (["x", "y"],), {})) == {0: ("x",), 1: ("x",), 2: ("y",), 3: ("y",)}
    for transfer in (SPLIT, PER_RANK, GATHERED):
        assert transfer.answering(PLANES, range(4)) == [0, 2]


def test_ranks_that_are_polled_all_run_and_each_data_index_answers_once() -> None:
    assert arguments(GATHERED.calls(PLANES, (5,), {})) == dict.fromkeys(range(4), (5,))
    assert GATHERED.gather([[1], [2]]) == [1, 2]


def test_what_reaches_every_rank_or_the_first_does_not_look_at_the_layout() -> None:
    assert arguments(ONE_TO_ALL.calls(PLANES, (5,), {})) == dict.fromkeys(range(4), (5,))
    assert ONE_TO_ALL.answering(PLANES, range(4)) == [0, 1, 2, 3]
    assert FIRST.answering(PLANES, range(4)) == [0] and len(FIRST.calls(PLANES, (), {})) == 4
    assert arguments(RANK_ZERO.calls(PLANES, (5,), {})) == {0: (5,)} and RANK_ZERO.answering(PLANES, [0]) == [0]


def test_one_rank_for_each_data_index_is_plain_data_parallelism() -> None:
    for transfer, args in ((SPLIT, ([1, 2, 3],)), (PER_RANK, ([1, 2, 3],)), (GATHERED, (1,))):
        assert transfer.calls(Layout(dp_replicate=3), args, {}) == transfer.split(3, args, {})
        assert transfer.answering(Layout(dp_replicate=3), range(3)) == [0, 1, 2]


def test_concatenation_keeps_arrays_arrays_and_nones_none() -> None:
    joined = concatenated([np.array([1, 2]), np.array([3])])
    assert isinstance(joined, np.ndarray) and joined.tolist() == [1, 2, 3]
    assert concatenated([None, None]) is None
    assert concatenated([(1,), [2]]) == [1, 2]


def test_verbs_are_found_under_the_name_they_have_in_the_class() -> None:
    class Base:
        def learn(self, batch: int) -> int:
            return batch + 1

    class Renamed(Toy):
        improve = remote(PER_RANK, blocking=False, deadline=5.0)(Base.learn)

    verbs = verbs_of(Renamed)
    assert verbs["add"].transfer is ONE_TO_ALL and verbs["add"].blocking
    assert (verbs["improve"].name, verbs["improve"].blocking, verbs["improve"].deadline) == ("improve", False, 5.0)
    assert "learn" not in verbs and "__init__" not in verbs


def test_a_registered_method_can_be_called_directly() -> None:
    assert Toy(Place("toy", 2, Layout(dp_shard=4), 1), base=10).add(5) == 17
