"""Data-parallel copies of a model: what they must agree on to stay copies.

Sums over ranks are taken in the order of the ranks, in float32, element by element: all-to-all of slices, a local sum,
all-gather. A library's all-reduce adds in an order that depends on the element's position; this one gives every rank
the same bits, whatever the tensor it stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

_BUCKET = 1 << 22  # elements summed at a time


class Replicas:
    """`size` processes of which this one is `rank`; `rendezvous` is "host:port" on rank 0's machine."""

    def __init__(self, rank: int, size: int, rendezvous: str, seconds: float) -> None:
        """`seconds` bounds every collective. Every rank makes one."""
        host, port = rendezvous.rsplit(":", 1)
        patience = timedelta(seconds=seconds)
        store = TCPStore(host, int(port), size, is_master=rank == 0, timeout=patience)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=patience)
        self.rank, self.size = rank, size

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces float32 tensors by their sums over the ranks, in place; the same list on every rank."""
        bucket: list[Tensor] = []
        held = 0
        for tensor in tensors:
            bucket.append(tensor)
            held += tensor.numel()
            if held >= _BUCKET:
                self._add_up(bucket)
                bucket, held = [], 0
        self._add_up(bucket)

    def _add_up(self, tensors: Sequence[Tensor]) -> None:
        if not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        share = -(-flat.numel() // self.size)
        mine = flat.new_zeros(self.size * share)
        mine[: flat.numel()] = flat
        theirs = torch.empty_like(mine)
        dist.all_to_all_single(theirs, mine)
        total = theirs[:share].clone()
        for other in theirs[share:].split(share):
            total += other
        gather(mine, total)
        for tensor, part in zip(tensors, mine[: flat.numel()].split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: Any) -> list[Any]:
        """A picklable value of every rank, in rank order, on every rank."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def close(self) -> None:
        """Leave; the other ranks' collectives fail from now on."""
        dist.destroy_process_group()


def gather(into: Tensor, part: Tensor) -> None:
    """All-gather of equal parts, by the name that this torch has for it (2.13 renamed it)."""
    whole = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    whole(into, part)
