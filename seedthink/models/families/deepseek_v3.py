"""DeepSeek-V3 (arXiv:2412.19437): latent attention, sigmoid routing in groups, shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from seedthink.errors import ConfigError
from seedthink.models.families.family import ExpertNames, Family
from seedthink.models.families.values import flag, integer, number
from seedthink.models.variants import LatentSizes, Router

if TYPE_CHECKING:
    from seedthink.models.config import ModelConfig


def _read(config: Mapping[str, Any]) -> dict[str, Any]:
    latent = LatentSizes(
        q_rank=None if config["q_lora_rank"] is None else integer(config, "q_lora_rank"),
        kv_rank=integer(config, "kv_lora_rank"),
        plain_dim=integer(config, "qk_nope_head_dim"),
        turned_dim=integer(config, "qk_rope_head_dim"),
        value_dim=integer(config, "v_head_dim"),
        interleaved=flag(config, "rope_interleave"),
    )
    router = Router(
        score="sigmoid",
        scale=number(config, "routed_scaling_factor"),
        groups=integer(config, "n_group"),
        topk_groups=integer(config, "topk_group"),
        bias=True,
    )
    width, layers = integer(config, "moe_intermediate_size"), integer(config, "num_hidden_layers")
    return {
        "latent": latent,
        "head_dim": latent.head_dim,
        "router": router,
        "num_experts": integer(config, "n_routed_experts" if "n_routed_experts" in config else "num_local_experts"),
        "experts_per_token": integer(config, "num_experts_per_tok"),
        "moe_intermediate_size": width,
        "shared_expert_width": width * integer(config, "n_shared_experts"),
        "norm_topk_prob": flag(config, "norm_topk_prob"),
        "mlp_only_layers": tuple(range(min(integer(config, "first_k_dense_replace"), layers))),
    }


def _write(config: ModelConfig) -> dict[str, Any]:
    latent, router = config.latent, config.router
    assert latent is not None, "the family's check asks for it"
    return {
        "first_k_dense_replace": len(config.mlp_only_layers),
        "head_dim": latent.turned_dim,
        "kv_lora_rank": latent.kv_rank,
        "moe_intermediate_size": config.moe_intermediate_size,
        "n_group": router.groups,
        "n_routed_experts": config.num_experts,
        "n_shared_experts": config.shared_expert_width // config.moe_intermediate_size,
        "norm_topk_prob": config.norm_topk_prob,
        "num_experts_per_tok": config.experts_per_token,
        "num_nextn_predict_layers": 0,
        "q_lora_rank": latent.q_rank,
        "qk_nope_head_dim": latent.plain_dim,
        "qk_rope_head_dim": latent.turned_dim,
        "rope_interleave": latent.interleaved,
        "routed_scaling_factor": router.scale,
        "topk_group": router.topk_groups,
        "v_head_dim": latent.value_dim,
    }


def _check(config: ModelConfig) -> None:
    latent, router = config.latent, config.router
    if latent is None or config.head_dim != latent.head_dim:
        raise ConfigError(f"latent = {latent}: deepseek_v3 has latent attention, and head_dim is its head_dim")
    if config.num_kv_heads != config.num_heads:
        raise ConfigError(f"num_kv_heads = {config.num_kv_heads} must be num_heads = {config.num_heads}")
    if config.shared_expert_width <= 0 or config.shared_expert_width % config.moe_intermediate_size:
        raise ConfigError(
            f"shared_expert_width = {config.shared_expert_width} must be a multiple of moe_intermediate_size = "
            f"{config.moe_intermediate_size}: one or more shared experts"
        )
    if config.mlp_only_layers != tuple(range(len(config.mlp_only_layers))):
        raise ConfigError(f"mlp_only_layers = {config.mlp_only_layers} must be the first layers: 0, 1, ...")
    if (router.score, router.bias) != ("sigmoid", True) or config.num_experts % router.groups:
        raise ConfigError(f"router = {router}: scores are sigmoids with a bias, and groups divide {config.num_experts}")
    if config.experts_per_token > router.topk_groups * (config.num_experts // router.groups):
        raise ConfigError(f"router = {router}: topk_groups leave fewer than {config.experts_per_token} experts")


SPARSE = Family(
    architecture="DeepseekV3ForCausalLM",
    experts=ExpertNames("mlp", "gate_proj", "up_proj", "down_proj"),
    defaults={
        "max_position_embeddings": 4096,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "rope_interleave": True,
        "moe_intermediate_size": 2048,
        "n_shared_experts": 1,
        "num_experts_per_tok": 8,
        "n_group": 8,
        "topk_group": 4,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "first_k_dense_replace": 3,
    },
    constant={
        "attention_bias": False,
        "moe_layer_freq": 1,
        "scoring_func": "sigmoid",
        "topk_method": "noaux_tc",
    },
    fixed={"decoder_sparse_step": 1},
    further_layers=True,
    read=_read,
    write=_write,
    check=_check,
)
