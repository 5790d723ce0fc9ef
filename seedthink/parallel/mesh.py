"""The process groups of a layout: with whom this rank shares a sequence, a matrix, the experts, a gradient."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from seedthink.errors import ConfigError
from seedthink.parallel.group import Group
from seedthink.parallel.layout import Layout
from seedthink.parallel.replicas import Replicas


class Mesh:
    """This rank among the others.

    world: all. tp, cp: along one axis. plane: the ranks of one data index, which work on the same batch, cp outer and
    tp inner. copy: those that hold one copy of everything together. experts: those that hold all experts together.
    expert_copies: those that hold the same experts.
    """

    def __init__(self, layout: Layout, replicas: Replicas) -> None:
        """Every rank makes one. Errors: ConfigError where the layout is for another number of ranks."""
        if layout.size != replicas.size:
            raise ConfigError(f"the layout is for {layout.size} ranks, but {replicas.size} were started")
        self.layout, self.rank = layout, replicas.rank
        self._of = replicas.group_of
        self.world = replicas.group
        self.tp, self.cp = self._of(layout.groups(["tp"])), self._of(layout.groups(["cp"]))
        self.plane = self._of(layout.groups(["cp", "tp"]))
        self.copy = self._of(layout.groups(["dp_shard", "cp", "tp"]))
        self.experts = self._of(layout.expert_groups())
        self.expert_copies = self._of(layout.expert_copies())

    @property
    def entangled(self) -> bool:
        """Whether ranks meet within a forward, so that all must make the same ones."""
        return self.plane.size > 1 or self.experts.size > 1

    @property
    def sharded(self) -> bool:
        """Whether ranks with batches of their own share one copy of the weights."""
        return self.layout.dp_shard > 1

    @property
    def together(self) -> bool:
        """Whether ranks meet while they learn or score, so that all must make the same steps."""
        return self.entangled or self.sharded

    @property
    def meeting(self) -> Group:
        """The ranks that meet within a forward: a data index, or all where experts are shared beyond one."""
        return self.world if self.plane.size % self.experts.size else self.plane

    @property
    def learning(self) -> Group:
        """The ranks that meet while they learn or score: those that share one copy, or those of `meeting`."""
        return self.copy if self.sharded else self.meeting

    def holders(self, neighbours: int) -> Group:
        """The ranks that hold the same part of a weight that `neighbours` tp ranks in a row share; 0: of experts."""
        if not neighbours:
            return self.expert_copies
        return self._alike(lambda rank: self.layout.coordinates(rank)[-1] // neighbours)

    def strips(self, experts: bool) -> Group:
        """The ranks that cut what they hold alike into strips: those of one copy with the same part of a weight."""
        if not experts:
            return self._of(self.layout.groups(["dp_shard", "cp"]))
        copy, ep = self.layout.dp_shard * self.layout.plane, self.layout.ep
        return self._alike(lambda rank: (rank // copy, rank % ep))

    def strip_holders(self, neighbours: int) -> Group:
        """As `holders`, of those the ranks with the same strip."""
        if not neighbours:
            return self._of(self.layout.groups(["dp_replicate"]))

        def strip(rank: int) -> tuple[int, ...]:
            _, shard, cp, tp = self.layout.coordinates(rank)
            return shard, cp, tp // neighbours

        return self._alike(strip)

    def _alike(self, of: Callable[[int], Hashable]) -> Group:
        """The ranks for which `of` is the same."""
        parts: dict[Hashable, list[int]] = {}
        for rank in range(self.layout.size):
            parts.setdefault(of(rank), []).append(rank)
        return self._of([tuple(ranks) for ranks in parts.values()])
