"""Whole weights out of the parts that ranks hold, on rank 0: for checkpoints and exports."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor

from seedthink.parallel.cut import Cut, Seat
from seedthink.parallel.mesh import Mesh


class Assembly:
    """`cuts_at(seat)` names the cut of every weight at a seat. Every rank makes one and asks alike."""

    def __init__(self, mesh: Mesh, cuts_at: Callable[[Seat], Mapping[str, Cut]]) -> None:
        layout = mesh.layout
        self._mesh = mesh
        # Rank 0 stands first on every axis, so rank r of its groups has seat r on the axis of the group.
        seats = [Seat(layout.tp, at % layout.tp, layout.ep, at % layout.ep) for at in range(max(layout.tp, layout.ep))]
        self._cuts = [cuts_at(seat) for seat in seats]

    def whole(self, name: str, part: Tensor) -> Tensor:
        """On rank 0 the whole of the weight `name`, or of what is cut like it; elsewhere the part as it is."""
        cut = self._cuts[0][name]
        group = self._mesh.tp if cut.pieces[0].neighbours else self._mesh.experts
        if cut.whole or 0 not in group.ranks:
            return part
        held = [cuts[name].held for cuts in self._cuts[: group.size]]
        parts = group.gather(_filled_up(part, max(held)))
        if self._mesh.rank:
            return part
        weight = part.new_empty((cut.rows, *part.shape[1:]))
        for cuts, each, rows in zip(self._cuts, parts, held, strict=False):
            cuts[name].put(each[:rows], weight)
        return weight


def _filled_up(part: Tensor, rows: int) -> Tensor:
    """Ranks may hold unlike numbers of rows, but send alike."""
    if len(part) == rows:
        return part
    filled = part.new_zeros((rows, *part.shape[1:]))
    filled[: len(part)] = part
    return filled
