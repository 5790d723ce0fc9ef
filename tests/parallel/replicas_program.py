"""What the ranks of test_replicas.py run."""

from __future__ import annotations

import sys

import torch

from seedthink.parallel.launch import launched
from seedthink.parallel.replicas import Replicas


def parts(rank: int) -> list[torch.Tensor]:
    """Tensors whose float32 sum depends on the order in which they are added."""
    draw = torch.Generator().manual_seed(rank)
    return [torch.randn(shape, generator=draw) * 10.0**rank for shape in ((3, 5), (1,), (2, 2, 2))]


if __name__ == "__main__":
    launch = launched()
    assert launch is not None
    replicas = Replicas(launch.rank, launch.size, sys.argv[1], 60.0)
    mine = parts(launch.rank)
    replicas.add_up(mine)
    want = parts(0)
    for rank in range(1, launch.size):
        want = [total + part for total, part in zip(want, parts(rank), strict=True)]
    same = all(torch.equal(a, b) for a, b in zip(mine, want, strict=True))
    print(same, replicas.gather({"rank": launch.rank}), flush=True)
    replicas.close()
