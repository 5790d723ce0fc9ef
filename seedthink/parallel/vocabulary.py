"""The two matrices over the vocabulary, embedding and head: whole on a rank, or cut over tp into runs of blocks.

Cut, nothing is summed over ranks on the way forward. A token's row comes from the rank that holds it, as it is. A rank
reduces the logits of its own blocks of columns by themselves, and everyone joins all blocks in order, as one rank does
(kernels/logprob_parts.py). Rows to sample from get all their columns on one rank.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seedthink.kernels.linear import linear
from seedthink.kernels.logprob import COLUMNS, linear_logprob, part_gradients
from seedthink.kernels.logprob_parts import block_states, join_states
from seedthink.parallel.collectives import exchange_rows
from seedthink.parallel.cut import block_bounds
from seedthink.parallel.group import Group
from seedthink.parallel.runs import Choice, SharedChoice


class Vocabulary:
    """`size` tokens, all of them here; `held` is how many rows of the matrices are."""

    def __init__(self, size: int) -> None:
        self.held = size

    def embed(self, tokens_U: Tensor, embed_VD: Tensor) -> Tensor:
        """The rows of the tokens of this rank's run."""
        return F.embedding(tokens_U, embed_VD)

    def logprobs(
        self,
        hidden_UD: Tensor,
        wanted: Choice,
        head_VD: Tensor,
        targets_R: Tensor,
        temperature: float,
        compute: torch.dtype,
    ) -> tuple[Tensor, ...]:
        """`linear_logprob` of all wanted rows of the runs, of which hidden_UD is this rank's."""
        rows_rD = hidden_UD.index_select(0, wanted.rows)
        found = linear_logprob(rows_rD, head_VD, wanted.among(targets_R), temperature, compute)
        return wanted.share(*found)

    def logits(self, hidden_UD: Tensor, wanted: Choice, head_VD: Tensor, compute: torch.dtype) -> Tensor:
        """float32 logits of this rank's wanted rows, which are wanted once and in ascending order. No autograd."""
        if len(wanted.rows) < len(hidden_UD):
            hidden_UD = hidden_UD.index_select(0, wanted.rows)
        return linear(hidden_UD, head_VD, compute)


class SharedVocabulary(Vocabulary):
    """Cut over the ranks of `tp`, which hold runs of the same `cp` rank's rows."""

    def __init__(self, size: int, tp: Group, cp: Group) -> None:
        self._size, self._tp, self._cp = size, tp, cp
        self._bounds = block_bounds(size, COLUMNS, tp.size)
        self._widths = [end - begin for begin, end in pairwise(self._bounds)]
        super().__init__(self._widths[tp.index])

    @property
    def _place(self) -> tuple[int, int]:
        return self._bounds[self._tp.index], self._size

    def embed(self, tokens_U: Tensor, embed_VD: Tensor) -> Tensor:
        """Rows come from the ranks that hold them; the gradient goes back, summed there rank after rank."""
        tokens_GU = self._tp.gather(tokens_U)
        owner_GU = torch.searchsorted(torch.tensor(self._bounds[1:]), tokens_GU, right=True)
        mine_GU, owner_U = owner_GU == self._tp.index, owner_GU[self._tp.index]
        found_RD = F.embedding(tokens_GU[mine_GU] - self._place[0], embed_VD)
        received = torch.bincount(owner_U, minlength=self._tp.size).tolist()
        arrived_UD = exchange_rows(found_RD, mine_GU.sum(1).tolist(), received, self._tp)
        order_U = torch.argsort(owner_U, stable=True)
        return arrived_UD.index_select(0, torch.empty_like(order_U).scatter_(0, order_U, torch.arange(len(order_U))))

    def logprobs(
        self,
        hidden_UD: Tensor,
        wanted: Choice,
        head_VD: Tensor,
        targets_R: Tensor,
        temperature: float,
        compute: torch.dtype,
    ) -> tuple[Tensor, ...]:
        """Each rank computes its columns of the wanted rows of all tp ranks; all of them know the results."""
        rows = self._rows(wanted)
        h_RD = rows.own.gather(hidden_UD.index_select(0, rows.own.rows), compute)
        settings = temperature, compute, self._place
        found = _PartLogprob.apply(h_RD, head_VD, rows.all.among(targets_R), settings, self._widths, self._tp)
        return rows.all.share(*found)

    def logits(self, hidden_UD: Tensor, wanted: Choice, head_VD: Tensor, compute: torch.dtype) -> Tensor:
        """Columns go to the ranks of their rows."""
        own = self._rows(wanted).own
        if not sum(own.counts):
            return hidden_UD.new_empty((0, self._size))
        h_RD = own.gather(hidden_UD.index_select(0, own.rows), compute)  # ascending, so rank after rank
        columns_RX = linear(h_RD, head_VD, compute) if self.held else h_RD.new_empty((len(h_RD), 0))
        mine = len(own.rows)
        sent, received = [count * self.held for count in own.counts], [mine * width for width in self._widths]
        parts = self._tp.exchange(columns_RX.flatten(), sent, received).split(received)
        return torch.cat([part.view(mine, width) for part, width in zip(parts, self._widths, strict=True)], dim=1)

    def _rows(self, wanted: Choice) -> _Rows:
        assert isinstance(wanted, SharedChoice), "ranks that share a vocabulary share rows"
        return _Rows(wanted, self._tp, self._cp)


class _Rows:
    """Wanted rows of a data index: `all` those of the cp rank among them, `own` those of this rank among these."""

    def __init__(self, wanted: SharedChoice, tp: Group, cp: Group) -> None:
        self.all = SharedChoice(wanted.source_R, wanted.size * tp.size, cp)
        self.own = SharedChoice(self.all.rows, wanted.size, tp)


class _PartLogprob(torch.autograd.Function):
    """(logprob_R, entropy_R) of rows that every rank of a group has, from each rank's columns.

    Every rank goes on alike, so each knows the gradient of all rows; its dh is the part by its own columns.
    """

    @staticmethod
    def forward(
        ctx: Any,
        h_RD: Tensor,
        part_VD: Tensor,
        targets_R: Tensor,
        settings: tuple[float, torch.dtype, tuple[int, int]],
        widths: list[int],
        group: Group,
    ) -> tuple[Tensor, Tensor]:
        states_BR4 = _of_all(block_states(h_RD, part_VD, targets_R, *settings), widths, group)
        logprob_R, entropy_R, state_R4 = join_states(states_BR4, targets_R, settings[0])
        ctx.settings = settings
        ctx.save_for_backward(h_RD, part_VD, targets_R, state_R4)
        return logprob_R, entropy_R

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        dlogprob_R, dentropy_R = (grad.contiguous() for grad in grads)
        dh_RD, dpart_VD = part_gradients(dlogprob_R, dentropy_R, *ctx.saved_tensors, *ctx.settings)
        return dh_RD, dpart_VD, None, None, None, None


def _of_all(states_BR4: Tensor, widths: list[int], group: Group) -> Tensor:
    """The states of all ranks' blocks, in order."""
    counts = [-(-width // COLUMNS) for width in widths]
    padded = states_BR4.new_zeros((max(counts), *states_BR4.shape[1:]))
    padded[: len(states_BR4)] = states_BR4
    return torch.cat([part[:count] for part, count in zip(group.gather(padded), counts, strict=True)])
