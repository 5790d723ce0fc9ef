"""The batch as the model sees it while generating: keys and values live in pages, each sequence reads its own.

`PagedContext` is the generator's half of the models' `Context` protocol; `PackedContext` is the trainer's. The kernels
walk both in the same tiles, so the same tokens give the same bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from seedthink.engine.scheduler import Plan
from seedthink.engine.sequence import Table
from seedthink.kernels.attention import PAGE, attend_paged, new_pages, write_pages
from seedthink.kernels.moe import Routing
from seedthink.models.config import ModelConfig


class PageCache:
    """The memory of the pages: for each layer K [count, n, H, PAGE] and V [count, n, PAGE, H]."""

    def __init__(self, config: ModelConfig, count: int, dtype: torch.dtype) -> None:
        heads, width = config.num_kv_heads, config.head_dim
        self.layers = [new_pages(count, heads, width, dtype) for _ in range(config.num_layers)]


def pages_within(config: ModelConfig, dtype: torch.dtype, mebibytes: int, sequences: int) -> int:
    """Pages that fit into `mebibytes`, but no more than `sequences` of the model's longest could use; at least one."""
    page_bytes = 2 * config.num_layers * config.num_kv_heads * config.head_dim * PAGE * dtype.itemsize
    longest = -(-config.max_position_embeddings // PAGE)
    return max(1, min(mebibytes * 2**20 // page_bytes, sequences * longest))


@dataclass(slots=True)
class PagedContext:
    """T tokens of B sequences: where their keys and values go, and which pages each sequence's queries read.

    Row t writes slot slots_T[t] = page * PAGE + offset. Sequence b's queries are rows cu_q_B1[b] .. cu_q_B1[b + 1], the
    last of its lengths_B[b] positions. All index arrays are int32.
    """

    cache: PageCache
    positions_T: Tensor
    slots_T: Tensor
    page_table_BM: Tensor
    cu_q_B1: Tensor
    lengths_B: Tensor
    scale: float

    def attend(self, layer: int, q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor) -> Tensor:
        """Store this step's keys and values, then attend over everything stored: float32 [T, N, H]."""
        k_pages, v_pages = self.cache.layers[layer]
        write_pages(k_TnH, v_TnH, self.slots_T, k_pages, v_pages)
        return attend_paged(q_TNH, k_pages, v_pages, self.page_table_BM, self.cu_q_B1, self.lengths_B, self.scale)

    def note_routing(self, layer: int, routing: Routing, logits_TE: Tensor) -> None:
        """Routing needs no memory here: the trainer's comes out the same."""


def lay_out(plan: Plan, table: Table, cache: PageCache, scale: float) -> tuple[Tensor, PagedContext]:
    """The tokens that a step computes (int64 [T]) and the context they are computed in."""
    first_B = table.computed_S[plan.slots_B]
    cu_q_B1 = np.zeros(len(plan.slots_B) + 1, dtype=np.int32)
    np.cumsum(plan.count_B, out=cu_q_B1[1:])
    row_slot_T = np.repeat(plan.slots_B, plan.count_B)
    position_T = np.arange(cu_q_B1[-1]) + np.repeat(first_B - cu_q_B1[:-1], plan.count_B)
    slot_T = table.page_SP[row_slot_T, position_T // PAGE] * np.int32(PAGE) + (position_T % PAGE).astype(np.int32)
    lengths_B = (first_B + plan.count_B).astype(np.int32)
    pages = -(-int(lengths_B.max()) // PAGE)
    context = PagedContext(
        cache=cache,
        positions_T=torch.from_numpy(position_T.astype(np.int32)),
        slots_T=torch.from_numpy(slot_T),
        page_table_BM=torch.from_numpy(table.page_SP[plan.slots_B, :pages]),
        cu_q_B1=torch.from_numpy(cu_q_B1),
        lengths_B=torch.from_numpy(lengths_B),
        scale=scale,
    )
    return torch.from_numpy(table.tokens_SM[row_slot_T, position_T].astype(np.int64)), context
