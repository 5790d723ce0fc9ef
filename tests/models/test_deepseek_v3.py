"""DeepSeek-V3 against transformers: latent attention, sigmoid routing in groups, shared experts, YaRN."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hf_folders import DENSE, critic_gap, export_gap, folder, gradient_gaps, logits_gap
from safetensors.torch import load_file, save_file

from seedthink.engine.model_io import load_model, save_model
from seedthink.errors import ConfigError, DataError
from seedthink.models.config import ModelConfig
from seedthink.models.decoder import Transformer

V3 = {"model_type": "deepseek_v3", **{key: value for key, value in DENSE.items() if key != "head_dim"}}
V3 |= {"num_hidden_layers": 3, "num_key_value_heads": 4, "first_k_dense_replace": 1}
V3 |= {"q_lora_rank": 24, "kv_lora_rank": 20, "qk_nope_head_dim": 12, "qk_rope_head_dim": 8, "v_head_dim": 10}
V3 |= {"n_routed_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 24, "n_group": 4, "topk_group": 2}
YARN = {"rope_type": "yarn", "factor": 40.0, "mscale": 1.0, "mscale_all_dim": 0.8, "rope_theta": 500.0}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain positions": V3,
    "yarn": V3 | {"rope_parameters": YARN | {"original_max_position_embeddings": 16}},
    "queries without a latent, pairs half apart": V3 | {"q_lora_rank": None, "rope_interleave": False},
    "values wider than keys, two shared": V3 | {"v_head_dim": 32, "n_shared_experts": 2, "norm_topk_prob": False},
    "one group, tied": V3 | {"n_group": 1, "topk_group": 1, "tie_word_embeddings": True, "rms_norm_eps": 1e-3},
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
    assert critic_gap(tmp_path, CONFIGS["yarn"]) <= 1e-5


def test_the_bias_of_the_choice_travels_and_no_gradient_moves_it(tmp_path: Path) -> None:
    path, theirs = folder(tmp_path, V3)
    bias_E = theirs.model.layers[2].mlp.gate.e_score_correction_bias
    assert bias_E.abs().max() > 0.1
    ours = load_model(path)
    assert torch.equal(ours.blocks[2].mlp.router_bias_E, bias_E) and not ours.blocks[2].mlp.router_bias_E.requires_grad
    written = load_file(save_model(ours, tmp_path / "ours") / "model.safetensors")
    assert torch.equal(written["model.layers.2.mlp.gate.e_score_correction_bias"], bias_E)


def test_layers_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    path, _ = folder(tmp_path, V3)
    before, tensors = load_model(path), load_file(path / "model.safetensors")
    further = {"model.layers.3.eh_proj.weight": torch.zeros(2), "model.layers.3.mlp.gate.weight": torch.zeros(2)}
    save_file(tensors | further, path / "model.safetensors")
    after = load_model(path).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.state_dict().items())
    save_file(tensors | {"model.layers.30.eh_proj.weight": torch.zeros(2)}, path / "model.safetensors")
    with pytest.raises(DataError, match=r"unexpected tensor \(model\.layers\.30"):
        load_model(path)


def test_config_is_read_and_written_back() -> None:
    config = ModelConfig.from_hf(CONFIGS["yarn"])
    assert (config.head_dim, config.rope_dim, config.mlp_only_layers) == (32, 8, (0,))
    assert ModelConfig.from_hf(config.to_hf()) == config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention_bias", True),
        ("moe_layer_freq", 2),
        ("scoring_func", "softmax"),
        ("topk_method", "greedy"),
        ("quantization_config", {"quant_method": "fp8"}),
        ("num_kv_heads", 2),
        ("topk_group", 1),
    ],
)
def test_a_setting_that_we_do_not_compute_is_refused_by_name(key: str, value: object) -> None:
    changes = {"num_key_value_heads" if key == "num_kv_heads" else key: value}
    with pytest.raises(DataError, match=key):
        ModelConfig.from_hf(V3 | changes)


def test_dense_layers_come_first() -> None:
    fields = {name: getattr(ModelConfig.from_hf(V3), name) for name in ModelConfig.__dataclass_fields__}
    with pytest.raises(ConfigError, match="must be the first layers"):
        ModelConfig(**(fields | {"mlp_only_layers": (1,)}))
    assert Transformer(ModelConfig(**fields)).blocks[0].mlp.gate_up_2I_D.shape == (96, 32)
