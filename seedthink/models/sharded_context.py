"""The batch as a model sees it where ranks share the model: this rank's rows, attention over everyone's.

Attention gets all rows of this rank's heads, without the rows that fill the last runs up, and is that of one rank: over
packed sequences, or over pages that hold the keys and values of this rank's heads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.kernels.attention import attend_paged, write_pages
from seedthink.kernels.block import PagedBatch
from seedthink.kernels.route import Routing
from seedthink.models.context import Context
from seedthink.parallel.runs import EveryRow, Run
from seedthink.parallel.shards import MeshShards, Shards


class PagedContext:
    """Generation's batch as a `Context`: keys and values go to pages first. No autograd."""

    def __init__(self, batch: PagedBatch) -> None:
        self.batch, self.positions_T = batch, batch.positions_T

    def attend(self, layer: int, q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor) -> Tensor:
        """Attention of the batch's rows to the pages of their sequences."""
        batch = self.batch
        pages = batch.layers[layer]
        write_pages(k_TnH, v_TnH, batch.slots_T, *pages)
        return attend_paged(q_TNH, *pages, batch.page_table_BM, batch.cu_q_B1, batch.lengths_B, batch.scale)

    def note_routing(self, layer: int, routing: Routing, logits_TE: Tensor) -> None:
        """Nobody watches."""


class ShardedContext:
    """`inner` knows all rows; `run` which of them are here. Rows and heads change places around attention."""

    def __init__(self, inner: Context, run: Run, shards: MeshShards, compute: torch.dtype) -> None:
        self._inner, self._run, self._shards, self._compute = inner, run, shards, compute
        self.positions_T = run.of_cp_rank(inner.positions_T)

    def attend(self, layer: int, q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor) -> Tensor:
        """The inner attention of this rank's heads over all rows; rows that fill up get zeros."""
        rows = self._run.rows
        heads = self._shards.heads_for_rows(q_TNH, k_TnH, v_TnH, self._compute)
        o_TNH = self._inner.attend(layer, *(each[:rows] for each in heads))
        spare_NH = o_TNH.new_zeros((self._run.padded - rows, *o_TNH.shape[1:]))
        return self._shards.rows_for_heads(torch.cat([o_TNH, spare_NH]))

    def note_routing(self, layer: int, routing: Routing, logits_TE: Tensor) -> None:
        """Of this rank's rows, those that fill up included: the watch knows that they count nowhere."""
        self._inner.note_routing(layer, routing, logits_TE)


def sharded(context: Context, run: EveryRow | Run, shards: Shards, compute: torch.dtype) -> Context:
    """`context` as this rank of `shards` needs it: itself on one rank."""
    if isinstance(run, Run) and isinstance(shards, MeshShards):
        return ShardedContext(context, run, shards, compute)
    return context
