"""Rows that a forward computes: shared prompts once, with the bits and the gradient of computing them each time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from seedthink.engine.micro_batch import micro_batches, unlabelled_batch
from seedthink.engine.rows import rows_of
from seedthink.engine.trainer import policy_forward
from seedthink.models.config import ModelConfig
from seedthink.models.context import PackedContext
from seedthink.models.decoder import Transformer

SHAPE = {"vocab_size": 32, "hidden_size": 32, "intermediate_size": 32, "num_layers": 2, "num_heads": 2, "head_dim": 16}
SHAPE |= {"num_kv_heads": 1, "num_experts": 4, "experts_per_token": 2, "moe_intermediate_size": 32}


def packed(*sequences: tuple[list[int], list[int]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(tokens, bounds, mask) of sequences of a prompt and an answer each."""
    tokens = [np.array([*prompt, *answer], np.int32) for prompt, answer in sequences]
    mask = [np.array([0.0] * len(prompt) + [1.0] * len(answer), np.float32) for prompt, answer in sequences]
    bounds = np.concatenate([[0], np.cumsum([len(each) for each in tokens])]).astype(np.int32)
    return np.concatenate(tokens), bounds, np.concatenate(mask)


def test_a_prompt_that_two_answers_share_stands_once_and_last_tokens_nowhere() -> None:
    rows = rows_of(*packed(([1, 2], [3, 4]), ([5], [6, 7, 8]), ([1, 2], [9])))
    assert rows.tokens_U.tolist() == [1, 2, 3, 5, 6, 7]
    assert rows.cu_seqlens_S1.tolist() == [0, 2, 3, 6, 6]
    assert rows.prefix_S.tolist() == [-1, 0, -1, 0]
    assert rows.source_R.tolist() == [1, 2, 3, 4, 5, 1]


def test_a_row_counts_once_for_each_sequence_through_it_and_not_where_nothing_is_predicted() -> None:
    rows = rows_of(*packed(([1, 2], [3, 4]), ([5], [6, 7, 8]), ([1, 2], [9]), ([4, 4, 4], [])))
    assert rows.tokens_U.tolist() == [1, 2, 3, 5, 6, 7, 4, 4]
    assert rows.times_U.tolist() == [2, 2, 1, 1, 1, 1, 0, 0]


def test_prompts_that_merely_begin_alike_are_not_shared() -> None:
    rows = rows_of(*packed(([1, 2], [3, 4]), ([1], [2, 3, 4])))
    assert rows.tokens_U.tolist() == [1, 2, 3, 1, 2, 3]
    assert rows.prefix_S.tolist() == [-1, -1]


def test_sequences_in_which_nothing_is_predicted_share_nothing() -> None:
    tokens, bounds, mask = packed(([1, 2, 3], []), ([1, 2, 3], []))
    rows = rows_of(tokens, bounds, mask)
    assert rows.tokens_U.tolist() == [1, 2, 1, 2] and rows.source_R.tolist() == []


def test_a_later_gap_in_the_mask_stays_in_the_answer() -> None:
    tokens, bounds, mask = packed(([1], [2, 3, 4]), ([1], [2, 3, 4]))
    mask[[2, 6]] = 0.0  # a tool's words, say
    rows = rows_of(tokens, bounds, mask)
    assert rows.tokens_U.tolist() == [1, 2, 3, 2, 3]
    assert rows.source_R.tolist() == [0, 2, 0, 4]


def group(compute: torch.dtype) -> tuple[Transformer, list[np.ndarray], list[np.ndarray]]:
    """A model, five sequences of which three and two share a prompt, and the masks of their answers."""
    model = Transformer(ModelConfig(family="qwen3_moe", **SHAPE), compute)
    model.init_weights(0)
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 32, n) for n in (19, 7)]
    parts = [(prompts[which], draw.integers(0, 32, n)) for which, n in ((0, 5), (1, 1), (0, 30), (1, 12), (0, 17))]
    masks = [np.array([0.0] * len(prompt) + [1.0] * len(answer)) for prompt, answer in parts]
    return model, [np.concatenate(part).astype(np.int32) for part in parts], masks


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_log_probs_behind_a_shared_prompt_have_the_bits_of_a_sequence_alone(compute: torch.dtype) -> None:
    model, sequences, masks = group(compute)
    (together,) = micro_batches(unlabelled_batch(sequences, masks, 1000, 65.0, 5.0))
    apart = micro_batches(unlabelled_batch(sequences, masks, 1, 65.0, 5.0))
    assert len(together.rows().tokens_U) == 19 + 7 + 65 - 5
    with torch.no_grad():
        shared_T = policy_forward(model, together)[0]
        assert torch.equal(shared_T, torch.cat([policy_forward(model, each)[0] for each in apart]))


def test_the_gradient_is_that_of_computing_each_copy() -> None:
    model, sequences, masks = group(torch.float32)
    (together,) = micro_batches(unlabelled_batch(sequences, masks, 1000, 65.0, 5.0))
    weight_T = torch.linspace(-1, 1, len(together.tokens_T))
    (policy_forward(model, together)[0] * weight_T).sum().backward()
    shared = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    begin = 0
    for each in micro_batches(unlabelled_batch(sequences, masks, 1, 65.0, 5.0)):
        end = begin + len(each.tokens_T)
        (policy_forward(model, each)[0] * weight_T[begin:end]).sum().backward()
        begin = end
    for grad, parameter in zip(shared, model.parameters(), strict=True):
        torch.testing.assert_close(grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_positions_count_on_from_the_prefix() -> None:
    rows = rows_of(*packed(([1, 2], [3, 4, 5]), ([1, 2], [9, 8])))
    context = PackedContext(rows.cu_seqlens_S1, torch.float32, 1.0, rows.prefix_S)
    assert context.positions_T.tolist() == [0, 1, 2, 3, 2]
