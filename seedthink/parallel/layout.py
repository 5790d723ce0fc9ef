"""How the ranks of a run are laid out: which of them share a batch, a sequence, a matrix, the experts.

World = dp_replicate x dp_shard x cp x tp, the rightmost axis innermost: neighbours in rank share matrices (tp). Experts
are spread over `ep` ranks that are borrowed from dp_shard x cp x tp; no rank exists for experts alone. Plain numbers:
nothing here needs torch.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

AXES = ("dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The size of each axis.

    dp_replicate: copies of everything. dp_shard: ranks with batches of their own that share one copy of the weights.
    cp: ranks that share a sequence. tp: ranks that share a matrix. ep: ranks that share the experts.
    """

    dp_replicate: int = 1
    dp_shard: int = 1
    cp: int = 1
    tp: int = 1
    ep: int = 1

    @property
    def size(self) -> int:
        """Ranks in all."""
        return self.dp_replicate * self.dp_shard * self.cp * self.tp

    @property
    def data(self) -> int:
        """Batches in all: ranks of one (cp, tp) plane work on the same one."""
        return self.dp_replicate * self.dp_shard

    @property
    def plane(self) -> int:
        """Ranks that work on one batch together: those of one data index."""
        return self.cp * self.tp

    def coordinates(self, rank: int) -> tuple[int, ...]:
        """Where a rank stands on each of `AXES`."""
        found = []
        for axis in reversed(AXES):
            rank, at = divmod(rank, getattr(self, axis))
            found.append(at)
        return tuple(reversed(found))

    def data_index(self, rank: int) -> int:
        """Which batch a rank works on."""
        return rank // self.plane

    def leads(self, rank: int) -> bool:
        """Whether a rank is the first of its data index, the one that answers for it."""
        return rank % self.plane == 0

    def __str__(self) -> str:
        """The axes that are not 1, innermost first, as the settings name them."""
        sizes = {axis: getattr(self, axis) for axis in (*reversed(AXES), "ep")}
        return ", ".join(f"{axis} = {size}" for axis, size in sizes.items() if size > 1) or "one rank"

    def groups(self, axes: Collection[str]) -> list[tuple[int, ...]]:
        """The ranks that differ on `axes` alone, group by group, ascending: () gives every rank a group of its own."""
        kept = [at for at, axis in enumerate(AXES) if axis not in axes]
        found: dict[tuple[int, ...], list[int]] = {}
        for rank in range(self.size):
            where = self.coordinates(rank)
            found.setdefault(tuple(where[at] for at in kept), []).append(rank)
        return [tuple(ranks) for ranks in found.values()]

    def expert_groups(self) -> list[tuple[int, ...]]:
        """The ranks that hold all experts together: `ep` neighbours."""
        return [tuple(range(first, first + self.ep)) for first in range(0, self.size, self.ep)]

    def expert_copies(self) -> list[tuple[int, ...]]:
        """The ranks that hold the same experts, one of each expert group."""
        return [tuple(range(at, self.size, self.ep)) for at in range(self.ep)]
