"""Credited rollouts become mini-batches: shuffled by sequence, packed without padding, balanced over ranks.

A rank here is one with batches of its own; ranks that share a sequence or a matrix count as one. A mini-batch is one
optimizer step. Its sequences are shared out over ranks * m bins of like size (kernels/balance.py), with the smallest m
that keeps every bin within the token budget; bins of like size become the micro-batches of one index, so ranks wait
little for each other. Every rank has m micro-batches: collectives in a forward pass need all ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch

from seedthink.errors import ConfigError
from seedthink.kernels.balance import within_budget
from seedthink.types import Batch, Credited, Valued, Verdict

if TYPE_CHECKING:
    from seedthink.types import Float32, Int32

Bins = list[list[Credited]]


def pack(
    credited: Sequence[Credited],
    *,
    token_budget: int,
    max_sequence_tokens: int,
    updates_per_rollout: int,
    ranks: int = 1,
    seed: int = 0,
) -> list[tuple[Batch, ...]]:
    """Mini-batches of the kept rollouts, each a tuple with one `Batch` per data-parallel rank.

    The order is a hash of (seed, group, index): the same rollouts are dealt alike, however they arrive. `token_budget`
    bounds a micro-batch's tokens, prompts included; one longer sequence stands alone, up to `max_sequence_tokens`
    (ConfigError above). Fewer sequences than `updates_per_rollout` make fewer mini-batches. Where a mini-batch has
    fewer sequences than ranks * m, a copy of its shortest one with mask 0 fills the gap and counts nowhere.
    """
    kept = sorted((c for c in credited if c.kept), key=lambda c: _shuffle_key(seed, c))
    for item in kept:
        _check_length(item, max_sequence_tokens)
    count = min(updates_per_rollout, len(kept))
    bounds = [len(kept) * i // count for i in range(count + 1)] if count else [0]
    return [_mini_batch(kept[begin:end], token_budget, ranks) for begin, end in pairwise(bounds)]


def tokens_of(item: Credited) -> int:
    """Length of the whole sequence, prompt and answer, in tokens: what a micro-batch pays for it."""
    rollout = item.valued.scored.rollout
    return len(rollout.prompt.tokens_T) + len(rollout.completion.tokens_T)


def _shuffle_key(seed: int, item: Credited) -> bytes:
    rollout = item.valued.scored.rollout
    return blake2b(f"{seed}|{rollout.group}|{rollout.index}".encode(), digest_size=8).digest()


def _check_length(item: Credited, max_sequence_tokens: int) -> None:
    tokens, rollout = tokens_of(item), item.valued.scored.rollout
    assert len(rollout.prompt.tokens_T), f"prompt {rollout.prompt.id} is empty: nothing predicts its first answer token"
    if tokens > max_sequence_tokens:
        raise ConfigError(
            f"a rollout of prompt '{rollout.prompt.id}' has {tokens} tokens (prompt {len(rollout.prompt.tokens_T)}), "
            f"more than the {max_sequence_tokens} that fit; lower rollout.max_tokens or data.max_prompt_tokens"
        )


def _mini_batch(items: list[Credited], token_budget: int, ranks: int) -> tuple[Batch, ...]:
    bins = _bins(items, token_budget, ranks)
    filler = min(items, key=tokens_of)
    per_rank: list[Bins] = [[] for _ in range(ranks)]
    for start in range(0, len(bins), ranks):
        row = bins[start : start + ranks]
        if (start // ranks) % 2:
            row.reverse()  # the rank with the largest bin of one index has the smallest of the next
        for rank, members in enumerate(row):
            per_rank[rank].append(members)
    lengths = [len(c.advantage_T) for c in items]
    positive = sum(n for n, c in zip(lengths, items, strict=True) if _right(c))
    totals = (float(sum(lengths)), float(len(items)), float(positive))
    return tuple(_batch(micros, filler, totals) for micros in per_rank)


def _bins(items: list[Credited], token_budget: int, ranks: int) -> Bins:
    """ranks * m bins, the fullest first, the longest first in each; a sequence over the budget fills one alone."""
    ordered = sorted(items, key=tokens_of, reverse=True)
    tokens_N = torch.tensor([tokens_of(item) for item in ordered])
    part_N = within_budget(tokens_N, tokens_N.clamp(max=token_budget), token_budget, multiple=ranks).tolist()
    bins: Bins = [[] for _ in range(-(-(max(part_N) + 1) // ranks) * ranks)]
    for item, part in zip(ordered, part_N, strict=True):
        bins[part].append(item)
    return bins


def _batch(micros: Bins, filler: Credited, totals: tuple[float, float, float]) -> Batch:
    """One rank's arrays; an empty micro-batch gets `filler` with mask 0."""
    members = [(item, micro) for micro, group in enumerate(micros) for item in (group or [filler])]
    fillers = [not micros[micro] for _, micro in members]
    items = [item for item, _ in members]
    weight_B = np.array([0.0 if unused else 1.0 for unused in fillers], np.float32)
    mask_T = _spread(items, [np.full(len(item.advantage_T), w) for item, w in zip(items, weight_B, strict=True)])
    right_B = [np.full(len(item.advantage_T), float(_right(item))) for item in items]
    valued = [item.valued for item in items]
    return Batch(
        tokens_T=_tokens(valued),
        cu_seqlens=np.concatenate([[0], np.cumsum([tokens_of(item) for item in items])]).astype(np.int32),
        micro_B=np.array([micro for _, micro in members], np.int32),
        mask_T=mask_T,
        logprob_T=_spread(items, [v.scored.rollout.completion.logprob_T for v in valued]),
        proximal_T=_optional(items, [v.proximal_T for v in valued]),
        reference_T=_optional(items, [v.reference_T for v in valued]),
        advantage_T=_spread(items, [item.advantage_T for item in items]),
        return_T=_spread(items, [item.return_T for item in items]),
        value_T=_optional(items, [v.value_T for v in valued]),
        positive_T=mask_T * _spread(items, right_B),
        sequence_weight_B=weight_B,
        global_tokens=totals[0],
        global_sequences=totals[1],
        global_positive_tokens=totals[2],
    )


def _tokens(valued: list[Valued]) -> Int32:
    rollouts = [v.scored.rollout for v in valued]
    return np.concatenate([a for r in rollouts for a in (r.prompt.tokens_T, r.completion.tokens_T)]).astype(np.int32)


def _spread(items: list[Credited], answers: Sequence[Float32]) -> Float32:
    """Per-answer-token arrays at their places in the packed sequences, zeros on the prompts."""
    parts: list[Float32] = []
    for item, answer in zip(items, answers, strict=True):
        prompt = np.zeros(len(item.valued.scored.rollout.prompt.tokens_T), np.float32)
        assert len(answer) == len(item.advantage_T), f"{len(answer)} values for {len(item.advantage_T)} tokens"
        parts += [prompt, answer]
    return np.concatenate(parts).astype(np.float32)


def _optional(items: list[Credited], answers: Sequence[Float32]) -> Float32:
    """Empty where no item has the array; all have it otherwise."""
    return _spread(items, answers) if any(len(answer) for answer in answers) else np.zeros(0, np.float32)


def _right(item: Credited) -> bool:
    return item.valued.scored.judgement.verdict is Verdict.RIGHT
