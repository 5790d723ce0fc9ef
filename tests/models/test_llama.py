"""Llama 2, 3 and 3.1 against transformers: no norms of queries and keys, no biases, three kinds of rotary angles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import DENSE, critic_gap, export_gap, gradient_gaps, logits_gap
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from seedthink.errors import DataError
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer

LLAMA = {"model_type": "llama", **DENSE}
WAVES = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama 2": LLAMA | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "llama 3": LLAMA | {"rope_theta": 500000.0, "tie_word_embeddings": True},
    "llama 3.1": LLAMA | {"rope_parameters": WAVES | {"rope_theta": 500.0, "original_max_position_embeddings": 32}},
    "linear": LLAMA | {"rope_parameters": {"rope_type": "linear", "factor": 2.5}, "hidden_size": 44},
    "one kv head, wide": LLAMA | {"num_key_value_heads": 1, "head_dim": 48, "num_hidden_layers": 3},
}
every_config = pytest.mark.parametrize("name", CONFIGS)


@every_config
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    assert logits_gap(tmp_path, CONFIGS[name]) <= 1e-5


@every_config
def test_gradients_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    gaps = gradient_gaps(tmp_path, CONFIGS[name])
    assert max(gaps.values()) <= 5e-5, gaps


@every_config
def test_a_folder_that_we_write_has_the_same_logits_in_transformers(name: str, tmp_path: Path) -> None:
    assert export_gap(tmp_path, CONFIGS[name]) == 0.0


def test_a_critic_is_a_token_classifier_to_transformers(tmp_path: Path) -> None:
    assert critic_gap(tmp_path, CONFIGS["llama 3.1"]) <= 1e-5


@pytest.mark.parametrize(
    "scaling",
    [
        None,
        {"rope_type": "linear", "factor": 3.0},
        WAVES | {"original_max_position_embeddings": 8192},
        {"rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 4096},
        {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0, "mscale_all_dim": 0.7},
    ],
    ids=lambda scaling: "plain" if scaling is None else scaling.get("rope_type", "older key"),
)
def test_far_positions_have_the_bits_of_transformers_angles(scaling: dict[str, Any] | None) -> None:
    sizes = LLAMA | {"head_dim": 128, "max_position_embeddings": 131072, "rope_theta": 500000.0}
    ours = Transformer(ModelConfig.from_hf(sizes | {"rope_scaling": scaling})).table
    theirs = LlamaRotaryEmbedding(LlamaConfig(**sizes, rope_scaling=scaling))
    positions = torch.tensor([0, 1, 8191, 100003, 131071])
    cos, sin = theirs(torch.zeros(1), positions[None])
    assert torch.equal(ours[positions], torch.cat([cos[0, :, :64], sin[0, :, :64]], dim=-1))


def test_the_published_config_of_llama_3_1_is_read_and_written_back() -> None:
    published = {
        "model_type": "llama",
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "rope_scaling": WAVES | {"original_max_position_embeddings": 8192},
        "bos_token_id": 128000,
        "eos_token_id": [128001, 128008, 128009],
        "attention_bias": False,
        "mlp_bias": False,
        "pretraining_tp": 1,
    }
    config = ModelConfig.from_hf(published)
    assert (config.head_dim, config.qk_norm, config.qkv_bias) == (128, False, False)
    written = config.to_hf()
    assert {key: written.get(key) for key in published} == published | {"pretraining_tp": None}
    assert ModelConfig.from_hf(written) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("mlp_bias", True),
        ("low_freq_factor", None),
        ("rope_type", "dynamic"),
        ("beta_fast", 32),
    ],
)
def test_a_setting_that_we_do_not_compute_is_refused_by_name(key: str, value: object) -> None:
    settings = {key: value} if key.endswith("bias") else {"rope_scaling": WAVES | {key: value}}
    with pytest.raises(DataError, match=key):
        ModelConfig.from_hf(LLAMA | settings)
