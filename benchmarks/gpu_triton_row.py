"""A peer of GAE: one Triton program per row of a rectangle, `tl.associative_scan` over the whole row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _join(a1: tl.tensor, b1: tl.tensor, a2: tl.tensor, b2: tl.tensor):
    return a1 * a2, b1 * a2 + b2


@triton.jit
def _scan(
    r_ptr: tl.tensor,
    v_ptr: tl.tensor,
    a_ptr: tl.tensor,
    w_ptr: tl.tensor,
    T: tl.tensor,
    gamma: tl.tensor,
    decay: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    t = tl.arange(0, BLOCK)
    base = tl.program_id(0).to(tl.int64) * T
    r = tl.load(r_ptr + base + t, mask=t < T, other=0.0)
    v = tl.load(v_ptr + base + t, mask=t < T, other=0.0)
    following = tl.load(v_ptr + base + t + 1, mask=t + 1 < T, other=0.0)
    factor = tl.zeros((BLOCK,), tl.float32) + gamma * decay
    _, advantage = tl.associative_scan((factor, r + gamma * following - v), 0, _join, reverse=True)
    tl.store(a_ptr + base + t, advantage, mask=t < T)
    tl.store(w_ptr + base + t, advantage + v, mask=t < T)


def scan_rows(reward: Tensor, value: Tensor, gamma: float, decay: float) -> tuple[Tensor, Tensor]:
    """(advantage, return) of a rectangle, one lambda."""
    advantage, returns = torch.empty_like(reward), torch.empty_like(reward)
    block = triton.next_power_of_2(reward.shape[1])
    _scan[(reward.shape[0],)](
        reward, value, advantage, returns, reward.shape[1], gamma, decay, BLOCK=block, num_warps=8
    )
    return advantage, returns
