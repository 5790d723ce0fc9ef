"""Ranks on paper: which rows, heads and gradients each has, and what cannot be shared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from seedthink.errors import ConfigError
from seedthink.parallel.group import Group
from seedthink.parallel.layout import Layout
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.runs import Run
from seedthink.parallel.shards import WHOLE, MeshShards, shards_of


class OnPaper:
    """Ranks that never start: groups have members and cannot send."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.group = rank, size, Group(tuple(range(size)), rank)

    def group_of(self, groups: Sequence[tuple[int, ...]]) -> Group:
        (mine,) = [ranks for ranks in groups if self.rank in ranks]
        return Group(mine, mine.index(self.rank))


def mesh(rank: int, **axes: int) -> Mesh:
    layout = Layout(**axes)
    paper: Any = OnPaper(rank, layout.size)
    return Mesh(layout, paper)


def run(rank: int, rows: int) -> Run:
    found = shards_of(mesh(rank, cp=2, tp=2)).run(rows)
    assert isinstance(found, Run)
    return found


def test_rows_are_cut_into_equal_runs_and_the_last_ones_are_filled_up() -> None:
    tokens = torch.arange(1, 7)
    assert [run(rank, 6).own(tokens).tolist() for rank in range(4)] == [[1, 2], [3, 4], [5, 6], [0, 0]]
    assert [run(rank, 0).own(tokens[:0]).tolist() for rank in range(4)] == [[0]] * 4, "a rank without rows has one"


def test_the_tp_ranks_of_a_cp_rank_know_the_positions_of_the_rows_they_project_together() -> None:
    positions = torch.arange(10, 16)
    assert [run(rank, 6).of_cp_rank(positions).tolist() for rank in range(4)] == [[10, 11, 12, 13]] * 2 + [
        [14, 15, 0, 0]
    ] * 2


def test_wanted_rows_are_found_in_the_run_that_has_them_however_often_and_in_any_order() -> None:
    wanted = torch.tensor([4, 0, 4, 3])
    chosen = [run(rank, 6).choose(wanted) for rank in range(4)]
    assert [each.rows.tolist() for each in chosen] == [[0], [1], [0, 0], []]
    assert [each.among(torch.tensor([7, 8, 9, 10])).tolist() for each in chosen] == [[8], [10], [7, 9], []]


def test_a_gradient_is_summed_over_the_ranks_that_hold_the_part() -> None:
    each = [mesh(rank, dp_shard=2, tp=4) for rank in range(8)]
    assert each[5].holders(1).ranks == (1, 5)
    assert each[5].holders(2).ranks == (0, 1, 4, 5), "two tp ranks in a row share a key head"
    assert each[5].holders(4).ranks == tuple(range(8))


def test_ranks_meet_in_a_data_index_or_everywhere_where_experts_are_shared_beyond_it() -> None:
    assert mesh(3, dp_shard=2, tp=2, ep=2).meeting.ranks == (2, 3)
    assert mesh(3, dp_shard=2, tp=2, ep=4).meeting.ranks == (0, 1, 2, 3)
    assert not mesh(0, dp_shard=2).entangled and mesh(0, dp_shard=2, ep=2).entangled


def test_copies_of_a_whole_model_are_each_alone() -> None:
    assert shards_of(None) is WHOLE and shards_of(mesh(1, dp_replicate=2)) is WHOLE
    assert shards_of(mesh(1, dp_shard=2)).alone


def test_ranks_of_one_copy_cut_what_they_hold_alike_and_copies_add_up_what_is_left() -> None:
    each = [mesh(rank, dp_replicate=2, dp_shard=2, tp=2, ep=2) for rank in range(8)]
    assert each[5].strips(experts=False).ranks == (5, 7) and each[5].learning.ranks == (4, 5, 6, 7)
    assert each[5].strips(experts=True).ranks == (5, 7), "two pairs of ranks hold all experts"
    assert mesh(5, dp_shard=2, cp=2, tp=2, ep=2).strips(experts=True).ranks == (1, 3, 5, 7)
    assert each[5].strip_holders(1).ranks == (1, 5) and each[5].strip_holders(2).ranks == (0, 1, 4, 5)
    assert each[5].strip_holders(0).ranks == (1, 5)
    assert mesh(0, dp_shard=2).together and not mesh(0, dp_replicate=2).together


def test_what_cannot_be_shared_is_named_with_both_numbers() -> None:
    three, four = MeshShards(mesh(0, tp=3)), MeshShards(mesh(0, tp=2, cp=2, ep=4))
    assert four.heads(8, 2) == (4, 1) and four.cached_heads(2) == 1 and four.cached_heads(8) == 2
    with pytest.raises(ConfigError, match="hidden_size = 40 cannot be shared by tp = 3 ranks"):
        three.part(40, "hidden_size")
    with pytest.raises(ConfigError, match="num_kv_heads = 2 and tp = 3: one must be a multiple of the other"):
        three.heads(6, 2)
    with pytest.raises(ConfigError, match=r"num_heads = 6 cannot be shared by cp \* tp = 4 ranks"):
        four.heads(6, 2)
    with pytest.raises(ConfigError, match="num_experts = 6 cannot be shared by ep = 4 ranks"):
        four.held(6)
    paper: Any = OnPaper(0, 2)
    with pytest.raises(ConfigError, match="the layout is for 3 ranks, but 2 were started"):
        Mesh(Layout(tp=3), paper)
