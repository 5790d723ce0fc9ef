"""Some ranks that exchange tensors: all-gather, all-to-all, and sums in the order of the ranks.

Sums over ranks are taken in the order of the ranks, in float32, element by element: all-to-all of slices, a local sum,
all-gather. A library's all-reduce adds in an order that depends on the element's position; this one gives every rank
the same bits, whatever the tensor it stands in.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_BUCKET = 1 << 22  # elements summed at a time


@dataclass(slots=True, eq=False)
class Group:
    """`ranks` ascending, of which this one is number `index`; `handle` is torch's group, None for one rank alone.

    Every rank of the group makes the same calls in the same order. With one rank nothing is copied or sent.
    """

    ranks: tuple[int, ...]
    index: int
    handle: Any = None

    @property
    def size(self) -> int:
        """Ranks in it."""
        return len(self.ranks)

    def gather(self, part: Tensor) -> Tensor:
        """The ranks' tensors, all of one shape, in rank order: [size, *part.shape]."""
        if self.size == 1:
            return part.unsqueeze(0)
        whole = part.new_empty((self.size, *part.shape))
        if not part.numel():
            return whole
        # torch 2.13 renamed it; the flat views are what both names take.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(whole.view(-1), part.contiguous().view(-1), group=self.handle)
        return whole

    def exchange(self, rows: Tensor, sent: list[int] | None = None, received: list[int] | None = None) -> Tensor:
        """Rows to their ranks: rank r gets the r-th part of `rows`, and its part from each rank stands in rank order.

        sent, received: rows for and from each rank; None cuts `rows` into equal parts.
        """
        if self.size == 1:
            return rows
        count = rows.shape[0] if received is None else sum(received)
        found = rows.new_empty((count, *rows.shape[1:]))
        dist.all_to_all_single(found, rows.contiguous(), received, sent, group=self.handle)
        return found

    def sum_parts(self, parts: Tensor) -> Tensor:
        """[size, ...]: part r goes to rank r, which gets the sum of what all ranks have for it, in rank order."""
        theirs = self.exchange(parts)
        total = theirs[0].clone()
        for other in theirs[1:]:
            total += other
        return total

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replaces float32 tensors by their sums over the ranks, in place; the same list on every rank."""
        if self.size == 1:
            return
        bucket: list[Tensor] = []
        held = 0
        for tensor in tensors:
            bucket.append(tensor)
            held += tensor.numel()
            if held >= _BUCKET:
                self._add_up(bucket)
                bucket, held = [], 0
        self._add_up(bucket)

    def _add_up(self, tensors: Sequence[Tensor]) -> None:
        if not sum(tensor.numel() for tensor in tensors):
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        share = -(-flat.numel() // self.size)
        mine = flat.new_zeros(self.size * share)
        mine[: flat.numel()] = flat
        whole = self.gather(self.sum_parts(mine.view(self.size, share))).view(-1)
        for tensor, part in zip(tensors, whole[: flat.numel()].split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def most(self, numbers: Sequence[int]) -> list[int]:
        """The largest of the ranks' numbers, place by place."""
        found: list[int] = self.gather(torch.tensor(numbers)).amax(0).tolist()
        return found

    def tell(self, value: Any) -> list[Any]:
        """A picklable value of every rank, in rank order, on every rank."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.handle)
        return found
