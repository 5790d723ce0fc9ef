"""Launch settings: no value of any search space moves a bit; wrong ones are refused; a watched loop is timed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from seedthink import _C
from seedthink.autotune.cases import build, error_of, same_bits
from seedthink.autotune.spaces import SPACES, ModelShape
from seedthink.kernels import selector
from seedthink.kernels.linear import linear
from seedthink.kernels.selector import Load

# Odd sizes: ends of vectors, panels and blocks are met; several sequences, heads and experts.
SHAPE = ModelShape(
    width=80,
    heads=4,
    kv_heads=2,
    head_dim=32,
    vocabulary=101,
    experts=5,
    experts_per_token=2,
    expert_width=48,
    dense_width=72,
    pages=256,
)
ROWS = (1, 7, 300, 777)
SEQUENCES = (1, 7, 65)  # rows of paged attention, whose reference goes sequence by sequence


@pytest.fixture(autouse=True)
def built_in() -> Iterator[None]:
    """Three threads, so that "some but not all" exists; afterwards everything as it was."""
    before = _C.threads()
    _C.set_threads(3)
    yield
    _C.set_threads(before)
    selector.reset()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("op", sorted(SPACES))
def test_no_value_of_a_search_space_moves_a_bit(op: str, dtype: str) -> None:
    space = SPACES[op]
    for rows in SEQUENCES if op == "attend_paged" else ROWS:
        case = build(space.key(SHAPE, dtype, Load(rows, 2.0, 0.5)))
        expected = case.run()
        assert error_of(expected, case.reference()) <= case.tolerance
        for config in space.configs(3):
            selector.apply(op, config.values)
            assert same_bits(case.run(), expected), f"{config.name} at {rows} rows"
        selector.apply(op, {})


def test_every_operation_with_settings_has_a_search_space() -> None:
    assert selector.operations() == sorted(SPACES)


def test_settings_are_read_back_and_reset() -> None:
    selector.apply("linear", {"threads": 1, "block": 48})
    assert selector.applied("linear") == {"threads": 1, "block": 48}
    assert selector.applied("norm") == {}
    selector.reset()
    assert selector.applied("linear") == {}


@pytest.mark.parametrize(
    ("op", "values", "names"),
    [
        ("linaer", {}, "op: 'linaer'"),
        ("linear", {"threads": -1}, "threads: -1"),
        ("linear", {"grain": -5}, "grain: -5"),
        ("linear", {"block": 5000}, "block: 5000"),
    ],
)
def test_what_cannot_be_set_is_refused_by_name(op: str, values: dict[str, int], names: str) -> None:
    with pytest.raises(ValueError, match=names):
        selector.apply(op, values)


def test_the_time_of_an_operation_is_taken_only_while_it_is_watched() -> None:
    x, weight = torch.ones(64, 64), torch.ones(64, 64)
    linear(x, weight)
    assert selector.watched("linear") == (0, 0.0)
    selector.watch(["linear"], True)
    linear(x, weight)
    linear(x, weight)
    selector.watch(["linear"], False)
    linear(x, weight)
    loops, seconds = selector.watched("linear")
    assert loops == 2 and 0.0 < seconds < 1.0
    assert selector.watched("linear") == (0, 0.0)


def test_the_experts_note_how_unevenly_they_were_loaded() -> None:
    even, hot = (Load(600, imbalance, 0.0) for imbalance in (1.0, 5.0))
    build(SPACES["experts"].key(SHAPE, "float32", even)).run()
    assert 1.0 <= selector.imbalance() < 1.5
    build(SPACES["experts"].key(SHAPE, "float32", hot)).run()
    assert selector.imbalance() > 2.0


def test_a_selector_answers_while_it_is_installed() -> None:
    key = SPACES["norm"].key(SHAPE, "float32", Load(8))
    assert selector.choose(key) is selector.BUILT_IN
    fast = selector.Config("fast", {"threads": 1})

    class Always:
        def choose(self, key: selector.Key) -> selector.Config:
            return fast

    selector.install(Always())
    assert selector.choose(key) is fast
    selector.install(None)
    assert selector.choose(key) is selector.BUILT_IN


def test_sources_have_a_name_that_changes_with_the_family() -> None:
    assert selector.source_hash(["linear"]) != selector.source_hash(["scan"])
    assert selector.source_hash(["linear", "moe"]).startswith(selector.source_hash(["linear"]))
    assert selector.source_hash(["no such family"]) == "unknown"
