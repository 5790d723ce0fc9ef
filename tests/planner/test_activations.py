"""The estimate of activations against what autograd keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from seedthink.config.sections import MemoryConfig
from seedthink.models.config import ModelConfig
from seedthink.models.context import PackedContext
from seedthink.models.decoder import Transformer
from seedthink.parallel.layout import Layout
from seedthink.planner.activations import activations

MOE = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "vocab_size": 128,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "tie_word_embeddings": False,
    "eos_token_id": 0,
}


@pytest.mark.parametrize("changes", [{}, {"mlp_only_layers": [0, 1, 2, 3]}])
def test_activations_are_estimated_near_what_autograd_keeps(changes: dict[str, Any]) -> None:
    """Per-row numbers (norms' scales, log-sum-exps, rows of experts) and the bounds of sequences are left out."""
    config = ModelConfig.from_hf(MOE | changes)
    module = Transformer(config)
    module.init_weights(0)
    saved: dict[int, int] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        if not x.is_leaf or not x.requires_grad:
            saved[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x.detach()

    tokens = 64
    context = PackedContext(torch.tensor([0, tokens], dtype=torch.int32), torch.float32, 0.125)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        hidden_TD = module(torch.arange(tokens), context)
    del saved[module.table.data_ptr()]
    assert hidden_TD.requires_grad
    assert activations(config, tokens, Layout()) == pytest.approx(sum(saved.values()), rel=0.05)


def test_recomputing_lowers_the_estimate_of_activations() -> None:
    dense = ModelConfig.from_hf(MOE | {"mlp_only_layers": [0, 1, 2, 3]})

    def numbers(**settings: Any) -> float:
        return activations(dense, 1, Layout(), MemoryConfig(**settings)) / 4

    # A block: 4 * 256 for the stream and its norms, 3 * 256 and 4 * 128 for attention, 3 * 512 for the MLP.
    assert numbers() == 4 * 3840 + 512
    assert numbers(recompute="selective") == 4 * (3840 - 512 - 512 - 512) + 512
    assert numbers(recompute="layers") == 4 * 256 + 3840 + 512
    assert numbers(recompute="layers", recompute_every=2) == 2 * (256 + 3840) + 3840 + 512
