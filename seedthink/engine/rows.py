"""The rows that a forward computes for some sequences: no token twice, and none in vain.

Answers to one prompt are learned from together, and a token's hidden state depends on the tokens before it alone. So a
prompt that several sequences begin with is computed once, and each of them goes on from it; its gradient gathers what
all of them send back. The last token of a sequence predicts nothing and is left out.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

if TYPE_CHECKING:
    from seedthink.types import Float32

Ints = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Rows:
    """U rows in S pieces: int64 tokens_U, int32 bounds cu_seqlens_S1, int32 prefix_S (the piece before, or -1).

    source_R int64: the row whose hidden state predicts each predicted token, in the order of those.
    times_U int64: how many sequences go through a row, without those in which nothing is predicted.
    """

    tokens_U: Tensor
    cu_seqlens_S1: Tensor
    prefix_S: Tensor
    source_R: Tensor
    times_U: Tensor


def rows_of(tokens_T: Ints, cu_seqlens_B1: Ints, mask_T: Float32) -> Rows:
    """Rows for packed sequences, of which the tokens with mask 1 are predicted, never a sequence's first."""
    pieces, prefixes, row_T = _Pieces(), [], np.zeros(len(tokens_T), np.int64)
    bounds = list(pairwise(cu_seqlens_B1.tolist()))
    prompts = [_prompt(tokens_T[begin:end], mask_T[begin:end]) for begin, end in bounds]
    times = Counter(prompts)
    place_of: dict[bytes, int] = {}
    for (begin, end), prompt in zip(bounds, prompts, strict=True):
        shared = len(prompt) // tokens_T.itemsize if prompt and times[prompt] > 1 else 0
        if shared and prompt not in place_of:
            place_of[prompt] = pieces.add(tokens_T[begin : begin + shared])
            prefixes.append(-1)
        if shared:
            first = pieces.starts[place_of[prompt]]
            row_T[begin : begin + shared] = np.arange(first, first + shared)
            pieces.use(place_of[prompt])
        prefixes.append(place_of[prompt] if shared else -1)
        own = pieces.add(tokens_T[begin + shared : end - 1])
        if prompt:
            pieces.use(own)
        first = pieces.starts[own]
        row_T[begin + shared : end - 1] = np.arange(first, first + end - 1 - begin - shared)
    return Rows(
        tokens_U=torch.from_numpy(pieces.tokens()),
        cu_seqlens_S1=torch.tensor(pieces.starts, dtype=torch.int32),
        prefix_S=torch.tensor(prefixes, dtype=torch.int32),
        source_R=torch.from_numpy(row_T[np.flatnonzero(mask_T > 0) - 1]),
        times_U=torch.from_numpy(pieces.times()),
    )


class _Pieces:
    """Runs of tokens one after the other; `starts` has one entry more than there are runs."""

    def __init__(self) -> None:
        self.starts = [0]
        self._runs: list[Ints] = []
        self._users: list[int] = []

    def add(self, tokens_T: Ints) -> int:
        """Appends a run and returns its number."""
        self._runs.append(tokens_T)
        self._users.append(0)
        self.starts.append(self.starts[-1] + len(tokens_T))
        return len(self._runs) - 1

    def use(self, number: int) -> None:
        """One more sequence goes through run `number`."""
        self._users[number] += 1

    def times(self) -> npt.NDArray[np.int64]:
        """Of each row, the uses of its run."""
        return np.repeat(np.asarray(self._users, np.int64), np.diff(self.starts))

    def tokens(self) -> npt.NDArray[np.int64]:
        """All of them."""
        return np.concatenate([np.zeros(0, np.int64), *self._runs])


def _prompt(tokens_T: Ints, mask_T: Float32) -> bytes:
    """The tokens before the first predicted one; nothing where none is predicted."""
    predicted = np.flatnonzero(mask_T > 0)
    return tokens_T[: predicted[0]].tobytes() if len(predicted) else b""
