"""Tensor parallelism by rows of weights alone, with sequence parallelism between the products.

A rank holds a run of the residual stream's rows. Before a product it gathers all rows (of its cp rank), computes the
columns that its rows of the weight give, and before the second product it gathers columns; after it, columns are
exchanged for rows. Nothing is summed over ranks, so no bit depends on how many they are. In exchange the second
product's operand travels whole, N * H or I columns a row in the operands' dtype, where partial sums would be D float32
columns (Megatron-LM, arXiv:1909.08053; sequence parallel: arXiv:2205.05198).
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink.errors import ConfigError
from seedthink.parallel.collectives import columns_to_rows, gather_columns, gather_rows
from seedthink.parallel.group import Group


class TensorAxis:
    """The moves around sharded products. compute: the dtype to which the product that follows rounds its operand."""

    def __init__(self, group: Group) -> None:
        self.group = group

    def rows(self, x_UD: Tensor, compute: torch.dtype) -> Tensor:
        """Before the first product: every row, [U, D] -> [tp * U, D]."""
        return gather_rows(x_UD, self.group, compute)

    def columns(self, x_UX: Tensor, compute: torch.dtype) -> Tensor:
        """Before the second product: every column."""
        return gather_columns(x_UX, self.group, compute)

    def home(self, y_UX: Tensor) -> Tensor:
        """After the second product: own rows, whole."""
        return columns_to_rows(y_UX, self.group)

    def share(self, size: int, name: str) -> int:
        """A rank's part of `size`. Errors: ConfigError where it does not divide."""
        return share_of(size, self.group.size, name, "tp")


def share_of(size: int, ranks: int, name: str, axis: str) -> int:
    """size / ranks. Errors: ConfigError names both where it does not divide."""
    if size % ranks:
        raise ConfigError(f"{name} = {size} cannot be shared by {axis} = {ranks} ranks: choose a divisor of it")
    return size // ranks
