"""Which ranks share what."""

from __future__ import annotations

from seedthink.parallel.layout import Layout

LAYOUT = Layout(dp_shard=2, cp=2, tp=2, ep=4)


def test_neighbours_share_matrices_and_the_outermost_axis_is_data() -> None:
    assert LAYOUT.size == 8 and LAYOUT.data == 2
    assert [LAYOUT.coordinates(rank) for rank in (0, 1, 2, 4, 7)] == [
        (0, 0, 0, 0),
        (0, 0, 0, 1),
        (0, 0, 1, 0),
        (0, 1, 0, 0),
        (0, 1, 1, 1),
    ]
    assert [LAYOUT.data_index(rank) for rank in range(8)] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_one_rank_answers_for_those_that_work_on_the_same_batch() -> None:
    assert LAYOUT.plane == 4
    assert [rank for rank in range(8) if LAYOUT.leads(rank)] == [0, 4]


def test_a_layout_in_words_names_what_is_split() -> None:
    assert str(LAYOUT) == "tp = 2, cp = 2, dp_shard = 2, ep = 4"
    assert str(Layout()) == "one rank"


def test_a_group_is_what_differs_on_the_named_axes_alone() -> None:
    assert LAYOUT.groups(["tp"]) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    assert LAYOUT.groups(["cp"]) == [(0, 2), (1, 3), (4, 6), (5, 7)]
    assert LAYOUT.groups(["dp_shard", "cp"]) == [(0, 2, 4, 6), (1, 3, 5, 7)]
    assert LAYOUT.groups([]) == [(rank,) for rank in range(8)]


def test_experts_are_spread_over_neighbours_and_copied_to_the_other_groups() -> None:
    assert LAYOUT.expert_groups() == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert LAYOUT.expert_copies() == [(0, 4), (1, 5), (2, 6), (3, 7)]
