"""What a forward needs to know about its batch: positions, how to attend, and who watches the routing.

This object, and not the model, knows where sequences begin and end and what is to be collected on the way:
`PackedContext` holds whole sequences back to back. Generation takes a `kernels.block.PagedBatch` instead, whose keys
live in cache pages; both walk the keys in the same tiles, so a token's hidden state has the same bits under either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from seedthink.kernels.attention import attend_packed
from seedthink.kernels.route import Routing

# Told (layer, routing, logits_TE) once per sparse layer and forward.
Watch = Callable[[int, Routing, Tensor], None]
# Makes a watch for a forward over rows of which int64 times_T says how often each one counts.
Watcher = Callable[[Tensor], Watch]


class Context(Protocol):
    """The batch as a model sees it."""

    @property
    def positions_T(self) -> Tensor:
        """int32, each token's position within its own sequence."""
        ...

    def attend(self, layer: int, q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor) -> Tensor:
        """Causal attention of layer `layer` within each sequence; returns o_TNH float32."""
        ...

    def note_routing(self, layer: int, routing: Routing, logits_TE: Tensor) -> None:
        """Told once per sparse layer and forward which experts the tokens went to, and the router's logits.

        Where ranks share the rows these are the ones of this rank's run, those that only fill it up included.
        """
        ...


class PackedContext:
    """Whole sequences back to back, for training and scoring; sequence b is rows cu_seqlens_B1[b]..cu_seqlens_B1[b+1].

    prefix_B: the sequence that a sequence goes on from, or -1: its rows then stand once for all that begin with them.
    compute: the dtype to which keys and values are rounded. scale: what q.k is multiplied by.
    watch: is told the routing.
    """

    def __init__(
        self,
        cu_seqlens_B1: Tensor,
        compute: torch.dtype,
        scale: float,
        prefix_B: Tensor | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.cu_seqlens_B1, self.prefix_B = cu_seqlens_B1, prefix_B
        self.compute, self.scale, self._watch = compute, scale, watch
        self.positions_T = packed_positions(cu_seqlens_B1, prefix_B)

    def attend(self, layer: int, q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor) -> Tensor:
        """Causal attention within each sequence; differentiable."""
        return attend_packed(q_TNH, k_TnH, v_TnH, self.cu_seqlens_B1, self.scale, self.compute, self.prefix_B)

    def note_routing(self, layer: int, routing: Routing, logits_TE: Tensor) -> None:
        """Passed on to the watch, if there is one."""
        if self._watch is not None:
            self._watch(layer, routing, logits_TE)


class Unwatched:
    """`inner` for a repetition of a forward: nobody is told the routing again."""

    def __init__(self, inner: Context) -> None:
        self.positions_T, self.attend = inner.positions_T, inner.attend

    def note_routing(self, layer: int, routing: Routing, logits_TE: Tensor) -> None:
        """Told in the forward."""


def packed_positions(cu_seqlens_B1: Tensor, prefix_B: Tensor | None = None) -> Tensor:
    """Position of each packed token within its own sequence: int32 [T] from int32 [B + 1]; (0, 2, 5) -> 0 1 0 1 2.

    A sequence with a prefix counts on from it: with prefixes (-1, 0) the same are 0 1 2 3 4.
    """
    starts_B, lengths_B = cu_seqlens_B1[:-1], cu_seqlens_B1.diff()
    total = int(cu_seqlens_B1[-1])
    if prefix_B is not None:
        before_B = torch.where(prefix_B < 0, 0, lengths_B.index_select(0, prefix_B.clamp(min=0)))
        starts_B = starts_B - before_B
    starts_T = torch.repeat_interleave(starts_B, lengths_B, output_size=total)
    return torch.arange(total, dtype=torch.int32) - starts_T
