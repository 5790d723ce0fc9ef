"""What is refused before a run begins: texts that do not fit the model, problems on both sides, foreign tokenizers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from seedthink.controller.limits import check_apart, check_examples, check_prompts, repeated
from seedthink.data.sft import SftExample
from seedthink.errors import ConfigError, DataError
from seedthink.models.config import ModelConfig
from seedthink.types import Prompt

MODEL = ModelConfig(
    family="qwen3",
    vocab_size=32,
    hidden_size=16,
    intermediate_size=16,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=16,
    max_position_embeddings=10,
)


def prompt(name: str, *tokens: int) -> Prompt:
    return Prompt(name, "math", name, np.array(tokens, np.int32), {})


def example(name: str, question: list[int], answer: list[int]) -> SftExample:
    mask = np.array([0] * len(question) + [1] * len(answer), np.float32)
    return SftExample(np.array(question + answer, np.int32), mask, name)


def test_a_prompt_that_leaves_no_room_for_its_answer_is_refused_with_both_ways_out() -> None:
    check_prompts([prompt("a.jsonl:1", 1, 2, 3)], MODEL, 7, "rollout.max_tokens")
    says = (
        r"a.jsonl:2: 4 prompt tokens and rollout.max_tokens = 7 make 11, but the model has 10 positions .*"
        r"Lower rollout.max_tokens, or set data.max_prompt_tokens = 3"
    )
    with pytest.raises(ConfigError, match=says):
        check_prompts([prompt("a.jsonl:2", 1, 2, 3, 4)], MODEL, 7, "rollout.max_tokens")


def test_answers_as_long_as_the_context_are_refused_whatever_the_prompts_are() -> None:
    with pytest.raises(ConfigError, match=r"generation.max_tokens = 10: the model has only 10 positions"):
        check_prompts([], MODEL, 10, "generation.max_tokens")


def test_an_example_that_is_longer_than_the_context_is_refused() -> None:
    check_examples([example("a.jsonl:1", [1] * 5, [2] * 5)], MODEL)
    with pytest.raises(ConfigError, match=r"a.jsonl:2: the example has 11 tokens.*data.max_length = 10"):
        check_examples([example("a.jsonl:2", [1] * 6, [2] * 5)], MODEL)


def test_a_tokenizer_that_writes_tokens_the_model_does_not_have_is_refused() -> None:
    for check in (
        lambda: check_prompts([prompt("p", 1, 32)], MODEL, 1, "rollout.max_tokens"),
        lambda: check_examples([example("e", [1], [32])], MODEL),
    ):
        with pytest.raises(DataError, match=r"writes token 32, but the model has 32"):
            check()


def test_a_held_out_problem_in_the_training_data_is_found_by_its_tokens_whatever_its_id() -> None:
    held_out = [prompt("test.jsonl:9", 1, 2, 3), prompt("test.jsonl:10", 4)]
    check_apart([prompt("train.jsonl:1", 1, 2), example("train.jsonl:2", [1, 2], [3])], held_out)
    for shared in (prompt("train.jsonl:3", 1, 2, 3), example("train.jsonl:3", [1, 2, 3], [5, 6])):
        with pytest.raises(DataError, match=r"1 training problems .* train.jsonl:3 \(held out as test.jsonl:9\)"):
            check_apart([shared], held_out)
    with pytest.raises(DataError, match=r"held out as test.jsonl:10"):
        check_apart([replace(prompt("x", 7, 8), id="test.jsonl:10")], held_out)


def test_repeated_rows_are_counted() -> None:
    assert repeated([prompt("a", 1, 2), prompt("b", 1, 2), prompt("c", 1), prompt("d", 1, 2)]) == 2
