"""The offline generator: kinds of prompts, samples, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seedthink.engine.llm import LLM
from seedthink.engine.model_io import save_model
from seedthink.errors import ConfigError
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer
from seedthink.types import Finish


class Letters:
    """a is 1, b is 2, ...; z ends an answer. A conversation is its contents, each behind a space (0)."""

    eos_token_ids = (26,)

    def encode(self, text: str) -> list[int]:
        return [ord(letter) - 96 for letter in text]

    def decode(self, tokens: Sequence[int]) -> str:
        return "".join(chr(96 + token) if token else " " for token in tokens)

    def apply_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [token for message in messages for token in [0, *self.encode(message["content"])]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = ModelConfig(
        family="qwen3_moe",
        vocab_size=27,
        hidden_size=32,
        intermediate_size=32,
        num_layers=2,
        num_heads=2,
        num_kv_heads=1,
        head_dim=16,
        num_experts=4,
        experts_per_token=2,
        moe_intermediate_size=16,
        max_position_embeddings=64,
        initializer_range=0.3,
        eos_token_ids=(25,),
    )
    torch.set_num_threads(2)
    model = Transformer(config)
    model.init_weights(seed=0)
    return save_model(model, tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def llm(folder: Path) -> LLM:
    return LLM(folder, Letters())


def test_texts_conversations_and_tokens_are_prompts(llm: LLM) -> None:
    found = llm.generate([[0, 1, 2], [{"role": "user", "content": "ab"}]], max_tokens=5, temperature=0)
    assert found[0][0].tokens_T.tolist() == found[1][0].tokens_T.tolist()
    text, tokens = llm.generate(["ab", [1, 2]], max_tokens=5, temperature=0)
    assert text[0].tokens_T.tolist() == tokens[0].tokens_T.tolist()
    assert text[0].text == Letters().decode([t for t in text[0].tokens_T.tolist() if t not in (25, 26)])


def test_n_samples_differ_and_come_back_in_order_whatever_else_is_asked(llm: LLM) -> None:
    prompt = "abcdefghijklmnopqrstuvwxy"
    four = llm.generate([prompt], n=4, max_tokens=12)[0]
    assert len({tuple(each.tokens_T.tolist()) for each in four}) == 4
    again = llm.generate([prompt, "b", "c"], n=2, max_tokens=12)
    assert [each.tokens_T.tolist() for each in again[0]] == [each.tokens_T.tolist() for each in four[:2]]
    assert [len(each) for each in again] == [2, 2, 2]
    other = llm.generate([prompt], max_tokens=12, seed=1)[0][0]
    assert other.tokens_T.tolist() != four[0].tokens_T.tolist()


def test_the_end_tokens_of_model_and_tokenizer_both_end_an_answer(llm: LLM) -> None:
    found = [each for each in llm.generate(["a"], n=64, max_tokens=40)[0] if each.finish is Finish.STOP]
    assert {int(each.tokens_T[-1]) for each in found} == {25, 26}
    assert all(not set(each.text) & {"y", "z"} for each in found)


def test_log_probs_can_be_left_out(llm: LLM) -> None:
    with_them, without = (llm.generate(["abc"], max_tokens=4, logprobs=wanted)[0][0] for wanted in (True, False))
    assert with_them.tokens_T.tolist() == without.tokens_T.tolist()
    assert len(with_them.logprob_T) == len(with_them.tokens_T) and len(without.logprob_T) == 0


def test_bfloat16_answers_too(folder: Path) -> None:
    done = LLM(folder, Letters(), dtype="bfloat16", max_sequences=2).generate(["abc"], n=3, max_tokens=4)[0]
    assert all(np.isfinite(each.logprob_T).all() and len(each.tokens_T) for each in done)


def test_wrong_settings_are_named_with_what_is_allowed(llm: LLM, folder: Path) -> None:
    with pytest.raises(ConfigError, match="'temprature'; did you mean temperature"):
        llm.generate(["a"], temprature=0.5)
    with pytest.raises(ConfigError, match="did you mean max_tokens"):
        llm.generate(["a"], max_new_tokens=5)
    with pytest.raises(ConfigError, match="a list of prompts"):
        llm.generate("abc")
    with pytest.raises(ConfigError, match="a list of prompts"):
        llm.generate([{"role": "user", "content": "a"}])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="n = 0"):
        llm.generate(["a"], n=0)
    with pytest.raises(ConfigError, match=r"dtype = 'float16'.*float32, bfloat16"):
        LLM(folder, Letters(), dtype="float16")
    with pytest.raises(ConfigError, match="'max_sequence'; did you mean max_sequences"):
        LLM(folder, Letters(), max_sequence=3)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"max_tokens": "8"}, 'max_tokens = "8" is not allowed: it takes a whole number'),
        ({"max_tokens": 2.5}, "max_tokens = 2.5 is not allowed"),
        ({"temperature": "hot"}, 'temperature = "hot" is not allowed: it takes a number'),
        ({"stop": 5}, "stop = 5 is not allowed: it takes a list of a text"),
        ({"stop": [5]}, r"stop\[0\] = 5 is not allowed: it takes a text"),
        ({"n": "2"}, 'n = "2" is not allowed'),
        ({"seed": 1.5}, "seed = 1.5 is not allowed"),
        ({"seed": -1}, "seed = -1: .*seed at least 0"),
    ],
)
def test_a_value_of_another_type_is_named_with_what_is_allowed(llm: LLM, wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        llm.generate(["a"], **wrong)


@pytest.mark.parametrize("prompts", [None, 5, [5], [1, 2], [["a", "b"]], [[1.5]], [[True]], [{"a"}]])
def test_what_is_no_prompt_is_refused_with_what_is_one(llm: LLM, prompts: Any) -> None:
    with pytest.raises(ConfigError, match=r"a list of prompts|a text, a list of messages or a list of token ids"):
        llm.generate(prompts)


def test_numbers_and_ids_may_come_from_numpy(llm: LLM) -> None:
    plain = llm.generate([[1, 2]], max_tokens=3, seed=4)
    numpy = llm.generate(np.array([[1, 2]]), max_tokens=np.int64(3), seed=np.int64(4), temperature=np.float32(1))  # type: ignore[arg-type]
    assert plain[0][0].tokens_T.tolist() == numpy[0][0].tokens_T.tolist()


def test_a_setting_of_another_type_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match='kv_memory_mib = "big" is not allowed: it takes a whole number'):
        LLM(folder, Letters(), kv_memory_mib="big")  # type: ignore[arg-type]


def test_a_refused_prompt_leaves_the_generator_usable(llm: LLM) -> None:
    with pytest.raises(ConfigError, match=r"request '1\.0'.*64 positions"):
        llm.generate(["a", [1] * 60], max_tokens=5)
    assert len(llm.generate(["a"], max_tokens=2, ignore_eos=True)[0][0].tokens_T) == 2
