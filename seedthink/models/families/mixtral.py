"""Mixtral (arXiv:2401.04088): Llama's attention, and experts in every layer, weighted by a softmax over the chosen.

transformers takes the softmax over all experts and renormalises the chosen, which is the same number.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seedthink.models.families.family import PLAIN, ExpertNames, Family
from seedthink.models.families.values import integer

if TYPE_CHECKING:
    from seedthink.models.config import ModelConfig


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": integer(config, "num_local_experts"),
        "experts_per_token": integer(config, "num_experts_per_tok"),
        "moe_intermediate_size": integer(config, "intermediate_size"),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "intermediate_size": config.moe_intermediate_size,
        "num_experts_per_tok": config.experts_per_token,
        "num_local_experts": config.num_experts,
    }


SPARSE = Family(
    architecture="MixtralForCausalLM",
    experts=ExpertNames("block_sparse_moe", "w1", "w3", "w2"),
    defaults={
        "num_key_value_heads": 8,
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "num_local_experts": 8,
        "num_experts_per_tok": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    constant={"sliding_window": None, "router_jitter_noise": 0.0},
    fixed={**PLAIN, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": ()},
    read=_read,
    write=_write,
)
