"""Log-probability and entropy of rows of logits on CUDA, and their derivative (contract: kernels/logprob.py).

A row is cut into fixed splits of SPLIT columns. One program reads one split once and leaves (m, s, u): its maximum, its
sum of e^(x - m) and of e^(x - m) (x - m). A second kernel joins a row's splits in order. Where a row is cut depends on
the column alone, so its bits do not depend on how many rows there are, and a few long rows still fill the device.
The statistics (maximum, log-sum, entropy) of a row are all that the derivative needs besides the logits.
A target outside the vocabulary gives NaN, as a row with NaN or +inf does.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from seedthink.kernels.triton.launch import FLOATS, Config, ceil_div, check, config, launch, power_of_two

# The cut and the tree of a split's sum decide the bits.
CONFIGS = (
    config("splits of 8192, 8 warps", warps=8, SPLIT=8192),
    config("splits of 4096, 4 warps", warps=4, SPLIT=4096),
    config("splits of 16384, 16 warps", warps=16, SPLIT=16384),
)
JOIN_CONFIGS = (config("one tree", warps=1),)
BACKWARD_CONFIGS = (
    config("elementwise", warps=4, BLOCK=2048),
    config("elementwise", warps=8, BLOCK=4096),
    config("elementwise", warps=4, BLOCK=1024),
)


@triton.jit
def _splits(
    logits_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    part_ptr: tl.tensor,
    V: tl.tensor,
    SPLIT: tl.constexpr,
) -> None:
    row, split = tl.program_id(0).to(tl.int64), tl.program_id(1)
    column = split * SPLIT + tl.arange(0, SPLIT)
    inverse = 1.0 / tl.load(temperature_ptr + row)
    x = tl.load(logits_ptr + row * V + column, mask=column < V, other=float("-inf")).to(tl.float32) * inverse
    top = tl.max(x, axis=0)
    shifted = x - tl.where(top == float("-inf"), 0.0, top)
    weight = tl.exp(shifted)
    moment = tl.where(shifted == float("-inf"), 0.0, weight * shifted)
    part = part_ptr + (row * tl.num_programs(1) + split) * 3
    tl.store(part, top)
    tl.store(part + 1, tl.sum(weight, axis=0))
    tl.store(part + 2, tl.sum(moment, axis=0))


@triton.jit
def _join(part_ptr: tl.tensor, stats_ptr: tl.tensor, splits: tl.constexpr, COUNT: tl.constexpr) -> None:
    row, split = tl.program_id(0).to(tl.int64), tl.arange(0, COUNT)
    part, live = part_ptr + (row * splits + split) * 3, split < splits
    top = tl.load(part, mask=live, other=float("-inf"))
    weight = tl.load(part + 1, mask=live, other=0.0)
    moment = tl.load(part + 2, mask=live, other=0.0)
    highest = tl.max(top, axis=0)
    lower = top - tl.where(highest == float("-inf"), 0.0, highest)
    factor = tl.exp(lower)
    total = tl.sum(weight * factor, axis=0)
    mean = tl.sum(tl.where(lower == float("-inf"), 0.0, factor * (moment + weight * lower)), axis=0) / total
    log_total = tl.log(total)
    tl.store(stats_ptr + row * 3, highest)
    tl.store(stats_ptr + row * 3 + 1, log_total)
    tl.store(stats_ptr + row * 3 + 2, log_total - mean)


@triton.jit(do_not_specialize=["rows"])
def _pick(
    logits_ptr: tl.tensor,
    target_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    stats_ptr: tl.tensor,
    logprob_ptr: tl.tensor,
    entropy_ptr: tl.tensor,
    rows: tl.tensor,
    V: tl.tensor,
    ROWS: tl.constexpr,
) -> None:
    row = (tl.program_id(0) * ROWS + tl.arange(0, ROWS)).to(tl.int64)
    live = row < rows
    target = tl.load(target_ptr + row, mask=live, other=0)
    known = live & (target >= 0) & (target < V)
    logit = tl.load(logits_ptr + row * V + target, mask=known, other=float("nan")).to(tl.float32)
    inverse = 1.0 / tl.load(temperature_ptr + row, mask=live, other=1.0)
    highest, log_total = tl.load(stats_ptr + row * 3, mask=live), tl.load(stats_ptr + row * 3 + 1, mask=live)
    tl.store(logprob_ptr + row, (logit * inverse - highest) - log_total, mask=live)
    tl.store(entropy_ptr + row, tl.load(stats_ptr + row * 3 + 2, mask=live), mask=live)


@triton.jit
def _backward(
    logits_ptr: tl.tensor,
    target_ptr: tl.tensor,
    temperature_ptr: tl.tensor,
    stats_ptr: tl.tensor,
    dlogprob_ptr: tl.tensor,
    dentropy_ptr: tl.tensor,
    grad_ptr: tl.tensor,
    V: tl.tensor,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inverse, target = 1.0 / tl.load(temperature_ptr + row), tl.load(target_ptr + row)
    highest, log_total = tl.load(stats_ptr + row * 3), tl.load(stats_ptr + row * 3 + 1)
    entropy = tl.load(stats_ptr + row * 3 + 2)
    dlogprob, dentropy = tl.load(dlogprob_ptr + row), tl.load(dentropy_ptr + row)
    x = tl.load(logits_ptr + row * V + column, mask=column < V, other=float("-inf")).to(tl.float32)
    log_p = (x * inverse - highest) - log_total
    known = tl.where(log_p == float("-inf"), 0.0, log_p)
    grad = tl.where(column == target, dlogprob, 0.0) - tl.exp(log_p) * (dlogprob + dentropy * (known + entropy))
    tl.store(grad_ptr + row * V + column, (grad * inverse).to(grad_ptr.dtype.element_ty), mask=column < V)


def row_stats(logits_TV: Tensor, temperature_T: Tensor, *, config: Config = CONFIGS[0]) -> Tensor:
    """Maximum, log-sum and entropy of softmax(logits / temperature): float32 [T, 3]. logits float32 or bfloat16."""
    check("logits", logits_TV, logits_TV.device, FLOATS, -1, -1)
    rows, vocabulary = logits_TV.shape
    check("temperature", temperature_T, logits_TV.device, (torch.float32,), rows)
    if vocabulary == 0:
        raise ValueError("logits: expected at least one column")
    splits = ceil_div(vocabulary, config.block("SPLIT"))
    parts = temperature_T.new_empty((rows, splits, 3))
    stats_T3 = temperature_T.new_empty((rows, 3))
    launch(_splits, (rows, splits), logits_TV, temperature_T, parts, vocabulary, config=config)
    constants = {"splits": splits, "COUNT": power_of_two(splits)}
    launch(_join, (rows,), parts, stats_T3, config=JOIN_CONFIGS[0], **constants)
    return stats_T3


def row_logprob(
    logits_TV: Tensor, targets_T: Tensor, temperature_T: Tensor, *, config: Config = CONFIGS[0]
) -> tuple[Tensor, Tensor]:
    """(logprob_T, entropy_T) of targets, float32, in nats."""
    return pick(logits_TV, targets_T, temperature_T, row_stats(logits_TV, temperature_T, config=config))


def pick(logits_TV: Tensor, targets_T: Tensor, temperature_T: Tensor, stats_T3: Tensor) -> tuple[Tensor, Tensor]:
    """`row_logprob` from statistics that are there."""
    rows, vocabulary = logits_TV.shape
    check("targets", targets_T, logits_TV.device, (torch.int64,), rows)
    logprob_T, entropy_T = torch.empty_like(temperature_T), torch.empty_like(temperature_T)
    args = (logits_TV, targets_T, temperature_T, stats_T3, logprob_T, entropy_T, rows, vocabulary)
    launch(_pick, (ceil_div(rows, 128),), *args, config=JOIN_CONFIGS[0], ROWS=128)
    return logprob_T, entropy_T


def row_logprob_backward_(
    logits_TV: Tensor,
    targets_T: Tensor,
    temperature_T: Tensor,
    dlogprob_T: Tensor,
    dentropy_T: Tensor,
    stats_T3: Tensor | None = None,
    *,
    config: Config = BACKWARD_CONFIGS[0],
) -> Tensor:
    """Overwrite the logits with their gradient; returns them. Without statistics of an earlier call they are made."""
    stats_T3 = row_stats(logits_TV, temperature_T) if stats_T3 is None else stats_T3
    rows, vocabulary = logits_TV.shape
    check("targets", targets_T, logits_TV.device, (torch.int64,), rows)
    check("dlogprob", dlogprob_T, logits_TV.device, (torch.float32,), rows)
    check("dentropy", dentropy_T, logits_TV.device, (torch.float32,), rows)
    args = (logits_TV, targets_T, temperature_T, stats_T3, dlogprob_T, dentropy_T, logits_TV, vocabulary)
    launch(_backward, (rows, ceil_div(vocabulary, config.block("BLOCK"))), *args, config=config)
    return logits_TV
