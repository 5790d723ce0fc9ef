"""Packed rows cut into one contiguous run for each rank of a data index, cp outer and tp inner.

All runs have one size, at least 1; the last ones are filled up with rows of token 0 whose results nobody reads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.parallel.collectives import gather_rows, share_rows
from seedthink.parallel.group import Group


class EveryRow:
    """One rank alone: its run is everything."""

    def own(self, tokens_U: Tensor) -> Tensor:
        """The tokens of the run."""
        return tokens_U

    def choose(self, source_R: Tensor) -> Choice:
        """Rows whose results are wanted, by number."""
        return Choice(source_R)


class Choice:
    """Rows of a run whose results are wanted: `rows` are their places in the run."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def among(self, values_R: Tensor) -> Tensor:
        """Of something known for every wanted row, this run's part."""
        return values_R

    def share(self, *values_r: Tensor) -> tuple[Tensor, ...]:
        """Results of this run's wanted rows -> of all wanted rows; differentiable."""
        return values_r


class Run:
    """`rows` packed rows over the ranks of `plane`, of which `tp` neighbours share a cp rank."""

    def __init__(self, rows: int, plane: Group, tp: int) -> None:
        self.rows, self.plane, self.tp = rows, plane, tp
        self.size = max(1, -(-rows // plane.size))
        self.begin = plane.index * self.size

    @property
    def padded(self) -> int:
        """Rows of all runs."""
        return self.size * self.plane.size

    def own(self, tokens_U: Tensor) -> Tensor:
        """The tokens of the run."""
        return _padded(tokens_U, self.padded)[self.begin : self.begin + self.size]

    def of_cp_rank(self, x_U: Tensor) -> Tensor:
        """Of something known for every row, the part of the tp ranks that project rows together; zeros in the end."""
        size = self.size * self.tp
        begin = self.plane.index // self.tp * size
        return _padded(x_U, self.padded)[begin : begin + size]

    def choose(self, source_R: Tensor) -> SharedChoice:
        """Rows whose results are wanted, by number; the same on every rank."""
        return SharedChoice(source_R, self.size, self.plane)


class SharedChoice(Choice):
    """Wanted rows of which each rank of `group` has its own: those of its run of `size`, rank after rank.

    `counts`: how many each rank has.
    """

    def __init__(self, source_R: Tensor, size: int, group: Group) -> None:
        owner_R = source_R // size
        self._mine_r = (owner_R == group.index).nonzero().squeeze(1)
        super().__init__(source_R.index_select(0, self._mine_r) - group.index * size)
        self.source_R, self.size, self._group = source_R, size, group
        order_R = torch.argsort(owner_R, stable=True)
        counts_G = torch.bincount(owner_R, minlength=group.size)
        first_G = counts_G.cumsum(0) - counts_G
        self.counts: list[int] = counts_G.tolist()
        self._most = max(self.counts)
        sorted_R = owner_R.index_select(0, order_R)
        within_R = torch.arange(len(source_R)) - first_G.index_select(0, sorted_R)
        self._place_R = torch.empty_like(source_R).scatter_(0, order_R, sorted_R * self._most + within_R)

    def among(self, values_R: Tensor) -> Tensor:
        """Of something known for every wanted row, this run's part."""
        return values_R.index_select(0, self._mine_r)

    def share(self, *values_r: Tensor) -> tuple[Tensor, ...]:
        """Every rank's results on every rank; a rank's gradients are those of its own rows."""
        # In one message: float64 holds float32 numbers and token ids alike.
        both_rC = torch.stack([value_r.double() for value_r in values_r], dim=1)
        both_RC = share_rows(both_rC, self._mine_r, self._place_R, self._most, self._group)
        return tuple(shared.to(value.dtype) for shared, value in zip(both_RC.unbind(1), values_r, strict=True))

    def gather(self, x_rD: Tensor, wire: torch.dtype) -> Tensor:
        """This rank's wanted rows -> all R of them on every rank; gradients of all ranks are summed in their order."""
        if not self._most:
            return x_rD
        spare_rD = x_rD.new_zeros((self._most - len(x_rD), *x_rD.shape[1:]))
        return gather_rows(torch.cat([x_rD, spare_rD]), self._group, wire).index_select(0, self._place_R)


def _padded(x_U: Tensor, rows: int) -> Tensor:
    return torch.cat([x_U, x_U.new_zeros(rows - len(x_U))])
