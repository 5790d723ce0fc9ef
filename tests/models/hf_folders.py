"""Small Qwen3 and Qwen3-MoE folders made by transformers itself: the yardstick of these tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, Qwen3Config, Qwen3ForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

DENSE = {"vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "initializer_range": 0.2}
DENSE |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 64}
SPARSE = DENSE | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "norm_topk_prob": True}

CONFIGS: dict[str, dict[str, Any]] = {
    "dense": DENSE,
    "dense tied": DENSE | {"tie_word_embeddings": True},
    "one kv head": DENSE | {"num_key_value_heads": 1, "rope_theta": 1000000.0},
    "as many kv heads": DENSE | {"num_key_value_heads": 4, "rms_norm_eps": 1e-5},
    "head width is not hidden / heads": DENSE | {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 48},
    "odd sizes": DENSE | {"vocab_size": 101, "hidden_size": 37, "intermediate_size": 53, "head_dim": 32},
    "sparse": SPARSE,
    "sparse, weights as they are": SPARSE | {"norm_topk_prob": False, "tie_word_embeddings": True},
    "every second layer sparse": SPARSE | {"num_hidden_layers": 4, "decoder_sparse_step": 2, "rope_theta": 500.0},
    "named layers dense": SPARSE | {"num_hidden_layers": 3, "mlp_only_layers": [0, 2], "norm_topk_prob": False},
    "one expert of odd width": SPARSE | {"num_experts": 5, "num_experts_per_tok": 1, "moe_intermediate_size": 19},
    "all experts": SPARSE | {"num_experts": 3, "num_experts_per_tok": 3, "hidden_size": 45, "num_key_value_heads": 4},
}


def build(options: dict[str, Any]) -> PreTrainedModel:
    """A transformers model in float32 whose norms are not all ones."""
    torch.manual_seed(len(str(options)))
    family = (Qwen3MoeConfig, Qwen3MoeForCausalLM) if "num_experts" in options else (Qwen3Config, Qwen3ForCausalLM)
    config = family[0](**options, attn_implementation="eager", experts_implementation="eager")
    model = family[1](config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def folder(path: Path, options: dict[str, Any], **saving: Any) -> tuple[Path, PreTrainedModel]:
    """`build(options)` and the folder that its save_pretrained wrote under `path`."""
    model = build(options)
    model.save_pretrained(path / "model", **saving)
    return path / "model", model
