"""SFT examples: the mask covers the response and its stop token, and the prompt's ids are generation's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seedthink.data.puzzle_tokenizer import build_puzzle_tokenizer
from seedthink.data.puzzles import Habits, family, make
from seedthink.data.sft import cold_start_examples, load_examples, sft_example
from seedthink.errors import DataError

TOKENIZER = build_puzzle_tokenizer()


def learned(example: object) -> str:
    """Text of the tokens that the mask selects."""
    picked = example.tokens_T[example.mask_T == 1].tolist()
    return TOKENIZER.decode(picked, skip_special_tokens=False)


def write(folder: Path, *rows: object) -> Path:
    path = folder / "sft.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_the_mask_covers_the_response_and_the_stop_token_alone() -> None:
    example = sft_example(TOKENIZER, [{"role": "user", "content": "sum 1 2"}], "1 + 2 = 3 </think> 3")
    # <|user|> sum 1 2 <|assistant|> <think> | 1 + 2 = 3 </think> 3 <|end|>
    assert example.mask_T.tolist() == [0.0] * 6 + [1.0] * 8
    assert example.tokens_T[:6].tolist() == TOKENIZER.apply_chat([{"role": "user", "content": "sum 1 2"}])
    assert example.tokens_T[-1] == TOKENIZER.eos_token_ids[0]
    assert learned(example) == "1 + 2 = 3 </think> 3 <|end|>"


def test_a_think_tag_that_the_template_opens_is_not_written_twice() -> None:
    message = [{"role": "user", "content": "sum 1"}]
    tagged = sft_example(TOKENIZER, message, "<think> 1 </think> 1")
    assert tagged.tokens_T.tolist() == sft_example(TOKENIZER, message, "1 </think> 1").tokens_T.tolist()


def test_prompt_and_response_rows_and_conversations_give_the_same_example(tmp_path: Path) -> None:
    user, answer = {"role": "user", "content": "sum 1"}, {"role": "assistant", "content": "1 </think> 1"}
    path = write(
        tmp_path,
        {"prompt": "sum 1", "response": "1 </think> 1"},
        {"messages": [user, answer]},
        {"prompt": [user, answer]},
    )
    first, second, third = load_examples(path, TOKENIZER).examples
    assert first.tokens_T.tolist() == second.tokens_T.tolist() == third.tokens_T.tolist()
    assert first.id == f"{path}:1"


def test_of_a_longer_conversation_only_the_last_turn_is_learned(tmp_path: Path) -> None:
    turns = [("user", "sum 1"), ("assistant", "7"), ("user", "sum 2"), ("assistant", "2 </think> 2")]
    path = write(tmp_path, {"messages": [{"role": role, "content": text} for role, text in turns]})
    (example,) = load_examples(path, TOKENIZER).examples
    assert learned(example) == "2 </think> 2 <|end|>"


def test_rows_that_lack_a_response_or_are_too_long_are_told_by_line(tmp_path: Path) -> None:
    good = {"prompt": "sum 1", "response": "1 </think> 1"}
    with pytest.raises(DataError, match=r"sft\.jsonl:2 has no field 'response'"):
        load_examples(write(tmp_path, good, {"prompt": "sum 1"}), TOKENIZER)
    with pytest.raises(DataError, match=r"sft\.jsonl:1: the response must be text"):
        load_examples(write(tmp_path, {"prompt": "sum 1", "response": 5}), TOKENIZER)
    path = write(tmp_path, good, {"prompt": "sum 1 2 3", "response": "6"})
    # 9 tokens each at most: 5 + 4 fit, 7 + 2 fit too, and a limit of 8 fits neither.
    assert load_examples(path, TOKENIZER, max_tokens=9).skipped == 0
    with pytest.raises(DataError, match=r"all 2 examples are longer than data.max_length = 8"):
        load_examples(path, TOKENIZER, max_tokens=8)
    with pytest.raises(DataError, match=r"sft\.jsonl:1: the example has 9 tokens, the limit is 8"):
        load_examples(path, TOKENIZER, max_tokens=8, too_long="refuse")


def test_cold_start_examples_are_the_same_for_a_seed_and_differ_between_seeds() -> None:
    chosen = family("countdown")
    problems = make(chosen, seed=0, count=30)

    def texts(seed: int) -> list[str]:
        return [
            learned(example)
            for example in cold_start_examples(chosen, problems, TOKENIZER, habits=Habits(slips=0.2), seed=seed)
        ]

    assert texts(1) == texts(1) != texts(2)
    assert all(text.endswith("<|end|>") and text.count("</think>") == 1 for text in texts(1))
