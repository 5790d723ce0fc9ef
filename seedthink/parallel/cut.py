"""Which rows of a weight a rank holds, and with whom: for loading, saving, first values and sums of gradients alike.

A weight is cut along its first dimension alone: rows of a matrix, experts of a stack. Plain numbers and views.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Index = tuple[int | slice, ...]


@dataclass(frozen=True, slots=True)
class Seat:
    """Where a rank sits on the axes that cut weights: number `tp_index` of `tp`, number `ep_index` of `ep`."""

    tp: int = 1
    tp_index: int = 0
    ep: int = 1
    ep_index: int = 0


@dataclass(frozen=True, slots=True)
class Piece:
    """Rows [begin, end) of the whole weight. `neighbours` tp ranks in a row hold the same; 0 marks a rank's experts."""

    begin: int
    end: int
    neighbours: int


class Pieces(Protocol):
    """What a tensor on this rank holds of the pieces of a weight."""

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The pieces that stand one after the other."""

    def views(self, part: Tensor) -> Sequence[Tensor]:
        """What the tensor holds of each of them, as views of it."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The pieces that stand one after the other in a rank's part of a weight of `rows` rows."""

    rows: int
    pieces: tuple[Piece, ...]

    @property
    def held(self) -> int:
        """Rows of the part."""
        return sum(piece.end - piece.begin for piece in self.pieces)

    @property
    def experts(self) -> bool:
        """Whether it is of a stack of experts."""
        return not self.pieces[0].neighbours

    @property
    def whole(self) -> bool:
        """Whether the part is the weight itself."""
        return self.held == self.rows

    def of(self, weight: Tensor) -> Tensor:
        """The part of a whole weight."""
        if self.whole:
            return weight
        return torch.cat([weight[piece.begin : piece.end] for piece in self.pieces])

    def views(self, part: Tensor) -> Sequence[Tensor]:
        """The pieces of a part, as views of it."""
        return part.split([piece.end - piece.begin for piece in self.pieces])

    def put(self, part: Tensor, weight: Tensor) -> None:
        """Writes a part to its rows of the whole weight."""
        for piece, rows in zip(self.pieces, self.views(part), strict=True):
            weight[piece.begin : piece.end] = rows

    def places(self, index: Index) -> list[tuple[Index, slice]]:
        """What this part holds of `weight[index]`: (index into the part, rows of `weight[index]`), perhaps nothing.

        index: () for all, (slice of rows,), or (expert, ...).
        """
        found: list[tuple[Index, slice]] = []
        before = 0
        for piece in self.pieces:
            first = index[0] if index else slice(0, self.rows)
            if isinstance(first, int):
                if piece.begin <= first < piece.end:
                    found.append(((before + first - piece.begin, *index[1:]), slice(None)))
            else:
                begin, end = max(piece.begin, first.start), min(piece.end, first.stop)
                if begin < end:
                    here = slice(before + begin - piece.begin, before + end - piece.begin)
                    found.append(((here,), slice(begin - first.start, end - first.start)))
            before += piece.end - piece.begin
        return found


def whole_cut(rows: int, seat: Seat) -> Cut:
    """A weight that every rank holds."""
    return Cut(rows, (Piece(0, rows, seat.tp),))


def even_cut(rows: int, seat: Seat, runs: int = 1) -> Cut:
    """The rank's share of each of `runs` equal runs of rows, over tp."""
    run = rows // runs
    share = run // seat.tp
    starts = [at * run + seat.tp_index * share for at in range(runs)]
    return Cut(rows, tuple(Piece(start, start + share, 1) for start in starts))


def block_bounds(rows: int, block: int, ranks: int) -> list[int]:
    """Where each rank's run of whole blocks of rows begins, and the end. The first ranks have the most, the last none
    where there are fewer blocks than ranks."""
    blocks = -(-rows // block)
    return [min(rows, -(-at * blocks // ranks) * block) for at in range(ranks + 1)]


def blocks_cut(rows: int, block: int, seat: Seat) -> Cut:
    """The rank's run of whole blocks of rows, over tp."""
    bounds = block_bounds(rows, block, seat.tp)
    return Cut(rows, (Piece(bounds[seat.tp_index], bounds[seat.tp_index + 1], 1),))


def heads_cut(heads: int, kv_heads: int, width: int, seat: Seat) -> Cut:
    """Query, key and value rows of the rank's heads; tp ranks that share a key head hold the same rows of it."""
    query, kv = heads // seat.tp, max(1, kv_heads // seat.tp)
    first, kv_first = seat.tp_index * query, seat.tp_index * kv_heads // seat.tp
    neighbours = max(1, seat.tp // kv_heads)
    begins = (heads + kv_first, heads + kv_heads + kv_first)
    pieces = [Piece(first * width, (first + query) * width, 1)]
    pieces += [Piece(begin * width, (begin + kv) * width, neighbours) for begin in begins]
    return Cut((heads + 2 * kv_heads) * width, tuple(pieces))


def experts_cut(experts: int, seat: Seat) -> Cut:
    """The rank's experts of a stack."""
    share = experts // seat.ep
    return Cut(experts, (Piece(seat.ep_index * share, (seat.ep_index + 1) * share, 0),))
