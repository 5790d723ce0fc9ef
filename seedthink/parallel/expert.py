"""Expert parallelism: rows travel to the ranks that hold their experts, and come home one by one.

Every output row returns unreduced, and the token's own rank sums its rows in the order of the experts, as one rank
does. So the bits depend neither on how many ranks share the experts nor on who else sends rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.kernels.experts import experts
from seedthink.kernels.permute import permute, unpermute
from seedthink.kernels.route import Routing
from seedthink.parallel.collectives import exchange_rows
from seedthink.parallel.group import Group


def spread_experts(
    x_TD: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, compute: torch.dtype, group: Group
) -> Tensor:
    """`kernels.experts.experts` with [E / ranks, ...] of the weights on each rank: rank r holds the r-th run of ids.

    Every rank takes part, also without rows. Differentiable as `experts` is.
    """
    if group.size == 1:
        return experts(x_TD, routing, gate_up, down, compute)
    counts_GE = routing.counts_E.view(group.size, -1)
    arrived_GE = group.exchange(counts_GE)
    sent, received = counts_GE.sum(1).tolist(), arrived_GE.sum(1).tolist()
    rows_RD = exchange_rows(permute(x_TD, routing), sent, received, group, compute)
    done_RD = experts(rows_RD, _by_expert(arrived_GE), gate_up, down, compute)
    return unpermute(exchange_rows(done_RD, received, sent, group), routing)


def _by_expert(arrived_GE: Tensor) -> Routing:
    """Rows that came rank after rank, expert after expert within a rank, each for its one expert with weight 1."""
    ranks, held = arrived_GE.shape
    counts_E = arrived_GE.sum(0, dtype=torch.int32)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0, dtype=torch.int32)])
    ids_R = torch.arange(held, dtype=torch.int32).repeat(ranks).repeat_interleave(arrived_GE.flatten())
    token_R = torch.argsort(ids_R, stable=True)
    row_R = torch.empty_like(token_R).scatter_(0, token_R, torch.arange(len(token_R)))
    weight_R1 = torch.ones((len(ids_R), 1))
    return Routing(ids_R[:, None], weight_R1, counts_E, offsets_E1, row_R.int()[:, None], token_R.int())
