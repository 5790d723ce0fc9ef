"""What changed between two publishes of an FP8 matrix, as a message of two bytes per changed code.

Each row is a list of events (gap, code): the code to be written gap + 1 columns behind the last event. Where codes are
equal for more than 255 columns, an event repeats an unchanged code. Scales that changed follow by index.
With sticky ranges (kernels/fp8.py) and hysteresis (kernels/fp8_feedback.py) few codes change after a small update.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.fp8 import Fp8


class Fp8Delta(NamedTuple):
    """From one Fp8 to the next of the same shape, block and format. R events, S changed scales."""

    first_M1: Tensor  # int64, a row's first event; the last entry is R
    gaps_R: Tensor  # uint8
    codes_R: Tensor  # uint8
    index_S: Tensor  # int64, into the flat scales
    scale_S: Tensor  # float32

    @property
    def nbytes(self) -> int:
        """Size of the message."""
        return sum(part.nbytes for part in self)


def fp8_delta(old: Fp8, new: Fp8) -> Fp8Delta:
    """The message that turns `old` into `new`. ValueError where shapes, blocks or formats differ."""
    if old.block != new.block or old.codes.dtype != new.codes.dtype or old.codes.shape != new.codes.shape:
        raise ValueError(f"new: {_kind(new)} does not follow on old: {_kind(old)}")
    first_M1 = torch.zeros(old.codes.shape[0] + 1, dtype=torch.int64)
    _C.fp8_delta_count(old.codes, new.codes, first_M1[1:])
    torch.cumsum(first_M1, 0, out=first_M1)
    gaps_R, codes_R = torch.empty(2, int(first_M1[-1]), dtype=torch.uint8).unbind()
    _C.fp8_delta_write(old.codes, new.codes, first_M1, gaps_R, codes_R)
    index_S = (old.scale != new.scale).flatten().nonzero().flatten()
    return Fp8Delta(first_M1, gaps_R, codes_R, index_S, new.scale.flatten()[index_S])


def apply_delta(old: Fp8, delta: Fp8Delta) -> Fp8:
    """What `new` was when the delta was made from `old`; `old` itself is left alone.

    ValueError where the message does not fit the matrix. It does not know which version it starts from: its sender and
    its receiver agree on that by the publish's number.
    """
    codes_MN, scale_PQ = old.codes.clone(), old.scale.clone()
    _C.fp8_delta_apply(delta.first_M1, delta.gaps_R, delta.codes_R, codes_MN)
    if delta.index_S.numel() > 0 and not 0 <= int(delta.index_S.min()) <= int(delta.index_S.max()) < scale_PQ.numel():
        raise ValueError(f"index: an entry is outside 0 to {scale_PQ.numel() - 1}, the scales of old")
    scale_PQ.view(-1)[delta.index_S] = delta.scale_S
    return Fp8(codes_MN, scale_PQ, old.block)


def _kind(quantized: Fp8) -> str:
    return f"{quantized.format} {list(quantized.codes.shape)} in blocks of {quantized.block}"
