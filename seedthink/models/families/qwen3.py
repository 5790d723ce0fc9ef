"""Qwen3 and Qwen3-MoE (Qwen3 technical report, arXiv:2505.09388): normalised queries and keys, experts by softmax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seedthink.models.families.family import PLAIN, ExpertNames, Family
from seedthink.models.families.values import flag, integer, integers

if TYPE_CHECKING:
    from seedthink.models.config import ModelConfig

_CONSTANT = {"attention_bias": False, "use_sliding_window": False}


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "num_experts": integer(config, "num_experts" if "num_experts" in config else "num_local_experts"),
        "experts_per_token": integer(config, "num_experts_per_tok"),
        "moe_intermediate_size": integer(config, "moe_intermediate_size"),
        "norm_topk_prob": flag(config, "norm_topk_prob"),
        "decoder_sparse_step": integer(config, "decoder_sparse_step", 1),
        "mlp_only_layers": integers(config, "mlp_only_layers"),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    return {
        "decoder_sparse_step": config.decoder_sparse_step,
        "mlp_only_layers": list(config.mlp_only_layers),
        "moe_intermediate_size": config.moe_intermediate_size,
        "norm_topk_prob": config.norm_topk_prob,
        "num_experts": config.num_experts,
        "num_experts_per_tok": config.experts_per_token,
    }


DENSE = Family(
    architecture="Qwen3ForCausalLM",
    qk_norm=True,
    defaults={"head_dim": 128},
    constant=_CONSTANT,
)
SPARSE = Family(
    architecture="Qwen3MoeForCausalLM",
    qk_norm=True,
    experts=ExpertNames("mlp", "gate_proj", "up_proj", "down_proj"),
    constant=_CONSTANT,
    fixed=PLAIN,
    read=_read,
    write=_write,
)
