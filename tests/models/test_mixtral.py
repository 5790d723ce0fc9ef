"""Mixtral against transformers: experts in every layer, their weights renormalised, tensors named w1, w3 and w2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hf_folders import DENSE, critic_gap, export_gap, folder, gradient_gaps, logits_gap
from safetensors.torch import load_file

from seedthink.engine.model_io import load_model, save_model
from seedthink.errors import ConfigError, DataError
from seedthink.models.config import ModelConfig

MIXTRAL = {"model_type": "mixtral", **DENSE, "num_local_experts": 6, "num_experts_per_tok": 2}
CONFIGS: dict[str, dict[str, Any]] = {
    "two of six": MIXTRAL,
    "two of eight, as many kv heads": MIXTRAL | {"num_local_experts": 8, "num_key_value_heads": 4},
    "one of five, odd width": MIXTRAL | {"num_local_experts": 5, "num_experts_per_tok": 1, "intermediate_size": 19},
    "all of three, tied": MIXTRAL | {"num_local_experts": 3, "num_experts_per_tok": 3, "tie_word_embeddings": True},
}
every_config = pytest.mark.parametrize("name", CONFIGS)


@every_config
def test_logits_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    assert logits_gap(tmp_path, CONFIGS[name]) <= 1e-5


@pytest.mark.parametrize("name", ["two of six", "two of eight, as many kv heads", "all of three, tied"])
def test_gradients_equal_those_of_transformers(name: str, tmp_path: Path) -> None:
    gaps = gradient_gaps(tmp_path, CONFIGS[name])
    assert max(gaps.values()) <= 5e-5, gaps


@pytest.mark.parametrize("name", ["two of six", "two of eight, as many kv heads", "all of three, tied"])
def test_a_folder_that_we_write_has_the_same_logits_in_transformers(name: str, tmp_path: Path) -> None:
    assert export_gap(tmp_path, CONFIGS[name]) == 0.0


def test_a_critic_is_a_token_classifier_to_transformers(tmp_path: Path) -> None:
    assert critic_gap(tmp_path, MIXTRAL) <= 1e-5


def test_the_files_hold_the_published_names(tmp_path: Path) -> None:
    ours = load_file(save_model(load_model(folder(tmp_path, MIXTRAL)[0]), tmp_path / "ours") / "model.safetensors")
    sparse = "model.layers.1.block_sparse_moe"
    assert ours[f"{sparse}.gate.weight"].shape == (6, 32)
    assert ours[f"{sparse}.experts.5.w1.weight"].shape == ours[f"{sparse}.experts.5.w3.weight"].shape == (48, 32)
    assert ours[f"{sparse}.experts.5.w2.weight"].shape == (32, 48)


def test_missing_keys_take_mixtrals_own_defaults() -> None:
    needed = ("model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
    config = ModelConfig.from_hf({key: MIXTRAL[key] for key in needed} | {"num_attention_heads": 8, "head_dim": 16})
    assert (config.num_kv_heads, config.num_experts, config.experts_per_token) == (8, 8, 2)
    assert (config.rope_theta, config.rms_norm_eps, config.max_position_embeddings) == (1e6, 1e-5, 131072)
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(("key", "value"), [("sliding_window", 4096), ("router_jitter_noise", 0.1)])
def test_a_setting_that_we_do_not_compute_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(DataError, match=key):
        ModelConfig.from_hf(MIXTRAL | {key: value})


def test_weights_that_are_not_renormalised_are_no_mixtral() -> None:
    fields = {name: getattr(ModelConfig.from_hf(MIXTRAL), name) for name in ModelConfig.__dataclass_fields__}
    with pytest.raises(ConfigError, match="norm_topk_prob = False must be True in the family 'mixtral'"):
        ModelConfig(**(fields | {"norm_topk_prob": False}))
