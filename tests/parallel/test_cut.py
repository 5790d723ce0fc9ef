"""Which rows of a weight a rank holds: parts that together are the weight, and places of stored tensors in them."""

from __future__ import annotations

import torch

from seedthink.parallel.cut import Cut, Piece, Seat, blocks_cut, even_cut, experts_cut, heads_cut, whole_cut


def rows(cut: Cut) -> list[int]:
    return [row for piece in cut.pieces for row in range(piece.begin, piece.end)]


def test_gate_and_up_rows_are_shared_evenly_and_apart() -> None:
    assert rows(even_cut(8, Seat(tp=2, tp_index=0), runs=2)) == [0, 1, 4, 5]
    assert rows(even_cut(8, Seat(tp=2, tp_index=1), runs=2)) == [2, 3, 6, 7]
    assert rows(even_cut(8, Seat(tp=4, tp_index=3))) == [6, 7]


def test_a_rank_holds_its_query_heads_and_the_key_heads_that_they_use() -> None:
    # 4 query heads, 2 key heads, 2 value heads of one row each.
    assert [rows(heads_cut(4, 2, 1, Seat(tp=2, tp_index=i))) for i in (0, 1)] == [[0, 1, 4, 6], [2, 3, 5, 7]]
    four = [heads_cut(4, 2, 1, Seat(tp=4, tp_index=i)) for i in range(4)]
    assert [rows(cut) for cut in four] == [[0, 4, 6], [1, 4, 6], [2, 5, 7], [3, 5, 7]]
    assert [piece.neighbours for piece in four[0].pieces] == [1, 2, 2], "two ranks in a row hold the same key head"


def test_ranks_share_a_vocabulary_in_whole_blocks_and_some_may_have_none() -> None:
    def ends(count: int, ranks: int) -> list[tuple[int, int]]:
        cuts = [blocks_cut(count, 4, Seat(tp=ranks, tp_index=i)) for i in range(ranks)]
        return [(piece.begin, piece.end) for cut in cuts for piece in cut.pieces]

    assert ends(10, 2) == [(0, 8), (8, 10)]
    assert ends(10, 3) == [(0, 4), (4, 8), (8, 10)]
    assert ends(10, 4) == [(0, 4), (4, 8), (8, 10), (10, 10)]
    assert ends(3, 2) == [(0, 3), (3, 3)]


def test_parts_put_together_are_the_weight() -> None:
    weight = torch.arange(24.0).view(8, 3)
    for cuts in (
        [even_cut(8, Seat(tp=2, tp_index=i), runs=2) for i in range(2)],
        [heads_cut(4, 2, 1, Seat(tp=4, tp_index=i)) for i in range(4)],
        [experts_cut(8, Seat(ep=4, ep_index=i)) for i in range(4)],
        [whole_cut(8, Seat(tp=2, tp_index=i)) for i in range(2)],
        [blocks_cut(8, 3, Seat(tp=4, tp_index=i)) for i in range(4)],
    ):
        found = torch.zeros(8, 3)
        for cut in cuts:
            part = cut.of(weight)
            assert len(part) == cut.held
            cut.put(part, found)
        assert torch.equal(found, weight)


def test_a_stored_tensor_has_its_places_in_a_part() -> None:
    cut = Cut(8, (Piece(2, 4, 1), Piece(6, 8, 1)))
    assert cut.places(()) == [((slice(0, 2),), slice(2, 4)), ((slice(2, 4),), slice(6, 8))]
    assert cut.places((slice(3, 7),)) == [((slice(1, 2),), slice(0, 1)), ((slice(2, 3),), slice(3, 4))]
    assert cut.places((slice(0, 2),)) == []
    experts = experts_cut(8, Seat(ep=4, ep_index=1))
    assert experts.places((3, slice(0, 5))) == [((1, slice(0, 5)), slice(None))]
    assert experts.places((4,)) == []
