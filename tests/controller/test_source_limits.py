"""What source tables become: puzzles keep the limits that files keep."""

from __future__ import annotations

import pytest

from seedthink.config import RlConfig, SftConfig, load
from seedthink.controller.sources import held_out_prompts, training_prompts, training_texts
from seedthink.data.puzzle_tokenizer import build_puzzle_tokenizer
from seedthink.data.tokenizer import Tokenizer
from seedthink.errors import ConfigError, DataError

TOKENIZER: Tokenizer = build_puzzle_tokenizer()
SUM = {"kind": "puzzle", "family": "running_sum", "min_terms": 2, "max_terms": 8, "count": 60}


def rl(**data: object) -> RlConfig:
    return load(None, RlConfig, {"data.train": [SUM], "data.eval": [SUM], **{f"data.{k}": v for k, v in data.items()}})


def test_puzzles_longer_than_the_limit_are_skipped_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    everything = list(training_prompts(rl().data, TOKENIZER, 0).items)
    middle = sorted(len(prompt.tokens_T) for prompt in everything)[30]
    config = rl(max_prompt_tokens=middle)
    kept = list(training_prompts(config.data, TOKENIZER, 0).items)
    assert kept and len(kept) < 60 and all(len(prompt.tokens_T) <= middle for prompt in kept)
    assert f"running_sum: {60 - len(kept)} rows skipped, longer than {middle} tokens" in caplog.text
    assert all(len(prompt.tokens_T) <= middle for prompt in held_out_prompts(config.data, TOKENIZER, 40, 0))


def test_puzzles_longer_than_the_limit_are_refused_where_the_recipe_says_so() -> None:
    with pytest.raises(DataError, match=r"puzzle .*: the text has \d+ tokens, the limit is 3"):
        training_prompts(rl(max_prompt_tokens=3, overlong="error").data, TOKENIZER, 0)
    with pytest.raises(ConfigError, match=r"data.max_prompt_tokens = 3 is too short for every running_sum puzzle"):
        training_prompts(rl(max_prompt_tokens=3).data, TOKENIZER, 0)


def test_chains_of_thought_longer_than_the_limit_are_left_out() -> None:
    config = load(None, SftConfig, {"data.train": [SUM], "data.max_length": 60})
    kept = list(training_texts(config.data, TOKENIZER, 0).items)
    assert kept and all(len(example.tokens_T) <= 60 for example in kept)
