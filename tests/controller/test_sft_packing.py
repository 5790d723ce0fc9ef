"""Texts to imitate, dealt to data indices: every text once, and as many micro-batches everywhere."""

from __future__ import annotations

import numpy as np
import pytest

from seedthink.controller.sft import pack_examples
from seedthink.data.sft import SftExample
from seedthink.types import Batch


def example(at: int, length: int) -> SftExample:
    mask_T = np.ones(length, np.float32)
    mask_T[0] = 0
    return SftExample(np.full(length, at, np.int32), mask_T)


def texts(batch: Batch) -> list[list[int]]:
    """Those that are taught."""
    bounds = zip(batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
    return [batch.tokens_T[a:b].tolist() for a, b in bounds if batch.mask_T[a:b].any()]


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("lengths", [[9, 2, 9, 2, 9, 2], [8, 8, 2, 2], [3, 3, 3, 3, 3, 3, 3]])
def test_every_data_index_has_as_many_micro_batches_and_every_text_is_taught_once(
    ranks: int, lengths: list[int]
) -> None:
    examples = [example(at, length) for at, length in enumerate(lengths)]
    batches = pack_examples(examples, 10, ranks)
    assert len(batches) == ranks
    assert len({int(batch.micro_B.max()) for batch in batches}) == 1
    found = [text for batch in batches for text in texts(batch)]
    assert sorted(found) == sorted(each.tokens_T.tolist() for each in examples)
    for batch in batches:
        assert set(batch.micro_B) == set(range(int(batch.micro_B.max()) + 1)), "no micro-batch is without rows"
        assert batch.global_tokens == sum(lengths) - len(lengths) and batch.global_sequences == len(lengths)
        assert len(batch.tokens_T) == len(batch.mask_T) == batch.cu_seqlens[-1]


def test_what_fills_up_is_a_masked_copy_of_the_shortest_text_that_counts_nowhere() -> None:
    first, second = pack_examples([example(0, 9), example(1, 2), example(2, 9), example(3, 2)], 10, 2)
    assert first.micro_B.tolist() == [0, 1] and first.sequence_weight_B.tolist() == [1, 1]
    assert second.micro_B.tolist() == [0, 0, 1] and second.sequence_weight_B.tolist() == [1, 1, 0]
    assert second.tokens_T.tolist() == [1, 1, 3, 3, 1, 1] and second.mask_T.tolist() == [0, 1, 0, 1, 0, 0]
