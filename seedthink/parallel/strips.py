"""Parameters cut into strips: each of some ranks keeps an equal run of a parameter's elements, and all meet to use it.

A strip is elements, and not rows, so that any parameter is shared evenly by any number of ranks; the last strips are
filled up with zeros. Between uses a parameter is NaN without memory of its own: who reads it then, sees it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from seedthink.kernels.packing import forget
from seedthink.parallel.cut import Cut, Piece
from seedthink.parallel.group import Group


@dataclass(frozen=True, slots=True)
class StripCut:
    """As `Cut`, of one rank's strip: the same pieces, of which `slices` are here, perhaps nothing."""

    pieces: tuple[Piece, ...]
    slices: tuple[slice, ...]

    def views(self, strip: Tensor) -> Sequence[Tensor]:
        """What the strip holds of each piece, as views of it."""
        return [strip.view(-1)[each] for each in self.slices]


class Strips:
    """Parameters that the ranks of `group` cut alike: `held` are this rank's strips, one for each parameter.

    A strip has as many dimensions as its parameter, [length, 1, ...], which is how an optimizer tells what decays.
    Strips are written only between uses, and every rank of the group makes the same calls in the same order.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], group: Group) -> None:
        """The parameters hold the same values on each of the ranks; their memory is given back."""
        self._parameters, self._group = parameters, group
        self._shapes = [p.shape for p in parameters]
        self._lengths = [-(-p.numel() // group.size) for p in parameters]
        with torch.no_grad():
            self._flat = torch.cat([self.own(at, p).reshape(-1) for at, p in enumerate(parameters)])
        parts = self._flat.split(self._lengths)
        self.held = [part.view(len(part), *[1] * (p.ndim - 1)) for part, p in zip(parts, parameters, strict=True)]
        self._nothing = self._flat.new_tensor(torch.nan)
        self.release()

    def own(self, at: int, part: Tensor) -> Tensor:
        """This rank's strip of what is shaped like parameter `at`, as a copy."""
        length, begin = self._lengths[at], self._group.index * self._lengths[at]
        strip = part.new_zeros((length, *[1] * (part.ndim - 1)))
        mine = part.reshape(-1)[begin : begin + length]
        strip.view(-1)[: len(mine)] = mine
        return strip

    def join(self, at: int, strip: Tensor) -> Tensor:
        """Undoes `own`: every rank's strip, put together."""
        shape = self._shapes[at]
        return self._group.gather(strip.reshape(-1)).view(-1)[: shape.numel()].view(shape)

    def cut(self, at: int, cut: Cut) -> StripCut:
        """Where the pieces of parameter `at` stand in this rank's strip of it."""
        length, row = self._lengths[at], prod(self._shapes[at][1:])
        first, slices, begin = self._group.index * self._lengths[at], [], 0
        for piece in cut.pieces:
            end = begin + (piece.end - piece.begin) * row
            slices.append(slice(*(min(max(bound - first, 0), length) for bound in (begin, end))))
            begin = end
        return StripCut(cut.pieces, tuple(slices))

    @torch.no_grad()
    def gather(self) -> None:
        """Gives the parameters their values: one message for all of them."""
        with torch.inference_mode(False):  # packs are kept of ordinary tensors alone, also while generating
            whole_GS = self._group.gather(self._flat)
            for p, shape, part in zip(self._parameters, self._shapes, whole_GS.split(self._lengths, 1), strict=True):
                p.data = part.reshape(-1)[: shape.numel()].view(shape)  # does not count as a write for autograd

    def release(self) -> None:
        """Gives the parameters' memory back, and that of their packs, which would not see the next values."""
        for p, shape in zip(self._parameters, self._shapes, strict=True):
            forget(p)
            p.data = self._nothing.expand(shape)

    @torch.no_grad()
    def reduce(self) -> None:
        """The parameters' gradients, summed in the order of the ranks, are added to those of the strips."""
        ranks, parts = self._group.size, []
        for p, length in zip(self._parameters, self._lengths, strict=True):
            part = p.new_zeros(ranks * length)
            if p.grad is not None:
                part[: p.grad.numel()] = p.grad.view(-1)
            parts.append(part.view(ranks, length))
            p.grad = None
        sums = self._group.sum_parts(torch.cat(parts, dim=1)).split(self._lengths)
        for strip, part in zip(self.held, sums, strict=True):
            part = part.view_as(strip)
            strip.grad = part if strip.grad is None else strip.grad.add_(part)
