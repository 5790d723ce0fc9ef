"""What a forward that records gradients keeps of each block: `memory.recompute` and `memory.offload_activations`.

Without gradients (scoring, generation) nothing is kept, and the settings do nothing.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from seedthink.models.context import Context, Unwatched
from seedthink.models.recompute import Forgotten, cheap_ones_remade
from seedthink.models.stores import DeviceStore, HostStore, Store, hooks_into

if TYPE_CHECKING:
    from seedthink.models.layers import Block

Recompute = Literal["none", "selective", "layers"]
Stream = tuple[Tensor, Tensor]


class Keeping:
    """Runs blocks. recompute: what is made again, in blocks 0, every, 2 * every, ... offload: to host memory."""

    def __init__(self, recompute: Recompute = "none", every: int = 1, offload: bool = False) -> None:
        self.recompute, self.every, self.offload = recompute, every, offload

    def run(
        self, number: int, block: Block, x_TD: Tensor, delta_TD: Tensor | None, table: Tensor, context: Context
    ) -> Stream:
        """`block(x_TD, delta_TD, table, context)` of block `number`."""
        way = self.recompute if number % self.every == 0 else "none"
        if not torch.is_grad_enabled() or (way == "none" and not self.offload):
            return block(x_TD, delta_TD, table, context)  # type: ignore[no-any-return]
        store: Store = HostStore() if self.offload else DeviceStore()
        if way == "selective":
            with cheap_ones_remade(store):
                return block(x_TD, delta_TD, table, context)  # type: ignore[no-any-return]
        with saved_tensors_hooks(*hooks_into(store)):
            if way == "none":
                return block(x_TD, delta_TD, table, context)  # type: ignore[no-any-return]
            # By way of the block's own call: whoever brings its weights has hooked into that.
            return block(x_TD, delta_TD, table, context, partial(_forgotten, block, store))  # type: ignore[no-any-return]


def _forgotten(block: Block, store: Store, x_TD: Tensor, normed_TD: Tensor, table: Tensor, context: Context) -> Stream:
    """The rest of a block, of which x_TD alone is kept: its norm is made again from it."""
    kept, unwatched = store.put(x_TD), Unwatched(context)
    of_x, of_norm = x_TD.requires_grad, normed_TD.requires_grad

    def again() -> None:
        with torch.no_grad():
            whole_TD = store.get(kept)
            again_TD = block.normed(whole_TD)
        # detach: the kept tensor itself stays without a graph.
        block.rest(whole_TD.detach().requires_grad_(of_x), again_TD.requires_grad_(of_norm), table, unwatched)

    with Forgotten(again).forgetting():
        return block.rest(x_TD, normed_TD, table, context)
