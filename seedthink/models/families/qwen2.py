"""Qwen2 and Qwen2.5 (arXiv:2407.10671): a bias on queries, keys and values, and no norm of them."""

from __future__ import annotations

from seedthink.models.families.family import Family

DENSE = Family(
    architecture="Qwen2ForCausalLM",
    qkv_bias=True,
    defaults={"num_key_value_heads": 32},
    constant={"use_sliding_window": False},
)
