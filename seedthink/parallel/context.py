"""Context parallelism by exchanging rows for heads (DeepSpeed-Ulysses, arXiv:2309.14509).

Each of the cp ranks projects its own rows; for attention it gets all rows of a share of its heads, and gives the
results back. Attention sees whole sequences, so its walk over the keys, and with it every bit, is that of one rank.
Where there are fewer key heads than ranks, a key head goes to each rank whose queries use it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.parallel.collectives import columns_to_rows, rows_to_columns
from seedthink.parallel.group import Group

Heads = tuple[Tensor, Tensor, Tensor]


def heads_for_rows(q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor, group: Group, compute: torch.dtype) -> Heads:
    """Own rows of all heads -> all rows of own heads. compute: the dtype to which attention rounds keys and values."""
    if group.size == 1:
        return q_TNH, k_TnH, v_TnH
    (rows, heads, width), kv_heads = q_TNH.shape, k_TnH.shape[1]
    if kv_heads % group.size:
        share, ratio = heads // group.size, heads // kv_heads
        used = torch.tensor([rank * share // ratio for rank in range(group.size)])
        k_TnH, v_TnH, kv_heads = k_TnH.index_select(1, used), v_TnH.index_select(1, used), group.size
    q = rows_to_columns(q_TNH.reshape(rows, -1), group)
    # One message for both: [k of rank 0 | v of rank 0 | k of rank 1 | ...].
    pairs = torch.cat([part.view(rows, group.size, -1) for part in (k_TnH, v_TnH)], dim=2)
    kv = rows_to_columns(pairs.flatten(1), group, compute).view(rows * group.size, 2, kv_heads // group.size, width)
    return q.view(rows * group.size, heads // group.size, width), kv[:, 0].contiguous(), kv[:, 1].contiguous()


def rows_for_heads(o_TNH: Tensor, group: Group) -> Tensor:
    """All rows of own heads -> own rows of all heads."""
    if group.size == 1:
        return o_TNH
    rows, _, width = o_TNH.shape
    return columns_to_rows(o_TNH.flatten(1), group).view(rows // group.size, -1, width)
