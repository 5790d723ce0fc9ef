"""Moves of rows and columns between ranks, each with its derivative; nothing is summed over ranks on the way forward.

A product's bits do not depend on how its output columns are cut (kernels/linear.py), so a matrix is cut by its rows
alone, operands are gathered whole before it, and the results change hands as they are. Sums over ranks are left to the
backward, where gradients of what was gathered come together in the order of the ranks.
`wire` is the dtype in which values travel forwards: bfloat16 where the product that reads them rounds them to it
anyway. Gradients travel in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink.parallel.group import Group


def gather_rows(x_UX: Tensor, group: Group, wire: torch.dtype = torch.float32) -> Tensor:
    """[U, X] of each of G ranks -> [G * U, X], rank after rank, on each of them."""
    return x_UX if group.size == 1 else _GatherRows.apply(x_UX, group, wire)  # type: ignore[no-any-return]


def gather_columns(x_UX: Tensor, group: Group, wire: torch.dtype = torch.float32) -> Tensor:
    """[U, X] of each of G ranks -> [U, G * X], rank beside rank, on each of them."""
    return x_UX if group.size == 1 else _GatherColumns.apply(x_UX, group, wire)  # type: ignore[no-any-return]


def columns_to_rows(x_UX: Tensor, group: Group, wire: torch.dtype = torch.float32) -> Tensor:
    """Each of G ranks holds X columns of all G * U rows -> U rows of its own with all G * X columns."""
    return x_UX if group.size == 1 else _ColumnsToRows.apply(x_UX, group, wire)  # type: ignore[no-any-return]


def rows_to_columns(x_UX: Tensor, group: Group, wire: torch.dtype = torch.float32) -> Tensor:
    """Undoes `columns_to_rows`: [U, G * X] -> [G * U, X]."""
    return x_UX if group.size == 1 else _RowsToColumns.apply(x_UX, group, wire)  # type: ignore[no-any-return]


def exchange_rows(
    x_RX: Tensor, sent: list[int], received: list[int], group: Group, wire: torch.dtype = torch.float32
) -> Tensor:
    """The first sent[0] rows to rank 0 and so on; what comes from rank 0 stands first, received[0] rows."""
    return x_RX if group.size == 1 else _Exchange.apply(x_RX, sent, received, group, wire)  # type: ignore[no-any-return]


def share_rows(x_rC: Tensor, mine_r: Tensor, place_R: Tensor, most: int, group: Group) -> Tensor:
    """Rows that each rank has for itself -> all R of them on every rank.

    Row i of this rank's r <= most is row mine_r[i] of the result; place_R[j] is rank * most + i of result row j. Every
    rank goes on alike with the result, so each takes its own rows' part of the (equal) gradients back.
    """
    return _Share.apply(x_rC, mine_r, place_R, most, group)  # type: ignore[no-any-return]


def _beside(parts_GUX: Tensor) -> Tensor:
    """[G, U, X] -> [U, G * X]."""
    return parts_GUX.transpose(0, 1).flatten(1).float()


def _apart(x_UX: Tensor, parts: int) -> Tensor:
    """Undoes `_beside`, contiguous."""
    return x_UX.view(x_UX.shape[0], parts, -1).transpose(0, 1).contiguous()


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_UX: Tensor, group: Group, wire: torch.dtype) -> Tensor:
        ctx.group = group
        return group.gather(x_UX.to(wire)).flatten(0, 1).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        dy_UX = grads[0].contiguous()
        return ctx.group.sum_parts(dy_UX.view(ctx.group.size, -1, dy_UX.shape[1])), None, None


class _GatherColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_UX: Tensor, group: Group, wire: torch.dtype) -> Tensor:
        ctx.group = group
        return _beside(group.gather(x_UX.to(wire)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.group.sum_parts(_apart(grads[0].contiguous(), ctx.group.size)), None, None


class _ColumnsToRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_UX: Tensor, group: Group, wire: torch.dtype) -> Tensor:
        ctx.group = group
        return _move_to_rows(x_UX.to(wire), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _move_to_columns(grads[0], ctx.group), None, None


class _RowsToColumns(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_UX: Tensor, group: Group, wire: torch.dtype) -> Tensor:
        ctx.group = group
        return _move_to_columns(x_UX.to(wire), group)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _move_to_rows(grads[0], ctx.group), None, None


def _move_to_rows(x_UX: Tensor, group: Group) -> Tensor:
    parts_GUX = group.exchange(x_UX).view(group.size, x_UX.shape[0] // group.size, x_UX.shape[1])
    return _beside(parts_GUX)


def _move_to_columns(x_UX: Tensor, group: Group) -> Tensor:
    return group.exchange(_apart(x_UX.contiguous(), group.size)).flatten(0, 1).float()


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_RX: Tensor, sent: list[int], received: list[int], group: Group, wire: torch.dtype
    ) -> Tensor:
        ctx.way = received, sent
        ctx.group = group
        return group.exchange(x_RX.to(wire), sent, received).float()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return ctx.group.exchange(grads[0], *ctx.way), None, None, None, None


class _Share(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_rC: Tensor, mine_r: Tensor, place_R: Tensor, most: int, group: Group) -> Tensor:
        ctx.save_for_backward(mine_r)
        part = x_rC.new_zeros((most, x_rC.shape[1]))
        part[: len(x_rC)] = x_rC
        return group.gather(part).flatten(0, 1).index_select(0, place_R)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return grads[0].index_select(0, ctx.saved_tensors[0]), None, None, None, None
