"""Draw one token per row: temperature, top-k, top-p, and the log-probability before the cuts.

The random number of (seed, position) comes from Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as
1, 2, 3"), a counter generator, so a sequence draws the same tokens whatever shares its batch. The token is found by the
inverse of the cumulative distribution in ascending id. The log-probability uses the row function of logprob.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seedthink import _C

_MASK = 0xFFFFFFFF


def philox_uniform(seed: int, position: int) -> float:
    """The uniform number in [0, 1) that `sample` uses for (seed, position), with 53 random bits, in plain Python."""
    key, counter = [seed & _MASK, seed >> 32 & _MASK], [position & _MASK, position >> 32 & _MASK, 0, 0]
    for _ in range(10):
        left, right = 0xD2511F53 * counter[0], 0xCD9E8D57 * counter[2]
        counter = [right >> 32 ^ counter[1] ^ key[0], right & _MASK, left >> 32 ^ counter[3] ^ key[1], left & _MASK]
        key = [(key[0] + 0x9E3779B9) & _MASK, (key[1] + 0xBB67AE85) & _MASK]
    return ((counter[0] << 32 | counter[1]) >> 11) * 2.0**-53


def reference_sample_probabilities(logits_V: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """The distribution that one row is drawn from, after the cuts, in the dtype of the logits."""
    p_V = torch.softmax(logits_V / temperature, dim=-1)
    order = torch.argsort(p_V, descending=True, stable=True)
    if 0 < top_k < len(p_V):
        p_V = p_V.index_fill(0, order[top_k:], 0.0)
        p_V = p_V / p_V.sum()
    if top_p < 1.0:
        before = p_V[order].cumsum(0) - p_V[order]
        p_V = p_V.index_fill(0, order[before >= top_p], 0.0)
        p_V = p_V / p_V.sum()
    return p_V


def reference_sample(
    logits_BV: Tensor, temperature_B: Tensor, top_k_B: Tensor, top_p_B: Tensor, seed_B: Tensor, position_B: Tensor
) -> tuple[Tensor, Tensor]:
    """`sample` row by row in the dtype of the logits; its tokens may differ where rounding moves a boundary."""
    tokens, logprobs = [], []
    rows = zip(logits_BV, temperature_B.tolist(), top_k_B.tolist(), top_p_B.tolist(), strict=True)
    for row, (logits_V, temperature, top_k, top_p) in enumerate(rows):
        if temperature == 0.0:
            token = int((logits_V == logits_V.max()).nonzero()[0])
        else:
            cumulative = reference_sample_probabilities(logits_V, temperature, top_k, top_p).cumsum(0)
            u = philox_uniform(int(seed_B[row]), int(position_B[row])) * cumulative[-1]
            token = int((cumulative > u).nonzero()[0])
        tokens.append(token)
        logprobs.append(torch.log_softmax(logits_V / (temperature or 1.0), dim=-1)[token])
    return torch.tensor(tokens, dtype=torch.int64), torch.stack(logprobs)


def sample(
    logits_BV: Tensor, temperature_B: Tensor, top_k_B: Tensor, top_p_B: Tensor, seed_B: Tensor, position_B: Tensor
) -> tuple[Tensor, Tensor]:
    """(token_B int64, logprob_B float32): one draw per row.

    logits_BV float32 [B, V]; temperature_B float32 [B] (0 means greedy, ties to the smaller id, log-probability at
    temperature 1); top_k_B int32 [B] (0 or less: no cut); top_p_B float32 [B] in (0, 1] (1: no cut); seed_B and
    position_B int64 [B]. Top-k cuts first; top-p keeps the smallest set of most likely survivors (ties to the smaller
    id) whose renormalised mass reaches top_p. ValueError names the argument, also when a row's logits hold NaN.
    """
    token_B, logprob_B = torch.empty_like(seed_B), torch.empty_like(temperature_B)
    _C.sample_rows(logits_BV, temperature_B, top_k_B, top_p_B, seed_B, position_B, token_B, logprob_B)
    return token_B, logprob_B
