"""Llama 2, 3 and 3.1 (arXiv:2407.21783): neither norms of queries and keys nor biases; 3.1 scales its frequencies."""

from __future__ import annotations

from seedthink.models.families.family import Family

DENSE = Family(
    architecture="LlamaForCausalLM",
    defaults={"max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2},
    constant={"attention_bias": False, "mlp_bias": False},
)
