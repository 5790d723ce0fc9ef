"""Log-probabilities where several hold the vocabulary, each some whole blocks of 1024 columns.

Whoever has the columns reduces each block by itself; whoever has all blocks' states joins them in order. `logprob.py`
and the sampler join the same blocks in the same order, so the bits do not depend on who holds what.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.linear import linear_packed
from seedthink.kernels.logprob import COLUMNS, finish, panels_by_columns
from seedthink.kernels.packing import pack_memory


def block_states(
    h_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    temperature: float,
    compute: torch.dtype,
    place: tuple[int, int],
) -> Tensor:
    """float64 [B, T, 4]: the states of the blocks of columns whose rows are `weight_VD`, perhaps none.

    place: the number of the first column, a multiple of 1024, and how many there are in all. Else as `linear_logprob`,
    without autograd. ValueError on bad input.
    """
    first, count = place
    temperature_T = torch.full((len(h_TD),), temperature)
    states_BT4 = torch.empty((-(-len(weight_VD) // COLUMNS), len(h_TD), 4), dtype=torch.float64)
    memory = pack_memory(min(COLUMNS, len(weight_VD)), weight_VD.shape[1], compute)
    for block, (columns, panels) in enumerate(panels_by_columns(weight_VD, compute, memory)):
        logits = linear_packed(h_TD, panels, columns.stop - columns.start)
        into = states_BT4[block : block + 1]
        _C.logprob_blocks(logits, first + columns.start, count, targets_T, temperature_T, into)
    return states_BT4


def join_states(states_BT4: Tensor, targets_T: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(logprob_T, entropy_T, state_T4) from the states of all blocks of the vocabulary in order."""
    state_T4 = torch.empty(states_BT4.shape[1:], dtype=torch.float64)
    _C.logprob_join(states_BT4, targets_T, state_T4)
    return *finish(state_T4, torch.full((len(targets_T),), temperature)), state_T4
