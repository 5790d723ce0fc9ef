"""A `Batch` cut into micro-batches of tensors, which is what forward, loss and backward see.

Every array keeps the convention of `types.Batch`: entry t speaks about predicting `tokens_T[t]`, so the hidden state
that predicts it is that of t - 1 of the same sequence. Only rows with mask 1 reach the head: a prompt costs no logits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seedthink.engine.rows import Rows, rows_of
from seedthink.types import Batch, Scored

_PER_TOKEN = ("mask_T", "logprob_T", "proximal_T", "reference_T", "advantage_T", "return_T", "value_T", "positive_T")


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """Some sequences of a batch. Float arrays are float32 of shape [T] unless named otherwise; counts are global.

    `predicted_R` int64 lists the positions t with mask 1; `logprob_T` of a network is scattered back to [T] with zeros
    elsewhere. An optional array that the algorithm did not fill is empty in the `Batch` and empty here.
    """

    tokens_T: torch.Tensor
    cu_seqlens_B1: torch.Tensor
    predicted_R: torch.Tensor
    mask_T: torch.Tensor
    logprob_T: torch.Tensor
    proximal_T: torch.Tensor
    reference_T: torch.Tensor
    advantage_T: torch.Tensor
    return_T: torch.Tensor
    value_T: torch.Tensor
    positive_T: torch.Tensor
    sequence_weight_B: torch.Tensor
    global_tokens: float
    global_sequences: float
    global_positive_tokens: float

    def rows(self) -> Rows:
        """What a network computes of it."""
        return rows_of(self.tokens_T.numpy(), self.cu_seqlens_B1.numpy(), self.mask_T.numpy())

    def scatter(self, rows_R: torch.Tensor) -> torch.Tensor:
        """Values of the predicted rows at their places in [T], zeros elsewhere; differentiable."""
        full_T = rows_R.new_zeros(self.tokens_T.shape[0])
        return full_T.index_copy(0, self.predicted_R, rows_R)


def micro_batches(batch: Batch) -> Iterator[MicroBatch]:
    """The micro-batches of `batch` in order; sequences of one micro-batch stand together."""
    for micro in range(int(batch.micro_B.max(initial=-1)) + 1):
        (members,) = np.nonzero(batch.micro_B == micro)
        if len(members):
            yield _slice(batch, int(members[0]), int(members[-1]) + 1)


def empty_micro_batch(batch: Batch) -> MicroBatch:
    """No sequence of `batch`: for a rank that takes part in what others compute."""
    return _slice(batch, 0, 0)


def _slice(batch: Batch, first: int, last: int) -> MicroBatch:
    begin, end = int(batch.cu_seqlens[first]), int(batch.cu_seqlens[last])
    arrays = {name: _tensor(getattr(batch, name)[begin:end]) for name in _PER_TOKEN}
    return MicroBatch(
        tokens_T=torch.from_numpy(batch.tokens_T[begin:end].astype(np.int64)),
        cu_seqlens_B1=torch.from_numpy((batch.cu_seqlens[first : last + 1] - begin).astype(np.int32)),
        predicted_R=torch.from_numpy(np.nonzero(batch.mask_T[begin:end] > 0)[0]),
        sequence_weight_B=_tensor(batch.sequence_weight_B[first:last]),
        global_tokens=batch.global_tokens,
        global_sequences=batch.global_sequences,
        global_positive_tokens=batch.global_positive_tokens,
        **arrays,
    )


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.tensor(np.asarray(array, np.float32))  # a copy: arrays that crossed a process are read-only


def scoring_batch(scored: Sequence[Scored], token_budget: int) -> tuple[Batch, list[slice]]:
    """Sequences packed for a forward without a loss, and where each one's response tokens stand in the flat arrays."""
    sequences, masks, spans, begin = [], [], [], 0
    for item in scored:
        prompt_T, answer_T = item.rollout.prompt.tokens_T, item.rollout.completion.tokens_T
        sequences.append(np.concatenate([prompt_T, answer_T]))
        masks.append(np.concatenate([np.zeros(len(prompt_T)), np.ones(len(answer_T))]))
        spans.append(slice(begin + len(prompt_T), begin + len(sequences[-1])))
        begin += len(sequences[-1])
    predicted = float(sum(mask.sum() for mask in masks))
    return unlabelled_batch(sequences, masks, token_budget, predicted, float(len(scored))), spans


def unlabelled_batch(
    sequences: Sequence[np.ndarray],
    masks: Sequence[np.ndarray],
    token_budget: int,
    global_tokens: float,
    global_sequences: float,
) -> Batch:
    """Token sequences with the mask of what is predicted, and nothing else: for imitation and for scoring.

    Micro-batches are filled in order up to `token_budget` tokens; a longer sequence stands alone.
    """
    micro_B, micro, filled = [], 0, 0
    for sequence in sequences:
        if filled and filled + len(sequence) > token_budget:
            micro, filled = micro + 1, 0
        filled += len(sequence)
        micro_B.append(micro)
    none = np.zeros(0, np.float32)
    return Batch(
        tokens_T=np.concatenate([np.zeros(0, np.int32), *sequences]).astype(np.int32),
        cu_seqlens=np.concatenate([[0], np.cumsum([len(sequence) for sequence in sequences])]).astype(np.int32),
        micro_B=np.asarray(micro_B, np.int32),
        mask_T=np.concatenate([none, *masks]).astype(np.float32),
        logprob_T=none,
        proximal_T=none,
        reference_T=none,
        advantage_T=none,
        return_T=none,
        value_T=none,
        positive_T=none,
        sequence_weight_B=np.ones(len(sequences), np.float32),
        global_tokens=global_tokens,
        global_sequences=global_sequences,
        global_positive_tokens=0.0,
    )
