"""Models from and to folders: what travels along, and that errors name the folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from seedthink.engine.model_io import load_model, load_value_model, save_model
from seedthink.errors import DataError
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer

CONFIG = ModelConfig(
    family="qwen3",
    vocab_size=20,
    hidden_size=32,
    intermediate_size=24,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=16,
    tie_word_embeddings=True,
    max_position_embeddings=32,
    eos_token_ids=(3, 5),
)


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    model = Transformer(CONFIG)
    model.init_weights(0)
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text('{"a": 1}')
    (tmp_path / "tokenizer" / "chat_template.jinja").write_text("{{ messages }}")
    return save_model(model, tmp_path / "model", tokenizer_folder=tmp_path / "tokenizer")


def test_an_export_asks_for_plain_sampling_and_brings_its_tokenizer(exported: Path) -> None:
    generation = json.loads((exported / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [3, 5], "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    assert (exported / "tokenizer.json").read_text() == '{"a": 1}'
    assert (exported / "chat_template.jinja").read_text() == "{{ messages }}"


def test_an_export_may_replace_the_folder_that_its_tokenizer_comes_from(exported: Path) -> None:
    again = save_model(load_model(exported), exported, torch.bfloat16, tokenizer_folder=exported)
    assert (again / "tokenizer.json").read_text() == '{"a": 1}'
    assert load_model(again, torch.bfloat16).config == CONFIG


def test_an_unsupported_architecture_names_the_folder(exported: Path) -> None:
    (exported / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(DataError, match=rf"{exported}: config\.json: model_type = 'gpt2'"):
        load_model(exported)


def test_weights_of_another_size_name_file_and_both_shapes(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    (exported / "config.json").write_text(json.dumps(config | {"vocab_size": 21}))
    with pytest.raises(
        DataError, match=r"model\.safetensors: model\.embed_tokens\.weight has shape \(20, 32\).*\(21, 32\)"
    ):
        load_model(exported)


def test_a_policy_is_no_critic(exported: Path) -> None:
    with pytest.raises(DataError, match=r"2 tensors \(score\.bias, score\.weight\) missing"):
        load_value_model(exported)
