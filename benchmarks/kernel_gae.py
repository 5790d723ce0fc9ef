"""GAE against a warm copy of the same bytes and against RL libraries, in turns in one process.

The kernel computes both lambdas from packed sequences: it reads rewards and values and writes advantages and returns,
16 bytes a token. The copy moves the same bytes between the same warm arrays with torch on the same threads. The peers
compute one lambda of a rectangle: "loop" is verl's formula, a Python loop over time steps of torch columns with masked
ones carried over; "torchrl" is its vec_generalized_advantage_estimate (where torchrl is installed; it knows no masks),
whose shifted values and end flags are prepared outside the clock.
Run: `python benchmarks/kernel_gae.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from turns import environment, in_turns, save

from seedthink import _C
from seedthink.bench.cases.gae import POLICY_LAMBDA, time_loop, torchrl
from seedthink.kernels.gae import gae
from seedthink.telemetry.environment import versions

CASES = {
    "512 x 8192": [8192] * 512,
    "64 x 8192": [8192] * 64,
    "16 x 65536": [65536] * 16,
    "1 x 1048576": [1048576],
    "4096 x 1..512": torch.randint(1, 513, (4096,), generator=torch.Generator().manual_seed(0)).tolist(),
}


def against_peers(
    scan: Callable[[], object], reward_BT: Tensor, value_BT: Tensor, mask_BT: Tensor, wanted_T: Tensor, patience: int
) -> dict[str, Any]:
    """Milliseconds of the kernel and of each peer, five samples in turns, and their ratios."""
    counts_BT = mask_BT.float()
    peers: dict[str, Callable[[], tuple[Tensor | None, ...]]] = {
        "loop": lambda: time_loop(reward_BT, value_BT, counts_BT)
    }
    if find_spec("torchrl") and mask_BT.all():
        peers["torchrl"] = torchrl(reward_BT, value_BT)
    for peer in peers.values():
        torch.testing.assert_close(peer()[0], wanted_T, rtol=1e-3, atol=1e-3)
    times = in_turns({"kernel": scan, **peers}, 5, patience)
    found = {f"{name}_ms": times[f"{name}_ms"] for name in peers}
    found |= {f"{name}_ratio": times[f"{name}_ms"] / times["kernel_ms"] for name in peers}
    found |= {f"{name}_ratio_lowest": times[f"{name}_ms_least"] / times["kernel_ms_most"] for name in peers}
    return found | {"peers_cores_used_elsewhere": times["cores_used_elsewhere"]}


def measure(name: str, lengths: list[int], masked: bool, samples: int, patience: int) -> dict[str, Any]:
    """One row: the kernel, the copy and, for a rectangle of moderate length, the peers (apart: they are slow)."""
    total, count = sum(lengths), len(lengths)
    reward, value = torch.randn(total), torch.randn(total)
    advantage, returns = torch.empty(total), torch.empty(total)
    bounds = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    policy, critic = torch.full((count,), POLICY_LAMBDA), torch.ones(count)
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
        wanted = gae(reward, value, bounds, policy, policy, 1.0, mask)[0]
        row |= against_peers(scan, reward.view(shape), value.view(shape), mask.view(shape), wanted, patience)
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
    surroundings, rows = environment() | versions(("torchrl",)), []
    for name, lengths in CASES.items():
        for masked in (False, True):
            row = measure(name, lengths, masked, options.samples, options.patience)
            rows.append(row)
            peers = "".join(
                f", {peer} {row[f'{peer}_ms']:.1f} ms ({row[f'{peer}_ratio']:.0f}x, lowest "
                f"{row[f'{peer}_ratio_lowest']:.0f}x)"
                for peer in ("loop", "torchrl")
                if f"{peer}_ms" in row
            )
            print(
                f"{name:>14} {'masked' if masked else 'dense ':6} gae {row['gae_ms']:7.3f} ms "
                f"({row['gae_gb_per_s']:5.1f} GB/s), copy {row['copy_ms']:7.3f} ms, {row['of_copy']:4.0%} of copy "
                f"(least times {row['of_copy_least']:.0%}){peers}, elsewhere {row['cores_used_elsewhere']:.2f}",
                flush=True,
            )
    save("kernel_gae", rows, surroundings)


if __name__ == "__main__":
    main()
