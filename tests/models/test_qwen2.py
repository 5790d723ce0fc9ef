"""Qwen2 and Qwen2.5 against transformers: a bias on queries, keys and values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import DENSE, critic_gap, export_gap, folder, gradient_gaps, logits_gap

from seedthink.engine.model_io import load_model
from seedthink.errors import DataError
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer

QWEN2 = {"model_type": "qwen2", **DENSE}
YARN = {"rope_type": "yarn", "factor": 4.0, "beta_fast": 8.0, "beta_slow": 0.5}
CONFIGS: dict[str, dict[str, Any]] = {
    "large": QWEN2 | {"rope_theta": 1000000.0},
    "small, tied": QWEN2 | {"tie_word_embeddings": True, "num_key_value_heads": 1},
    "odd sizes": QWEN2 | {"vocab_size": 101, "hidden_size": 37, "intermediate_size": 53, "head_dim": 32},
    "yarn": QWEN2 | {"rope_parameters": YARN | {"original_max_position_embeddings": 16, "rope_theta": 500.0}},
    "yarn, its own amplitude": QWEN2 | {"rope_scaling": YARN | {"attention_factor": 1.3, "truncate": False}},
    "stretched": QWEN2 | {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}},
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
    assert critic_gap(tmp_path, CONFIGS["small, tied"]) <= 1e-5


def test_the_bias_is_the_one_of_the_folder(tmp_path: Path) -> None:
    path, theirs = folder(tmp_path, QWEN2)
    attention = theirs.model.layers[1].self_attn
    biases = [projection.bias for projection in (attention.q_proj, attention.k_proj, attention.v_proj)]
    assert torch.equal(load_model(path).blocks[1].attention.qkv_bias_X, torch.cat(biases))


def test_a_fresh_model_has_biases_of_zero() -> None:
    model = Transformer(ModelConfig.from_hf(QWEN2))
    model.init_weights(0)
    assert not model.blocks[0].attention.qkv_bias_X.any()


@pytest.mark.parametrize(("key", "value"), [("use_sliding_window", True), ("layer_types", ["sliding_attention"] * 2)])
def test_sliding_windows_are_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(DataError, match=key):
        ModelConfig.from_hf(QWEN2 | {key: value})


def test_a_window_that_is_switched_off_does_not_matter() -> None:
    off = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 1}
    assert ModelConfig.from_hf(QWEN2 | off) == ModelConfig.from_hf(QWEN2)
