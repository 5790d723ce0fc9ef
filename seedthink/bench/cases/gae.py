"""Advantage estimation: bound by memory, rewards and values in, advantages and returns out, 16 bytes a token.

The kernel computes both lambdas of packed sequences. The peers compute one lambda of a rectangle, and only their
advantages are checked: "verl_loop" steps through time with columns of all sequences and carries masked ones over;
"chunked" is the method of slime, matrix products inside chunks of 128 and a carry between them; "torchrl" is its
vec_generalized_advantage_estimate. The last two know no masks.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from seedthink.bench.case import Case, Draw, Maker, Outputs, Prepared, Run, Work, against
from seedthink.bench.peers import compiled, needs
from seedthink.bench.presets import Shapes
from seedthink.kernels.gae import gae, reference_gae

GAMMA, POLICY_LAMBDA, CRITIC_LAMBDA = 1.0, 0.95, 1.0
CHUNK = 128
CHECKED = 65536  # tokens: the reference steps through them in Python
MOST_COMPILED_CHUNKS = 64  # inductor unrolls the carry: more take minutes


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """Sequences of equal length: rectangles waste nothing. Masked: a prompt and a tool's output do not count."""
    for count, length in shapes.scans:
        for masked in (0, 1):
            place = {"B": count, "T": length, "masked": masked}
            yield Case("gae", place, "float32", work(count, length, masked), partial(prepare, count, length, masked))


def work(count: int, length: int, masked: int) -> Work:
    """Four float32 and the mask per token, two lambdas and a bound per sequence; 3 operations and 2 per lambda."""
    return Work(bytes=(16.0 + masked) * count * length + 12.0 * count, flops=7.0 * count * length)


def prepare(count: int, length: int, masked: int, draw: Draw) -> Prepared:
    """Normal rewards and values."""
    reward_BT, value_BT = draw.normal(count, length), draw.normal(count, length)
    mask_BT = torch.ones(count, length, dtype=torch.bool, device=draw.device)
    if masked:
        mask_BT[:, : length // 8] = False
        mask_BT[:, length // 2 : length // 2 + length // 8] = False
    bounds = torch.arange(0, count * length + 1, length, dtype=torch.int32, device=draw.device)
    policy_B, critic_B = (torch.full((count,), decay, device=draw.device) for decay in (POLICY_LAMBDA, CRITIC_LAMBDA))
    mask_T = mask_BT.view(-1) if masked else None
    inputs = reward_BT.view(-1), value_BT.view(-1), bounds, policy_B, critic_B, GAMMA, mask_T
    checked = min(count, max(1, CHECKED // length)) * length
    return Prepared(
        ours={draw.device.type: lambda: partial(gae, *inputs)},
        peers=peers(reward_BT, value_BT, mask_BT, bool(masked)),
        error=against(partial(reference, checked, *inputs), rows=checked),
        tolerance=1e-4,
    )


def reference(
    tokens: int,
    reward_T: Tensor,
    value_T: Tensor,
    bounds: Tensor,
    policy_B: Tensor,
    critic_B: Tensor,
    gamma: float,
    mask_T: Tensor | None,
) -> Outputs:
    """The first tokens, which are whole sequences, in Python's floats."""
    first = reward_T[:tokens].double(), value_T[:tokens].double(), bounds[bounds <= tokens]
    return reference_gae(*first, policy_B, critic_B, gamma, None if mask_T is None else mask_T[:tokens])


def peers(reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, masked: bool) -> dict[str, Maker]:
    """What can estimate advantages of this rectangle."""
    counts_BT = mask_BT.float()
    found: dict[str, Maker] = {"verl_loop": lambda: partial(time_loop, reward_BT, value_BT, counts_BT)}
    if masked:
        return found
    if reward_BT.shape[1] % CHUNK == 0:
        found["chunked"] = lambda: partial(chunked, reward_BT, value_BT)
        if reward_BT.shape[1] // CHUNK <= MOST_COMPILED_CHUNKS:
            found["compile"] = lambda: partial(compiled(chunked), reward_BT, value_BT)
    return {**found, "torchrl": partial(torchrl, reward_BT, value_BT)}


def time_loop(reward_BT: Tensor, value_BT: Tensor, counts_BT: Tensor) -> Outputs:
    """A time step of all sequences at once; a masked token hands on what it was given."""
    next_value = last = torch.zeros(len(reward_BT), device=reward_BT.device)
    columns = []
    for t in reversed(range(reward_BT.shape[1])):
        counts = counts_BT[:, t]
        current = reward_BT[:, t] + GAMMA * next_value - value_BT[:, t] + GAMMA * POLICY_LAMBDA * last
        next_value = value_BT[:, t] * counts + (1 - counts) * next_value
        last = current * counts + (1 - counts) * last
        columns.append(last)
    return torch.stack(columns[::-1], dim=1).view(-1), None


def chunked(reward_BT: Tensor, value_BT: Tensor) -> Outputs:
    """Inside a chunk A_i = sum over j >= i of decay^(j - i) delta_j, a product with a triangle; then the carry."""
    count, length = reward_BT.shape
    decay = GAMMA * POLICY_LAMBDA
    at = torch.arange(CHUNK, device=reward_BT.device)
    triangle = torch.where(at[:, None] >= at, decay ** (at[:, None] - at).clamp(min=0).float(), 0.0)
    next_BT = torch.cat([value_BT[:, 1:], value_BT.new_zeros(count, 1)], dim=1)
    delta_BT = reward_BT + GAMMA * next_BT - value_BT
    local = delta_BT.view(count, length // CHUNK, CHUNK) @ triangle
    fading, carry_B1, done = decay ** (CHUNK - at).float(), value_BT.new_zeros(count, 1), []
    for n in reversed(range(length // CHUNK)):
        done.append(local[:, n] + carry_B1 * fading)
        carry_B1 = done[-1][:, :1]
    return torch.cat(done[::-1], dim=1).view(-1), None


def torchrl(reward_BT: Tensor, value_BT: Tensor) -> Run:
    """TorchRL's vectorised estimate; its shifted values and end flags are made outside the clock."""
    with needs("torchrl"):
        from torchrl.objectives.value.functional import vec_generalized_advantage_estimate
    next_BT = torch.cat([value_BT[:, 1:], value_BT.new_zeros(len(value_BT), 1)], dim=1)
    end_BT = torch.zeros(reward_BT.shape, dtype=torch.bool, device=reward_BT.device)
    end_BT[:, -1] = True
    arrays = [each.unsqueeze(-1) for each in (value_BT, next_BT, reward_BT, end_BT, end_BT)]

    def run() -> Outputs:
        advantage_BT1, _ = vec_generalized_advantage_estimate(GAMMA, POLICY_LAMBDA, *arrays)
        return advantage_BT1.reshape(-1), None

    return run
