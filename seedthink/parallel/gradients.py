"""Gradients of parameters that ranks share, each with its own set of holders: their sums and their norm."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from seedthink.parallel.cut import Piece, Pieces
from seedthink.parallel.group import Group
from seedthink.parallel.mesh import Mesh

_AT_A_TIME = 1 << 20  # elements


class SharedGradients:
    """`cuts` belong to the gradients, in order. Every rank makes one, and calls its methods alike.

    strips: the gradients are those of strips, already summed over the ranks that a strip's parameter is cut between.
    """

    def __init__(self, mesh: Mesh, cuts: Sequence[Pieces], strips: bool = False) -> None:
        self._mesh, self._cuts = mesh, cuts
        kinds = dict.fromkeys(piece.neighbours for cut in cuts for piece in cut.pieces)
        holders = mesh.strip_holders if strips else mesh.holders
        self._holders: dict[int, Group] = {kind: holders(kind) for kind in kinds}

    def add_up(self, gradients: Sequence[Tensor]) -> None:
        """Replaces every gradient by its sum over the ranks that hold the parameter, in rank order, in place."""
        for kind, group in self._holders.items():
            group.add_up([view for piece, view in self._pieces(gradients) if piece.neighbours == kind])

    def norm(self, gradients: Sequence[Tensor]) -> float:
        """The norm of the whole gradient, once added up: of each part, one holder counts. The same on all ranks."""
        squares = [
            _square(view) for piece, view in self._pieces(gradients) if self._holders[piece.neighbours].index == 0
        ]
        return math.sqrt(math.fsum(self._mesh.world.tell(math.fsum(squares))))

    def _pieces(self, gradients: Sequence[Tensor]) -> list[tuple[Piece, Tensor]]:
        return [
            pair
            for cut, gradient in zip(self._cuts, gradients, strict=True)
            for pair in zip(cut.pieces, cut.views(gradient), strict=True)
        ]


def _square(gradient: Tensor) -> float:
    """The sum of squares in float64, of which few elements are held at a time."""
    return math.fsum(float(part.double().square().sum()) for part in gradient.flatten().split(_AT_A_TIME))
