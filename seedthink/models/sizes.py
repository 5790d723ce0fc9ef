"""How many parameters a model has, from its config alone, by what a parallel layout could cut them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from functools import cache

from seedthink.models.config import ModelConfig


@cache
def parts(config: ModelConfig) -> Mapping[str, int]:
    """Parameters by kind: "whole" are cut by nothing, "matrices" by heads or width, "kv" by kv heads, "experts"."""
    width = config.hidden_size
    found: Counter[str] = Counter(kv=0, experts=0)
    found["whole"] = config.vocab_size * width * (1 if config.tie_word_embeddings else 2) + width
    for layer in range(config.num_layers):
        found["whole"] += 2 * width
        found.update(_attention(config) if config.latent is None else _latent_attention(config))
        if config.is_sparse(layer):
            found["whole"] += (width + config.router.bias) * config.num_experts
            found["matrices"] += 3 * width * config.shared_expert_width
            found["experts"] += config.num_experts * 3 * width * config.moe_intermediate_size
        else:
            found["matrices"] += 3 * width * config.intermediate_size
    return found


def parameters(config: ModelConfig) -> tuple[int, int]:
    """Return (all parameters, those that one token passes through) of a policy."""
    found = parts(config)
    idle = found["experts"] * (config.num_experts - config.experts_per_token) // max(1, config.num_experts)
    total = sum(found.values())
    return total, total - idle


def _attention(config: ModelConfig) -> dict[str, int]:
    width, head = config.hidden_size, config.head_dim
    queries, keys_values = head * config.num_heads, 2 * head * config.num_kv_heads
    inward = width + config.qkv_bias
    return {
        "whole": 2 * head if config.qk_norm else 0,
        "matrices": queries * (inward + width),
        "kv": keys_values * inward,
    }


def _latent_attention(config: ModelConfig) -> dict[str, int]:
    width, heads, sizes = config.hidden_size, config.num_heads, config.latent
    assert sizes is not None, "latent attention has its sizes"
    whole = width * (sizes.kv_rank + sizes.turned_dim) + sizes.kv_rank
    per_head = sizes.kv_rank * (sizes.plain_dim + sizes.value_dim) + width * sizes.value_dim
    if sizes.q_rank is None:
        per_head += width * sizes.key_dim
    else:
        whole += sizes.q_rank * (width + 1)
        per_head += sizes.q_rank * sizes.key_dim
    return {"whole": whole, "matrices": heads * per_head}
