"""The ranks of a run as one process group: how they meet, and what all of them exchange."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from seedthink.parallel.group import Group


class Replicas:
    """`size` processes of which this one is `rank`; `rendezvous` is "host:port" on rank 0's machine."""

    def __init__(self, rank: int, size: int, rendezvous: str, seconds: float) -> None:
        """`seconds` bounds every collective. Every rank makes one."""
        host, port = rendezvous.rsplit(":", 1)
        self._patience = timedelta(seconds=seconds)
        store = TCPStore(host, int(port), size, is_master=rank == 0, timeout=self._patience)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=self._patience)
        self.rank, self.size = rank, size
        self.group = Group(tuple(range(size)), rank, dist.group.WORLD)
        self._made = {self.group.ranks: self.group}

    def group_of(self, groups: Sequence[tuple[int, ...]]) -> Group:
        """The one of `groups` that this rank is in, made once. Every rank asks alike: all take part in making each."""
        mine = None
        for ranks in groups:
            if ranks not in self._made:
                handle = dist.new_group(list(ranks), timeout=self._patience) if len(ranks) > 1 else None
                self._made[ranks] = Group(ranks, ranks.index(self.rank) if self.rank in ranks else -1, handle)
            if self.rank in ranks:
                mine = self._made[ranks]
        assert mine is not None, "every rank is in one of the groups of an axis"
        return mine

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces float32 tensors by their sums over the ranks, in place; the same list on every rank."""
        self.group.add_up(tensors)

    def gather(self, value: Any) -> list[Any]:
        """A picklable value of every rank, in rank order, on every rank."""
        return self.group.tell(value)

    def close(self) -> None:
        """Leave; the other ranks' collectives fail from now on."""
        for group in self._made.values():
            group.handle = None  # torch's threads end with the last reference, and have to end before the interpreter
        dist.destroy_process_group()
