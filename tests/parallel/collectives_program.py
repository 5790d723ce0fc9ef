"""What the ranks of test_collectives.py run: each move there and back, on values that can be followed by hand."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from seedthink.parallel.collectives import (
    columns_to_rows,
    exchange_rows,
    gather_columns,
    gather_rows,
    rows_to_columns,
    share_rows,
)
from seedthink.parallel.group import Group
from seedthink.parallel.launch import launched
from seedthink.parallel.replicas import Replicas


def both(move: Callable[[Tensor], Tensor], x: Tensor, dy_scale: float) -> list[list[list[float]]]:
    """The result, and the gradient of x where result element (i, j) has the gradient dy_scale * (10 i + j)."""
    x = x.clone().requires_grad_()
    y = move(x)
    rows, columns = y.shape
    dy = dy_scale * (10 * torch.arange(rows)[:, None] + torch.arange(columns)).float()
    y.backward(dy)
    assert x.grad is not None
    return [y.tolist(), x.grad.tolist()]


def moves(group: Group) -> dict[str, object]:
    mine = group.index
    row = torch.tensor([[1.0, 2.0]]) + 10 * mine
    tall = torch.tensor([[1.0], [2.0]]) + 10 * mine
    sent, received = ([0, 2], [0, 1]) if mine == 0 else ([1, 0], [2, 0])
    uneven = torch.tensor([[1.0], [2.0]])[: sum(sent)] + 10 * mine
    wanted = (torch.tensor([0, 2]), 2) if mine == 0 else (torch.tensor([1]), 1)
    own = torch.tensor([[1.0], [2.0]])[: wanted[1]] + 10 * mine
    third = torch.tensor([[1.0, 1.0 + 2.0**-20]])
    return {
        "gather_rows": both(lambda x: gather_rows(x, group), row, 1.0 + mine),
        "gather_columns": both(lambda x: gather_columns(x, group), row, 1.0 + mine),
        "columns_to_rows": both(lambda x: columns_to_rows(x, group), tall, 1.0 + mine),
        "rows_to_columns": both(lambda x: rows_to_columns(x, group), row, 1.0 + mine),
        "exchange_rows": both(lambda x: exchange_rows(x, sent, received, group), uneven, 1.0 + mine),
        "share_rows": both(lambda x: share_rows(x, wanted[0], torch.tensor([0, 2, 1]), 2, group), own, 1.0),
        "rounded on the way": both(lambda x: gather_rows(x, group, torch.bfloat16), third, 1.0 + 2.0**-20),
        "most": group.most([mine, -mine]),
    }


def order(group: Group) -> bool:
    """Sums of numbers for which another order would give other bits."""
    draw = [torch.randn(4, 3, generator=torch.Generator().manual_seed(r)) * 10.0**r for r in range(group.size)]
    want = draw[0].clone()
    for other in draw[1:]:
        want += other
    x = torch.zeros(1, 3, requires_grad=True)
    gather_rows(x, group).backward(draw[group.index][: group.size])
    assert x.grad is not None
    return torch.equal(x.grad, want[group.index : group.index + 1])


if __name__ == "__main__":
    launch = launched()
    assert launch is not None
    replicas = Replicas(launch.rank, launch.size, sys.argv[1], 60.0)
    found = moves(replicas.group) if launch.size == 2 else {"order": order(replicas.group)}
    print(json.dumps(found), flush=True)
    replicas.close()
