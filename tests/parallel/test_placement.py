"""Planning where experts stand: balanced, with equal counts, and moved only where that pays."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from seedthink.errors import ConfigError
from seedthink.parallel.placement import (
    Price,
    averaged,
    exchanges,
    imbalance,
    planned,
    rank_loads,
    relabelled,
    static_placement,
)

FREE = Price(token_seconds=1e-6, move_seconds=0.0, steps=100)


def skewed(experts: int, seed: int, exponent: float = 0.5) -> list[float]:
    """Zipf-like loads whose heavy experts stand together, as the first topics that a model meets make them."""
    loads = 1e4 * np.arange(1, experts + 1) ** -exponent
    return list(loads * np.random.default_rng(seed).uniform(0.9, 1.1, experts))


def test_without_a_plan_experts_stand_in_contiguous_runs() -> None:
    assert static_placement(6, 3) == (0, 0, 1, 1, 2, 2)
    with pytest.raises(ConfigError, match="ep = 4 does not divide num_experts = 6"):
        static_placement(6, 4)


def test_loads_and_imbalance_by_hand() -> None:
    assert rank_loads([5, 3, 2, 2], (0, 0, 1, 1), 2) == [8, 4]
    assert imbalance([5, 3, 2, 2], (0, 0, 1, 1), 2) == 8 / 6
    assert imbalance([0, 0], (0, 1), 2) == 1


def test_the_running_mean_begins_with_what_is_measured_first() -> None:
    assert averaged([], [4.0, 0.0], 0.9) == [4.0, 0.0]
    assert averaged([4.0, 0.0], [0.0, 8.0], 0.75) == [3.0, 2.0]


@pytest.mark.parametrize(("experts", "ep"), [(64, 4), (64, 8), (128, 8), (256, 16)])
@pytest.mark.parametrize("seed", range(5))
def test_skewed_loads_are_balanced_with_as_many_experts_on_every_rank(experts: int, ep: int, seed: int) -> None:
    tokens_E, now = skewed(experts, seed), static_placement(experts, ep)
    assert imbalance(tokens_E, now, ep) >= 1.6
    found = planned(tokens_E, now, ep, FREE)
    assert imbalance(tokens_E, found.placement, ep) == found.imbalance_after <= 1.1
    assert set(Counter(found.placement).values()) == {experts // ep}


def test_the_gain_is_the_fullest_ranks_seconds_and_the_cost_that_of_the_moves() -> None:
    found = planned([5, 3, 2, 2], (0, 0, 1, 1), 2, Price(token_seconds=0.5, move_seconds=2.0, steps=10))
    assert found.placement == (1, 0, 0, 1), "5 and 2 change places: 5 tokens and 7, where 8 and 4 were"
    assert (found.imbalance_before, found.imbalance_after, found.moved) == (8 / 6, 7 / 6, 2)
    assert (found.gain_seconds, found.cost_seconds) == ((8 - 7) * 0.5 * 10, 2 * 2.0)


def test_nothing_moves_where_moving_costs_more_than_it_brings() -> None:
    now = (0, 0, 1, 1)
    for move_seconds, moved in ((2.4, 2), (2.6, 0)):
        found = planned([5, 3, 2, 2], now, 2, Price(token_seconds=0.5, move_seconds=move_seconds, steps=10))
        assert found.moved == moved
        assert (found.placement == now) == (moved == 0)
    stays = planned([5, 3, 2, 2], now, 2, Price(token_seconds=0.5, move_seconds=2.6, steps=10))
    assert (stays.gain_seconds, stays.cost_seconds, stays.imbalance_after) == (0, 0, 8 / 6)


def test_a_balanced_placement_stays_even_where_moves_are_free() -> None:
    assert planned([1.0] * 8, static_placement(8, 4), 4, FREE).moved == 0


def test_dear_moves_leave_fewer_of_them() -> None:
    tokens_E, now = skewed(128, 0), static_placement(128, 8)
    moves = [
        planned(tokens_E, now, 8, Price(token_seconds=1e-6, move_seconds=seconds, steps=100)).moved
        for seconds in (0.0, 1e-3, 1e-2, 1e-1, 10.0)
    ]
    assert moves == sorted(moves, reverse=True) and moves[0] > moves[2] > moves[-1] == 0


def test_every_exchange_lightens_the_fullest_rank_or_leaves_fewer_as_full() -> None:
    tokens_E, now = skewed(64, 3), static_placement(64, 8)
    loads = [sorted(rank_loads(tokens_E, each, 8), reverse=True) for each in [now, *exchanges(tokens_E, now, 8)]]
    assert len(loads) > 3 and all(later < earlier for earlier, later in pairwise(loads))


def test_parts_are_numbered_so_that_as_few_experts_move_as_can() -> None:
    now = (0, 0, 1, 1, 2, 2)
    assert relabelled((2, 2, 0, 0, 1, 1), now, 3) == now
    assert relabelled((1, 1, 1, 0, 0, 0), (0, 0, 0, 1, 1, 1), 2) == (0, 0, 0, 1, 1, 1)


def test_one_expert_heavier_than_a_mean_rank_is_as_good_as_moving_makes_it() -> None:
    tokens_E = [100.0, *[1.0] * 7]
    found = planned(tokens_E, static_placement(8, 4), 4, FREE)
    assert found.imbalance_after == imbalance(tokens_E, static_placement(8, 4), 4) and found.moved == 0


def test_the_plan_is_a_function_of_its_arguments() -> None:
    tokens_E = skewed(64, 1)
    assert planned(tokens_E, static_placement(64, 8), 8, FREE) == planned(tokens_E, static_placement(64, 8), 8, FREE)
