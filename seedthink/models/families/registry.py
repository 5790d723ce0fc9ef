"""Every family by its `model_type` of config.json."""

from __future__ import annotations

from seedthink.models.families import deepseek_v3, llama, mixtral, qwen2, qwen3
from seedthink.models.families.family import Family

FAMILIES: dict[str, Family] = {
    "qwen3": qwen3.DENSE,
    "qwen3_moe": qwen3.SPARSE,
    "qwen2": qwen2.DENSE,
    "llama": llama.DENSE,
    "mixtral": mixtral.SPARSE,
    "deepseek_v3": deepseek_v3.SPARSE,
}
