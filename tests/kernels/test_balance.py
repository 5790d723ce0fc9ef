"""Balancing: splits known from the literature, the differencing in Python, bounds on counts and totals, fixed ties."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seedthink.kernels.balance import karmarkar_karp, reference_karmarkar_karp, within_budget

COSTS = st.lists(st.integers(0, 50) | st.integers(0, 10**12), max_size=40)


def costs(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int64)


def lengths(count: int, seed: int = 0) -> Tensor:
    """Answer lengths as reasoning models have them: log-normal around 6,000 tokens, 200 to 32,768."""
    draw = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.8
    return (6000 * draw.exp()).clamp(200, 32768).long()


def work(length_N: Tensor) -> Tensor:
    """What a sequence costs: a part that grows with its length, and attention's that grows with its square."""
    return 24576 * length_N + length_N**2


def loads(cost_N: Tensor, part_N: Tensor, parts: int) -> Tensor:
    return torch.zeros(parts, dtype=cost_N.dtype).index_add_(0, part_N, cost_N)


def imbalance(cost_N: Tensor, part_N: Tensor, parts: int) -> float:
    """Heaviest part over the mean, minus 1."""
    load_P = loads(cost_N, part_N, parts).double()
    return (load_P.max() / load_P.mean()).item() - 1


def test_two_parts_by_hand() -> None:
    # Differencing makes 16 and 14 of these: 8 - 7, 6 - 5, then 4 - 1 and 3 - 1. One swap makes 15 and 15.
    assert sorted(sum(part) for part in by_reference(costs(8, 7, 6, 5, 4), 2)) == [14, 16]
    assert loads(costs(8, 7, 6, 5, 4), karmarkar_karp(costs(8, 7, 6, 5, 4), 2), 2).tolist() == [15, 15]


def by_reference(cost_N: Tensor, parts: int, equal_size: bool = False) -> list[list[int]]:
    return [[int(cost_N[i]) for i in part] for part in reference_karmarkar_karp(cost_N, parts, equal_size)]


def test_parts_are_numbered_from_the_heaviest_and_equal_ones_by_their_first_item() -> None:
    assert karmarkar_karp(costs(1, 9, 5, 5), 4).tolist() == [3, 0, 1, 2]
    assert karmarkar_karp(costs(0, 0, 7), 3).tolist() == [1, 2, 0]
    assert karmarkar_karp(costs(3, 4), 5).tolist() == [1, 0]


@pytest.mark.parametrize("equal_size", [False, True])
@pytest.mark.parametrize(("count", "parts"), [(1000, 8), (2048, 24)])
def test_many_items_are_dealt_as_the_differencing_in_python_does(count: int, parts: int, equal_size: bool) -> None:
    cost_N = work(lengths(count))
    want = reference_karmarkar_karp(cost_N, parts, equal_size)
    part_N = karmarkar_karp(cost_N, parts, equal_size)
    assert imbalance(cost_N, part_N, parts) < 1e-4  # so close that nothing is exchanged afterwards
    assert [part_N.eq(p).nonzero().flatten().tolist() for p in range(parts)] == want
    assert torch.equal(part_N, karmarkar_karp(cost_N.double(), parts, equal_size))


@settings(max_examples=150, deadline=None)
@given(COSTS, st.integers(1, 9), st.booleans())
def test_every_item_has_a_part_and_no_part_is_heavier_than_differencing_makes_it(
    values: list[int], parts: int, equal_size: bool
) -> None:
    cost_N = costs(*values)
    part_N = karmarkar_karp(cost_N, parts, equal_size)
    load_P, count_P = loads(cost_N, part_N, parts), loads(torch.ones_like(cost_N), part_N, parts)
    used = min(parts, len(values))
    assert count_P.sum() == len(values)
    assert (load_P[:-1] >= load_P[1:]).all()
    assert max(map(sum, by_reference(cost_N, parts, equal_size))) >= load_P.max()
    if equal_size and values:
        assert count_P[:used].max() - count_P[:used].min() <= 1


@settings(max_examples=150, deadline=None)
@given(COSTS, st.integers(1, 4), st.data())
def test_the_budget_holds_with_no_more_parts_than_best_fit_takes(
    values: list[int], multiple: int, data: st.DataObject
) -> None:
    size_N = costs(*values)
    budget = data.draw(st.integers(max(values, default=0), 2 * 10**12))
    part_N = within_budget(size_N, size_N, budget, multiple)
    assert len(part_N) == len(values)
    if values:
        parts = int(part_N.max()) + 1
        assert loads(size_N, part_N, parts).max() <= budget
        assert -(-parts // multiple) <= -(-best_fit(values, budget) // multiple)


def best_fit(values: list[int], budget: int) -> int:
    rooms: list[int] = []
    for value in sorted(values, reverse=True):
        at = min((i for i, room in enumerate(rooms) if room >= value), key=lambda i: rooms[i], default=None)
        if at is None:
            rooms.append(budget - value)
        else:
            rooms[at] -= value
    return len(rooms)


def test_the_smallest_number_of_parts_is_found_where_dealing_to_the_emptiest_needs_more() -> None:
    size_N = costs(3, 3, 2, 2, 2)  # 3 + 3 and 2 + 2 + 2; the emptiest first would be 3 + 2 + 2
    assert within_budget(size_N, size_N, 6).tolist() == [0, 0, 1, 1, 1]


def test_costs_are_balanced_within_the_budget_of_sizes() -> None:
    length_N = lengths(256)
    part_N = within_budget(work(length_N), length_N, 70000, multiple=4)
    parts = -(-(int(part_N.max()) + 1) // 4) * 4
    assert loads(length_N, part_N, parts).max() <= 70000
    assert parts == -(-int(length_N.sum()) // (4 * 70000)) * 4
    assert imbalance(work(length_N), part_N, parts) < 0.005


@pytest.mark.parametrize("seed", range(5))
def test_equal_counts_of_log_normal_lengths_are_within_half_a_per_cent(seed: int) -> None:
    for cost_N in (lengths(512, seed), work(lengths(512, seed))):
        part_N = karmarkar_karp(cost_N, 64, equal_size=True)
        assert part_N.bincount().tolist() == [8] * 64
        assert imbalance(cost_N, part_N, 64) <= 0.005


def test_nothing_to_share_out() -> None:
    assert karmarkar_karp(costs(), 3).tolist() == []
    assert within_budget(costs(), costs(), 0).tolist() == []
    assert within_budget(costs(0, 0), costs(0, 0), 0).tolist() == [0, 0]


def test_bad_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="cost: expected dtype int64 or float64, got float32"):
        karmarkar_karp(torch.ones(3), 2)
    with pytest.raises(ValueError, match="cost: item 1 is -4"):
        karmarkar_karp(costs(1, -4), 2)
    with pytest.raises(ValueError, match="cost: item 0 is nan"):
        karmarkar_karp(torch.tensor([float("nan")]).double(), 2)
    with pytest.raises(ValueError, match=r"cost: the sum .* overflows"):
        karmarkar_karp(costs(2**61, 2**61), 2)
    with pytest.raises(ValueError, match="cost: expected 1 dimensions, got 2"):
        karmarkar_karp(costs(1, 2)[None], 2)
    with pytest.raises(ValueError, match="cost: must be contiguous"):
        karmarkar_karp(costs(1, 2, 3, 4)[::2], 2)
    with pytest.raises(ValueError, match="parts: 0 is not 1 or more"):
        karmarkar_karp(costs(1), 0)
    with pytest.raises(ValueError, match="size: item 2 is 9, more than the budget of 8 alone"):
        within_budget(costs(1, 1, 1), costs(1, 8, 9), 8)
    with pytest.raises(ValueError, match="size: dimension 0 is 2, expected 3"):
        within_budget(costs(1, 1, 1), costs(1, 1), 8)
    with pytest.raises(ValueError, match="multiple: 0 is not between"):
        within_budget(costs(1), costs(1), 8, multiple=0)


def test_the_operators_are_registered_soundly() -> None:
    torch.library.opcheck(torch.ops.seedthink.karmarkar_karp.default, (costs(3, 1, 2), 2, True))
    torch.library.opcheck(torch.ops.seedthink.within_budget.default, (costs(3, 1, 2), costs(3, 1, 2), 4, 2))
