"""Packing: nothing lost, nothing twice, within budget, the same micro-batch count on every rank."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rl_samples import make_valued, random_credited

from seedthink.errors import ConfigError
from seedthink.rl.pack import pack, tokens_of
from seedthink.types import Batch, Credited, Verdict

PER_TOKEN = ("logprob_T", "proximal_T", "reference_T", "advantage_T", "return_T", "value_T")


def sequences(batch: Batch) -> list[tuple[int, slice]]:
    """(micro-batch, span) of each sequence that is no filler."""
    bounds = zip(batch.micro_B, batch.cu_seqlens[:-1], batch.cu_seqlens[1:], strict=True)
    spans = [(int(micro), slice(int(a), int(b))) for micro, a, b in bounds]
    return [(micro, span) for micro, span in spans if batch.mask_T[span].any()]


def content(batch: Batch, span: slice) -> bytes:
    """All that a sequence carries, as bytes."""
    return b"|".join(getattr(batch, name)[span].tobytes() for name in ("tokens_T", "mask_T", "positive_T", *PER_TOKEN))


def expected(item: Credited) -> bytes:
    rollout, valued = item.valued.scored.rollout, item.valued
    prompt = np.zeros(len(rollout.prompt.tokens_T), np.float32)
    ones = np.ones(len(item.advantage_T), np.float32)
    right = ones if valued.scored.judgement.verdict is Verdict.RIGHT else ones * 0
    answers = [
        ones,
        right,
        rollout.completion.logprob_T,
        valued.proximal_T,
        valued.reference_T,
        item.advantage_T,
        item.return_T,
        valued.value_T,
    ]
    tokens = np.concatenate([rollout.prompt.tokens_T, rollout.completion.tokens_T])
    return b"|".join([tokens.tobytes(), *(np.concatenate([prompt, a]).tobytes() for a in answers)])


@settings(max_examples=60, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=25),
    budget=st.integers(1, 60),
    updates=st.integers(1, 6),
    ranks=st.integers(1, 4),
    seed=st.integers(0, 3),
)
def test_no_token_is_lost_or_doubled_and_every_bound_holds(
    lengths: list[int], budget: int, updates: int, ranks: int, seed: int
) -> None:
    credited = random_credited(lengths)
    mini_batches = pack(
        credited, token_budget=budget, max_sequence_tokens=30, updates_per_rollout=updates, ranks=ranks, seed=seed
    )
    assert len(mini_batches) == min(updates, len(lengths))
    found: Counter[bytes] = Counter()
    for batches in mini_batches:
        assert len(batches) == ranks
        assert len({int(batch.micro_B.max()) for batch in batches}) == 1
        counts = np.zeros(3)
        for batch in batches:
            assert (np.diff(batch.micro_B) >= 0).all()
            assert set(batch.micro_B) == set(range(int(batch.micro_B.max()) + 1))
            loads: Counter[int] = Counter()
            members: Counter[int] = Counter()
            for micro, span in sequences(batch):
                found[content(batch, span)] += 1
                loads[micro] += span.stop - span.start
                members[micro] += 1
            assert all(loads[m] <= budget or members[m] == 1 for m in loads)
            counts += [batch.mask_T.sum(), batch.sequence_weight_B.sum(), batch.positive_T.sum()]
        for batch in batches:
            assert [batch.global_tokens, batch.global_sequences, batch.global_positive_tokens] == counts.tolist()
    assert found == Counter(map(expected, credited))


def test_the_order_is_decided_by_seed_and_identity_not_by_arrival() -> None:
    credited = random_credited([3, 5, 2, 7, 4, 6])

    def tokens(items: list[Credited], seed: int) -> list[bytes]:
        packed = pack(items, token_budget=12, max_sequence_tokens=30, updates_per_rollout=2, seed=seed)
        return [batch.tokens_T.tobytes() for (batch,) in packed]

    assert tokens(credited, 1) == tokens(credited[::-1], 1)
    assert tokens(credited, 1) != tokens(credited, 2)


def test_mini_batches_differ_by_at_most_one_sequence() -> None:
    packed = pack(random_credited([2] * 17), token_budget=100, max_sequence_tokens=30, updates_per_rollout=5)
    assert sorted(int(batch.global_sequences) for (batch,) in packed) == [3, 3, 3, 4, 4]


def test_dropped_rollouts_take_no_part() -> None:
    credited = random_credited([2, 3, 4])
    credited[1] = replace(credited[1], kept=False, reason="truncated")
    ((batch,),) = pack(credited, token_budget=100, max_sequence_tokens=30, updates_per_rollout=1)
    assert batch.global_sequences == 2
    assert batch.global_tokens == batch.mask_T.sum() == 6
    assert pack([credited[1]], token_budget=100, max_sequence_tokens=30, updates_per_rollout=1) == []


def test_ranks_and_micro_batches_carry_like_loads() -> None:
    rng = np.random.default_rng(0)
    credited = random_credited([int(n) for n in np.clip(rng.lognormal(3.5, 0.9, 256), 1, 400)])
    (batches,) = pack(credited, token_budget=512, max_sequence_tokens=500, updates_per_rollout=1, ranks=4)
    loads = np.array([len(batch.tokens_T) for batch in batches])
    assert loads.max() / loads.mean() < 1.02
    micros = int(batches[0].micro_B.max()) + 1
    per_micro = np.zeros((4, micros))
    for rank, batch in enumerate(batches):
        np.add.at(per_micro[rank], batch.micro_B, np.diff(batch.cu_seqlens))
    assert (per_micro.max(0) / per_micro.mean(0)).mean() < 1.05
    assert micros <= 1.3 * loads.sum() / (4 * 512) + 1


def test_the_rank_with_the_larger_bin_of_one_index_gets_the_smaller_of_the_next() -> None:
    credited = random_credited([40, 30, 20, 10])  # plus prompts of 1 to 3 tokens: four bins of one sequence each
    (batches,) = pack(credited, token_budget=33, max_sequence_tokens=50, updates_per_rollout=1, ranks=2)
    assert sorted(int(batch.mask_T.sum()) for batch in batches) == [50, 50]


def test_no_more_micro_batches_are_cut_than_the_budget_asks_for() -> None:
    credited = random_credited([10] * 6)
    for budget, wanted in ((1000, 1), (45, 2), (26, 3), (13, 6)):
        ((batch,),) = pack(credited, token_budget=budget, max_sequence_tokens=50, updates_per_rollout=1)
        assert int(batch.micro_B.max()) + 1 == wanted
    ((batch,),) = pack(credited[:3], token_budget=20, max_sequence_tokens=50, updates_per_rollout=1)
    assert int(batch.micro_B.max()) + 1 == 3  # two would hold the tokens, but no two sequences fit together


def test_a_rank_without_a_sequence_gets_a_masked_copy_that_counts_nowhere() -> None:
    credited = random_credited([5, 9])
    (batches,) = pack(credited, token_budget=100, max_sequence_tokens=30, updates_per_rollout=1, ranks=3)
    idle = [batch for batch in batches if not batch.mask_T.any()]
    assert len(idle) == 1
    assert len(idle[0].tokens_T) == min(map(tokens_of, credited))
    assert idle[0].sequence_weight_B.tolist() == [0.0]
    assert not idle[0].positive_T.any()
    assert all(batch.global_sequences == 2 and batch.global_tokens == 14 for batch in batches)


def test_a_sequence_over_the_budget_stands_alone_and_one_over_the_limit_is_an_error() -> None:
    credited = random_credited([20, 2, 2])
    ((batch,),) = pack(credited, token_budget=10, max_sequence_tokens=30, updates_per_rollout=1)
    long = max(sequences(batch), key=lambda pair: pair[1].stop - pair[1].start)[0]
    assert [micro for micro, _ in sequences(batch)].count(long) == 1
    with pytest.raises(ConfigError, match=r"prompt 'p-g0' has 2\d tokens .*more than the 15 that fit.*max_tokens"):
        pack(credited, token_budget=10, max_sequence_tokens=15, updates_per_rollout=1)


def test_arrays_that_the_algorithm_does_not_ask_for_stay_empty() -> None:
    valued = make_valued(4)
    item = Credited(valued, np.ones(4, np.float32), np.ones(4, np.float32), kept=True)
    ((batch,),) = pack([item], token_budget=10, max_sequence_tokens=30, updates_per_rollout=1)
    assert [len(a) for a in (batch.value_T, batch.proximal_T, batch.reference_T)] == [0, 0, 0]
    assert batch.mask_T.tolist() == [0, 0, 1, 1, 1, 1]
