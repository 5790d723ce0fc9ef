"""Layouts against rules: what is refused in which words, and what is proposed instead."""

from __future__ import annotations

from itertools import product

import pytest

from seedthink.config import GenerateConfig, ParallelConfig, RlConfig, load
from seedthink.errors import ConfigError
from seedthink.parallel.layout import Layout
from seedthink.parallel.layout_check import Sizes, broken, chosen, fits, layouts, nearest

DENSE = Sizes(num_heads=16, num_kv_heads=4, hidden_size=64, intermediate_size=96)
EXPERTS = Sizes(num_heads=16, num_kv_heads=4, hidden_size=64, num_experts=8)
ODD = Sizes(num_heads=6, num_kv_heads=3, hidden_size=48, intermediate_size=40, num_experts=12)


SIX_KV = Sizes(num_heads=12, num_kv_heads=6, hidden_size=48, intermediate_size=48)


def refusal(asked: ParallelConfig, ranks: int, sizes: Sizes) -> str:
    with pytest.raises(ConfigError) as caught:
        chosen(asked, ranks, sizes)
    return str(caught.value)


def test_without_settings_all_ranks_have_batches_of_their_own() -> None:
    assert chosen(ParallelConfig(), 1, DENSE) == Layout()
    assert chosen(ParallelConfig(), 6, DENSE) == Layout(dp_shard=6)
    assert chosen(ParallelConfig(tp=2, dp_replicate=2), 8, DENSE) == Layout(dp_replicate=2, dp_shard=2, tp=2)
    assert chosen(ParallelConfig(dp_shard=1, cp=2, tp=2, ep=4), 4, EXPERTS) == Layout(cp=2, tp=2, ep=4)


def test_a_layout_that_does_not_fit_is_refused_with_the_nearest_that_does() -> None:
    assert refusal(ParallelConfig(tp=3), 6, Sizes(num_heads=16, num_kv_heads=1, hidden_size=6)) == (
        "[parallel] tp = 3 does not divide num_heads = 16; "
        "nearest layout of 6 ranks: tp = 2, dp_shard = 3 or tp = 1, dp_shard = 6"
    )


def test_every_reason_stands_in_one_message_with_keys_and_values() -> None:
    text = refusal(ParallelConfig(dp_shard=1, cp=1, tp=5, ep=3), 4, EXPERTS)
    assert text.split("; ") == [
        "[parallel] dp_replicate * dp_shard * cp * tp = 1 * 1 * 1 * 5 = 5, but the run has 4 ranks",
        "tp = 5 does not divide num_heads = 16",
        "tp = 5 neither divides num_kv_heads = 4 nor is a multiple of it",
        "tp = 5 does not divide hidden_size = 64",
        "ep = 3 does not divide num_experts = 8",
        "ep = 3 does not divide dp_shard * cp * tp = 5, whose ranks it borrows",
        "nearest layout of 4 ranks: tp = 4, ep = 4 or tp = 4, ep = 2",
    ]


@pytest.mark.parametrize(
    ("asked", "ranks", "sizes", "says"),
    [
        (ParallelConfig(tp=2), 1, DENSE, "tp = 2 does not divide the 1 rank"),
        (ParallelConfig(dp_shard=2), 1, DENSE, "1 * 2 * 1 * 1 = 2, but the run has 1 rank"),
        (ParallelConfig(dp_replicate=2, cp=2), 6, DENSE, "dp_replicate * cp = 2 * 2 = 4 does not divide the 6 ranks"),
        (ParallelConfig(tp=4, cp=8), 32, DENSE, "tp * cp = 4 * 8 = 32 does not divide num_heads = 16"),
        (ParallelConfig(tp=2), 2, ODD, "tp = 2 neither divides num_kv_heads = 3 nor is a multiple of it"),
        (ParallelConfig(tp=4, cp=3), 12, SIX_KV, "tp = 4 neither divides num_kv_heads = 6 nor is a multiple of it"),
        (ParallelConfig(tp=3), 3, ODD, "tp = 3 does not divide intermediate_size = 40"),
        (ParallelConfig(ep=2), 2, DENSE, "ep = 2, but the model has no experts"),
        (ParallelConfig(ep=16), 16, EXPERTS, "ep = 16 does not divide num_experts = 8"),
        (ParallelConfig(dp_replicate=2, ep=4), 4, EXPERTS, "ep = 4 does not divide dp_shard * cp * tp = 2, whose"),
    ],
)
def test_each_rule_names_its_key(asked: ParallelConfig, ranks: int, sizes: Sizes, says: str) -> None:
    assert says in refusal(asked, ranks, sizes)


def test_key_heads_are_split_or_repeated_over_the_ranks_that_split_the_query_heads() -> None:
    for tp, cp in ((2, 1), (4, 1), (2, 4), (16, 1), (1, 8)):
        assert broken(ParallelConfig(tp=tp, cp=cp), tp * cp, EXPERTS) == []


@pytest.mark.parametrize("sizes", [DENSE, EXPERTS, ODD])
@pytest.mark.parametrize("ranks", range(1, 13))
def test_every_proposal_fits_and_some_layout_is_always_proposed(ranks: int, sizes: Sizes) -> None:
    valid = {layout for layout in layouts(ranks) if fits(layout, sizes)}
    assert Layout(dp_shard=ranks) in valid
    for replicate, shard, cp, tp, ep in product((1, 2, 3), (0, 1, 2, 4), (1, 2, 3), (1, 2, 3, 4), (1, 2, 3, 8)):
        asked = ParallelConfig(dp_replicate=replicate, dp_shard=shard, cp=cp, tp=tp, ep=ep)
        found = nearest(asked, ranks, sizes)
        assert set(found) == valid and len(found) == len(valid)
        if not broken(asked, ranks, sizes):
            assert found[0] == chosen(asked, ranks, sizes), "what fits is nearest to itself"


def test_layouts_are_all_there_are_each_once() -> None:
    for ranks in (1, 2, 6, 8, 12):
        sizes = range(1, ranks + 1)
        wanted = {
            Layout(dp_replicate=a, dp_shard=b, cp=c, tp=d, ep=e)
            for a, b, c, d in product(sizes, repeat=4)
            if a * b * c * d == ranks
            for e in sizes
            if b * c * d % e == 0
        }
        found = list(layouts(ranks))
        assert len(found) == len(set(found)) and set(found) == wanted


def test_the_settings_take_a_layout_and_refuse_numerics_that_do_not_exist() -> None:
    assert load(None, RlConfig, {"parallel.tp": 2, "parallel.dp_shard": 4}).parallel == ParallelConfig(tp=2, dp_shard=4)
    with pytest.raises(ConfigError, match=r'parallel\.numerics = "fast" does not exist yet'):
        load(None, GenerateConfig, {"parallel.numerics": "fast"})
    with pytest.raises(ConfigError, match=r"parallel\.tp = 0 is not allowed"):
        load(None, RlConfig, {"parallel.tp": 0})
