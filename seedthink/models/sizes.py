"""How many parameters a model has, from its config alone."""

from __future__ import annotations

from seedthink.models.config import ModelConfig


def parameters(config: ModelConfig) -> tuple[int, int]:
    """Return (all parameters, those that one token passes through) of a policy."""
    width = config.hidden_size
    embedding = config.vocab_size * width
    total = active = embedding * (1 if config.tie_word_embeddings else 2) + width
    for layer in range(config.num_layers):
        shared = _attention(config) + 2 * width
        if config.is_sparse(layer):
            expert = 3 * width * config.moe_intermediate_size
            shared += (width + config.router.bias) * config.num_experts + 3 * width * config.shared_expert_width
            total += shared + config.num_experts * expert
            active += shared + config.experts_per_token * expert
        else:
            total += shared + 3 * width * config.intermediate_size
            active += shared + 3 * width * config.intermediate_size
    return total, active


def _attention(config: ModelConfig) -> int:
    width, heads, kv, head, latent = (
        config.hidden_size,
        config.num_heads,
        config.num_kv_heads,
        config.head_dim,
        config.latent,
    )
    if latent is None:
        rows = head * (heads + 2 * kv)
        return width * (rows + head * heads) + (2 * head if config.qk_norm else 0) + (rows if config.qkv_bias else 0)
    queries = heads * latent.key_dim
    through = width * queries if latent.q_rank is None else latent.q_rank * (width + 1 + queries)
    unfolded = heads * (latent.plain_dim + latent.value_dim)
    through += width * (latent.kv_rank + latent.turned_dim) + latent.kv_rank * (1 + unfolded)
    return through + width * heads * latent.value_dim
