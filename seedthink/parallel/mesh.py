"""The process groups of a layout: with whom this rank shares a sequence, a matrix, the experts, a gradient."""

from __future__ import annotations

from seedthink.errors import ConfigError
from seedthink.parallel.group import Group
from seedthink.parallel.layout import Layout
from seedthink.parallel.replicas import Replicas


class Mesh:
    """This rank among the others.

    world: all. tp, cp: along one axis. plane: the ranks of one data index, which work on the same batch, cp outer and
    tp inner. experts: those that hold all experts together. expert_copies: those that hold the same experts.
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
        self.experts = self._of(layout.expert_groups())
        self.expert_copies = self._of(layout.expert_copies())

    @property
    def entangled(self) -> bool:
        """Whether ranks meet within a forward, so that all must make the same ones."""
        return self.plane.size > 1 or self.experts.size > 1

    @property
    def meeting(self) -> Group:
        """The ranks that have to make the same forwards: a data index, or all where experts are shared beyond one."""
        return self.world if self.plane.size % self.experts.size else self.plane

    def holders(self, neighbours: int) -> Group:
        """The ranks that hold the same part of a weight that `neighbours` tp ranks in a row share."""
        parts: dict[int, list[int]] = {}
        for rank in range(self.layout.size):
            parts.setdefault(self.layout.coordinates(rank)[-1] // neighbours, []).append(rank)
        return self._of([tuple(ranks) for ranks in parts.values()])
