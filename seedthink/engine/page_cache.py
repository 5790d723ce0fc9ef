"""The KV cache's memory, and a step's work as the model takes it: which tokens, at which positions, in which pages."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from seedthink.engine.scheduler import Plan
from seedthink.engine.sequence import Table
from seedthink.kernels.attention import PAGE, new_pages
from seedthink.kernels.block import PagedBatch
from seedthink.models.config import ModelConfig
from seedthink.parallel.shards import WHOLE, Shards


def pages_within(
    config: ModelConfig, dtype: torch.dtype, mebibytes: int, sequences: int, shards: Shards = WHOLE
) -> int:
    """Pages that fit into `mebibytes`, but no more than `sequences` of the model's longest could use; at least one."""
    heads = shards.cached_heads(config.num_kv_heads)
    page_bytes = 2 * config.num_layers * heads * config.head_dim * PAGE * dtype.itemsize
    longest = -(-config.max_position_embeddings // PAGE)
    return max(1, min(mebibytes * 2**20 // page_bytes, sequences * longest))


class PageCache:
    """The memory of `count` pages: for each layer K [count, n, H, PAGE] and V [count, n, PAGE, H].

    Where ranks share a model, n are the key heads of this rank.
    """

    def __init__(self, config: ModelConfig, count: int, dtype: torch.dtype, shards: Shards = WHOLE) -> None:
        heads, width = shards.cached_heads(config.num_kv_heads), config.head_dim
        self.layers = [new_pages(count, heads, width, dtype) for _ in range(config.num_layers)]
        self._scale = config.attention_scale

    def lay_out(self, plan: Plan, table: Table) -> tuple[Tensor, PagedBatch]:
        """The tokens that a step computes, int64 [T], sequence after sequence, and where they stand."""
        first_B = table.computed_S[plan.slots_B]
        cu_q_B1 = np.zeros(len(plan.slots_B) + 1, dtype=np.int32)
        plan.count_B.cumsum(out=cu_q_B1[1:])
        row_slot_T = plan.slots_B.repeat(plan.count_B)
        position_T = np.arange(cu_q_B1[-1]) + (first_B - cu_q_B1[:-1]).repeat(plan.count_B)
        slot_T = table.page_SP[row_slot_T, position_T // PAGE] * np.int32(PAGE) + (position_T % PAGE).astype(np.int32)
        lengths_B = (first_B + plan.count_B).astype(np.int32)
        pages = -(-int(lengths_B.max(initial=1)) // PAGE)
        batch = PagedBatch(
            layers=self.layers,
            positions_T=torch.from_numpy(position_T.astype(np.int32)),
            slots_T=torch.from_numpy(slot_T),
            page_table_BM=torch.from_numpy(table.page_SP[plan.slots_B, :pages]),
            cu_q_B1=torch.from_numpy(cu_q_B1),
            lengths_B=torch.from_numpy(lengths_B),
            scale=self._scale,
        )
        return torch.from_numpy(table.tokens_SM[row_slot_T, position_T].astype(np.int64)), batch
