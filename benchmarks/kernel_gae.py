"""GAE against a warm copy of the same bytes and against a Python loop over time steps, in turns in one process.

The kernel computes both lambdas from packed sequences: it reads rewards and values and writes advantages and returns,
16 bytes a token. The copy moves the same bytes between the same warm arrays with torch on the same threads. The loop is
the rectangular one of RL libraries: one lambda, a column per step, masked columns carried over.
Run: `python benchmarks/kernel_gae.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from turns import environment, in_turns, save

from seedthink import _C
from seedthink.kernels.gae import gae

CASES = {
    "512 x 8192": [8192] * 512,
    "64 x 8192": [8192] * 64,
    "16 x 65536": [65536] * 16,
    "1 x 1048576": [1048576],
    "4096 x 1..512": torch.randint(1, 513, (4096,), generator=torch.Generator().manual_seed(0)).tolist(),
}


def time_loop(
    reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, gamma: float, decay: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, a time step of all sequences at once."""
    next_value = last = torch.zeros(len(reward_BT))
    columns = []
    for t in reversed(range(reward_BT.shape[1])):
        counts = mask_BT[:, t]
        current = reward_BT[:, t] + gamma * next_value - value_BT[:, t] + gamma * decay * last
        next_value = value_BT[:, t] * counts + (1 - counts) * next_value
        last = current * counts + (1 - counts) * last
        columns.append(last)
    advantage_BT = torch.stack(columns[::-1], dim=1)
    return advantage_BT, advantage_BT + value_BT


def measure(name: str, lengths: list[int], masked: bool, samples: int, patience: int) -> dict[str, Any]:
    """One row: the kernel, the copy and, for a rectangle of moderate length, the loop (timed apart: it is slow)."""
    total, count = sum(lengths), len(lengths)
    reward, value = torch.randn(total), torch.randn(total)
    advantage, returns = torch.empty(total), torch.empty(total)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    policy, critic = torch.full((count,), 0.95), torch.ones(count)
    mask = torch.ones(total, dtype=torch.bool)
    if masked:  # a prompt, and a tool's output inside the answer
        for begin, length in zip(bounds.tolist(), lengths, strict=False):
            mask[begin : begin + length // 8] = False
            mask[begin + length // 2 : begin + length // 2 + length // 8] = False

    def scan() -> None:
        _C.gae_scan(reward, value, bounds, policy, critic, 1.0, mask if masked else None, None, advantage, returns)

    def copy() -> None:
        advantage.copy_(reward)
        returns.copy_(value)

    runs: dict[str, Callable[[], object]] = {"gae": scan, "copy": copy}
    row = {"case": name, "masked": masked, "tokens": total, **in_turns(runs, samples, patience)}
    row["of_copy"] = row["copy_ms"] / row["gae_ms"]
    row["of_copy_least"] = row["copy_ms_least"] / row["gae_ms_least"]
    row["gae_gb_per_s"] = 16 * total / row["gae_ms"] / 1e6
    if len(set(lengths)) == 1 and lengths[0] <= 8192:
        shape = (count, lengths[0])
        arguments = (reward.view(shape), value.view(shape), mask.view(shape).float(), 1.0, 0.95)
        row["loop_ms"] = in_turns({"loop": lambda: time_loop(*arguments)}, 2, 0)["loop_ms"]
        ours = gae(reward, value, bounds, policy, policy, 1.0, mask)[0]
        torch.testing.assert_close(ours.view(shape), time_loop(*arguments)[0], rtol=1e-3, atol=1e-3)
    return row


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--patience", type=int, default=3, help="times to repeat a case that others disturbed")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    _C.set_threads(options.threads)
    surroundings, rows = environment(), []
    for name, lengths in CASES.items():
        for masked in (False, True):
            row = measure(name, lengths, masked, options.samples, options.patience)
            rows.append(row)
            loop = (
                f", loop {row['loop_ms']:8.1f} ms ({row['loop_ms'] / row['gae_ms']:.0f}x)" if "loop_ms" in row else ""
            )
            print(
                f"{name:>14} {'masked' if masked else 'dense ':6} gae {row['gae_ms']:7.3f} ms "
                f"({row['gae_gb_per_s']:5.1f} GB/s), copy {row['copy_ms']:7.3f} ms, {row['of_copy']:4.0%} of copy "
                f"(least times {row['of_copy_least']:.0%}){loop}, elsewhere {row['cores_used_elsewhere']:.2f}",
                flush=True,
            )
    save("kernel_gae", rows, surroundings)


if __name__ == "__main__":
    main()
