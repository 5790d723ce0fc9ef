"""The cost model by hand, what it prunes, and that a measured machine gives usable rates."""

from __future__ import annotations

import pytest

from seedthink.autotune.roofline import Rates, measure, prune, seconds
from seedthink.autotune.spaces import SHAPES, SPACES, Space, Work
from seedthink.kernels.selector import BUILT_IN, Config, Key, Load

RATES = Rates(bytes_one=1e9, flops_one=1e9, bytes_all=1.5e9, wake=1e-6, piece=0.0)
ONE = Config("threads=1", {"threads": 1})


def space(bytes_moved: float, flops: float, pieces: float) -> Space:
    return Space(
        op="norm",
        families=("norm",),
        dims=lambda shape: (shape.width,),
        work=lambda dims, load, values: Work(bytes_moved, flops, pieces),
        parameters={"threads": (0, 1)},
        built_in={"grain": 1},
    )


def key(tokens: int = 1) -> Key:
    return SPACES["norm"].key(SHAPES["quickstart"], "float32", Load(tokens))


def test_seconds_by_hand() -> None:
    memory = space(1e6, 0, 4)  # 1 ms on one thread; two threads share it, but memory gives only 1.5 times as much
    assert seconds(memory, key(), ONE, 2, RATES) == pytest.approx(1e-3)
    assert seconds(memory, key(), BUILT_IN, 2, RATES) == pytest.approx(1e-3 / 1.5 + 1e-6)
    products = space(0, 1e6, 3)  # three pieces on two threads: one of them does two thirds
    assert seconds(products, key(), BUILT_IN, 2, RATES) == pytest.approx(2e-3 / 3 + 1e-6)
    assert seconds(space(0, 1e6, 1), key(), BUILT_IN, 2, RATES) == pytest.approx(1e-3)


def test_what_is_predicted_far_above_the_best_is_pruned_but_never_the_built_in_one() -> None:
    small = space(100, 0, 2)  # 0.1 us of work: waking a thread costs ten times as much
    assert [c.name for c in prune(small, key(), [BUILT_IN, ONE], 2, RATES)] == [ONE.name, BUILT_IN.name]
    large = space(0, 1e9, 8)
    assert [c.name for c in prune(large, key(), [BUILT_IN, ONE], 2, RATES)] == [BUILT_IN.name]
    linear = SPACES["linear"]
    asked = linear.key(SHAPES["quickstart"], "float32", Load(512))
    assert len(prune(linear, asked, linear.configs(2), 2, RATES, slack=1e9, most=8)) == 8


def test_a_space_offers_the_built_in_configuration_first_and_nothing_twice() -> None:
    for each in SPACES.values():
        for threads in (1, 2, 16):
            configs = each.configs(threads)
            assert configs[0] is BUILT_IN
            assert len({c.name for c in configs}) == len(configs)
            assert all(c.values.get("threads", 0) < max(2, threads) for c in configs)
    assert len(SPACES["linear"].configs(2, tokens=4)) < len(SPACES["linear"].configs(2))


def test_this_machine_is_measured() -> None:
    rates = measure(2)
    assert 1e8 < rates.bytes_one < 1e13 and 1e8 < rates.flops_one < 1e14
    assert rates.bytes_all > 0 and 0 < rates.wake < 0.1
