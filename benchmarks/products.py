"""How much arithmetic a model's matrix products are, and how fast this machine can multiply matrices at best.

Counted are the products with weights, two operations per multiplication and addition; attention over the keys is not.
A backward costs twice its forward: one product for the inputs' gradient, one for the weights'.
"""

from __future__ import annotations

import time

import torch

from seedthink.models.config import ModelConfig


def matmul_peak(dtype: torch.dtype) -> float:
    """Best measured FLOP/s of torch.mm on this machine, over square sizes."""
    best = 0.0
    for size in (512, 1024, 2048):
        a, b = torch.randn(size, size, dtype=dtype), torch.randn(size, size, dtype=dtype)
        torch.mm(a, b)
        for _ in range(5):
            began = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def body_flops(config: ModelConfig) -> int:
    """Of one token's forward, without the head."""
    attention = config.hidden_size * config.head_dim * (2 * config.num_heads + 2 * config.num_kv_heads)
    experts = config.experts_per_token * 3 * config.hidden_size * config.moe_intermediate_size
    return 2 * config.num_layers * (attention + experts + config.hidden_size * config.num_experts)


def head_flops(config: ModelConfig) -> int:
    """Of one row of logits."""
    return 2 * config.hidden_size * config.vocab_size


def generation_flops(config: ModelConfig, computed: int, sampled: int) -> int:
    """Of a generation that ran `computed` tokens through the model and drew `sampled` of them."""
    return computed * body_flops(config) + sampled * head_flops(config)


def learning_flops(config: ModelConfig, tokens: int, predicted: int) -> int:
    """Of a forward and backward over `tokens`, of which `predicted` have logits."""
    return 3 * generation_flops(config, tokens, predicted)
