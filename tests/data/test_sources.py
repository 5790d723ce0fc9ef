"""Cursors resume exactly, mixtures keep their proportions, and a dataset that changed is refused."""

from __future__ import annotations

import json

import numpy as np
import pytest

from seedthink.data.sources import MixedSource, ShuffledSource
from seedthink.errors import ConfigError, DataError
from seedthink.types import Prompt


def prompts(name: str, count: int) -> list[Prompt]:
    return [Prompt(f"{name}{i}", name, "", np.zeros(1, np.int32), {}) for i in range(count)]


def ids(drawn: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in drawn]


def mixture() -> MixedSource[Prompt]:
    sources = {"a": ShuffledSource(prompts("a", 7), seed=1), "b": ShuffledSource(prompts("b", 3), seed=1)}
    return MixedSource(sources, {"a": 3.0, "b": 1.0})


def test_an_epoch_has_every_item_once_and_the_next_is_in_another_order() -> None:
    source = ShuffledSource(prompts("p", 50), seed=4)
    first, second = ids(source.next(50)), ids(source.next(50))
    assert sorted(first) == sorted(second) == sorted(ids(prompts("p", 50)))
    assert first != second
    assert first == ids(ShuffledSource(prompts("p", 50), seed=4).next(50))
    assert first != ids(ShuffledSource(prompts("p", 50), seed=5).next(50))
    assert source.epoch == 2.0


def test_without_shuffling_the_order_is_the_lists() -> None:
    source = ShuffledSource(prompts("p", 3), seed=0, shuffle=False)
    assert ids(source.next(5)) == ["p0", "p1", "p2", "p0", "p1"]


@pytest.mark.parametrize("cut", [0, 3, 7, 8, 20])
def test_a_restored_cursor_gives_the_same_stream_also_across_epochs(cut: int) -> None:
    whole = ids(mixture().next(40))
    before = mixture()
    assert ids(before.next(cut)) == whole[:cut]
    state = json.loads(json.dumps(before.state()))
    after = mixture()
    after.restore(state)
    assert ids(after.next(40 - cut)) == whole[cut:]


def test_drawing_in_pieces_or_at_once_is_the_same_stream() -> None:
    source = mixture()
    pieces = [prompt for size in (1, 2, 5, 8) for prompt in source.next(size)]
    assert ids(pieces) == ids(mixture().next(16))


def test_every_window_of_a_mixture_keeps_the_weights() -> None:
    drawn = ids(mixture().next(40))
    for count in range(1, 41):
        assert abs(sum(name.startswith("a") for name in drawn[:count]) - 0.75 * count) <= 1


def test_a_changed_dataset_seed_or_weight_is_refused_on_restore() -> None:
    state = ShuffledSource(prompts("p", 5), seed=1).state()
    for other in (ShuffledSource(prompts("p", 6), seed=1), ShuffledSource(prompts("p", 5), seed=2)):
        with pytest.raises(DataError, match="not what the checkpoint was made with"):
            other.restore(state)
    changed = MixedSource({"a": ShuffledSource(prompts("a", 7), seed=1)}, {"a": 1.0})
    with pytest.raises(DataError, match="mixture"):
        changed.restore(mixture().state())


def test_empty_sources_and_weights_that_are_not_positive_are_refused() -> None:
    with pytest.raises(DataError, match=r"mine\.jsonl holds nothing"):
        ShuffledSource([], seed=0, name="mine.jsonl")
    source = ShuffledSource(prompts("a", 1), seed=0)
    with pytest.raises(ConfigError, match="weight of source 'a' is 0"):
        MixedSource({"a": source}, {"a": 0.0})
    with pytest.raises(ConfigError, match="differ in names"):
        MixedSource({"a": source}, {"b": 1.0})
