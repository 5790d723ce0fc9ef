"""What autograd keeps for one micro-batch, block by block, from the model's config and the settings alone."""

from __future__ import annotations

from functools import cache

from seedthink.config.sections import MemoryConfig
from seedthink.models.config import ModelConfig
from seedthink.parallel.layout import Layout

KEEP_ALL = MemoryConfig()


def activations(model: ModelConfig, tokens: int, layout: Layout, memory: MemoryConfig = KEEP_ALL) -> float:
    """Return the bytes of float32 numbers that autograd holds at most on one rank for one micro-batch.

    A rank keeps its run of the rows, and what is gathered over tp, the inputs of sharded products, of its cp's rows.
    Blocks that are recomputed whole leave their input, and one of them at a time is there again; a selective
    recomputation makes no exchange again, so what was gathered stays.
    """
    own, gathered_more = 1 / layout.plane, 1 / layout.cp - 1 / layout.plane
    kept, largest = 0.0, 0.0
    for layer in range(model.num_layers):
        whole, cheap, gathered = _block(model, layer)
        block = whole * own + gathered * gathered_more
        if memory.recompute == "none" or layer % memory.recompute_every:
            kept += block
        elif memory.recompute == "selective":
            kept += block - cheap * own
        else:
            kept, largest = kept + model.hidden_size * own, max(largest, block)
    head = model.hidden_size * gathered_more  # of the head, where all tokens are predicted
    return 4.0 * tokens * (kept + largest + 2 * model.hidden_size * own + head)


@cache
def _block(model: ModelConfig, layer: int) -> tuple[int, int, int]:
    """Numbers per token that a block's backward needs; those of them cheap to make again; inputs of sharded products.

    The stream and its norm twice; projections, queries, keys, values and attention's result; the MLP's. Cheap are the
    norms, queries, keys and values, and a dense MLP's activation (experts make theirs again in any case).
    """
    width = model.hidden_size
    queries, keys = model.num_heads * model.head_dim, model.num_kv_heads * model.head_dim
    whole, cheap, gathered = 4 * width + 3 * queries + 4 * keys, 2 * width + queries + 2 * keys, width + queries
    dense = model.intermediate_size
    if model.is_sparse(layer):
        whole += 2 * model.experts_per_token * model.moe_intermediate_size + model.num_experts
        dense = model.shared_expert_width
    if dense:
        whole, cheap, gathered = whole + 3 * dense, cheap + dense, gathered + width + dense
    return whole, cheap, gathered
