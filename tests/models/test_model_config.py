"""Reading config.json: what is kept, what is refused and by which name."""

from __future__ import annotations

from typing import Any

import pytest

from seedthink.errors import ConfigError, DataError
from seedthink.kernels.rope_scaling import LinearScaling
from seedthink.models.config import ModelConfig

PLAIN: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
}


def test_to_hf_is_the_inverse_of_from_hf() -> None:
    config = ModelConfig.from_hf(PLAIN | {"rope_theta": 5e5, "mlp_only_layers": [1], "eos_token_id": [3, 4]})
    assert ModelConfig.from_hf(config.to_hf()) == config
    assert (config.rope_theta, config.mlp_only_layers, config.eos_token_ids) == (5e5, (1,), (3, 4))


def test_sparse_layers_follow_step_and_exceptions() -> None:
    config = ModelConfig.from_hf(PLAIN | {"decoder_sparse_step": 2, "mlp_only_layers": [3]})
    assert [config.is_sparse(layer) for layer in range(4)] == [False, True, False, False]


@pytest.mark.parametrize(
    "rope", [{"rope_theta": 7.0}, {"rope_parameters": {"rope_type": "default", "rope_theta": 7.0}, "rope_theta": 9.0}]
)
def test_rope_theta_is_found_in_either_place(rope: dict[str, Any]) -> None:
    assert ModelConfig.from_hf(PLAIN | rope).rope_theta == 7.0


@pytest.mark.parametrize("kind", ["rope_type", "type"])
def test_rope_scaling_is_read_in_either_form(kind: str) -> None:
    found = ModelConfig.from_hf(PLAIN | {"rope_theta": 7.0, "rope_scaling": {kind: "linear", "factor": 2}})
    assert (found.rope_theta, found.rope_scaling) == (7.0, LinearScaling(factor=2.0))
    parameters = {"rope_theta": 7.0, "rope_type": "linear", "factor": 2.0}
    assert ModelConfig.from_hf(PLAIN | {"rope_parameters": parameters}) == found
    assert ModelConfig.from_hf(found.to_hf()) == found


@pytest.mark.parametrize("factor", [None, "four"])
def test_a_scaling_without_its_factor_is_refused(factor: str | None) -> None:
    with pytest.raises(DataError, match="factor"):
        ModelConfig.from_hf(PLAIN | {"rope_scaling": {"rope_type": "linear", "factor": factor}})


def test_generation_config_decides_the_end_of_sequence() -> None:
    config = ModelConfig.from_hf(PLAIN | {"eos_token_id": 3}, {"eos_token_id": [3, 5], "pad_token_id": None})
    assert config.eos_token_ids == (3, 5) and config.pad_token_id is None


def test_experts_may_be_counted_under_the_newer_name() -> None:
    newer = {("num_local_experts" if key == "num_experts" else key): value for key, value in PLAIN.items()}
    assert ModelConfig.from_hf(newer).num_experts == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("model_type", "gpt2"),
        ("rope_scaling", {"rope_type": "dynamic", "factor": 4.0}),
        ("rope_parameters", {"rope_type": "longrope", "factor": 2.0}),
        ("rope_parameters", {"rope_type": "default", "factor": 2.0}),
        ("rope_parameters", {"full_attention": {"rope_theta": 1e4}}),
        ("use_sliding_window", True),
        ("layer_types", ["full_attention", "sliding_attention"]),
        ("attention_bias", True),
        ("attention_dropout", 0.1),
        ("hidden_act", "gelu"),
        ("quantization_config", {"quant_method": "fp8"}),
        ("num_experts_per_tok", 9),
        ("num_key_value_heads", 3),
        ("head_dim", 20),
        ("hidden_size", "32"),
        ("hidden_size", None),
        ("vocab_size", 0),
        ("rope_theta", "big"),
        ("tie_word_embeddings", "no"),
        ("eos_token_id", "</s>"),
    ],
)
def test_a_setting_that_we_do_not_compute_is_refused_by_name(key: str, value: Any) -> None:
    ours = {"num_experts_per_tok": "experts_per_token", "num_key_value_heads": "num_kv_heads"}.get(key, key)
    with pytest.raises(DataError, match=ours):
        ModelConfig.from_hf(PLAIN | {key: value})


def test_an_unknown_architecture_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match=r"'gpt2'.*Qwen3ForCausalLM.*LlamaForCausalLM.*MixtralForCausalLM"):
        ModelConfig.from_hf({"model_type": "gpt2"})


def test_a_config_written_in_code_fails_as_a_config_error() -> None:
    with pytest.raises(ConfigError, match="num_layers = 0 must be positive"):
        ModelConfig(
            family="qwen3",
            vocab_size=8,
            hidden_size=8,
            intermediate_size=8,
            num_layers=0,
            num_heads=1,
            num_kv_heads=1,
            head_dim=16,
        )
