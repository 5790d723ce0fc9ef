"""Balancing of sequences over parts: time and imbalance, against the methods in use, in turns in one process.

Lengths are log-normal (median 6,000 tokens, 200 to 32,768); a sequence costs 24,576 l + l^2, a dense model's work at
width 4,096. Peers: "python" is k-way differencing on a heap of Python objects, as verl has it, written from its
description; "greedy" deals longest first to the emptiest part. Imbalance is the heaviest part over the mean, minus 1.
`within_budget` is compared with the greedy deal for the smallest number of parts that keeps a budget of tokens.
Run: `python benchmarks/kernel_balance.py`.
"""

from __future__ import annotations

import argparse
import heapq
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from turns import environment, in_turns, save

from seedthink.kernels.balance import karmarkar_karp, reference_karmarkar_karp, within_budget

COUNTS = [(512, 8), (512, 32), (512, 64), (1024, 64), (8192, 64)]
BUDGETS = [(256, 1), (256, 8), (2048, 8)]  # sequences, ranks
BUDGET = 65536


def lengths(count: int, seed: int) -> Tensor:
    """Tokens of each sequence."""
    draw = torch.randn(count, generator=torch.Generator().manual_seed(seed)) * 0.8
    return (6000 * draw.exp()).clamp(200, 32768).long()


def work(length_N: Tensor) -> Tensor:
    """The cost of a sequence."""
    return 24576 * length_N + length_N**2


def greedy(cost_N: Tensor, parts: int) -> list[list[int]]:
    """Longest first, each to the emptiest part."""
    members: list[list[int]] = [[] for _ in range(parts)]
    emptiest = [(0, p) for p in range(parts)]
    cost = cost_N.tolist()
    for item in sorted(range(len(cost)), key=lambda i: -cost[i]):
        load, p = emptiest[0]
        members[p].append(item)
        heapq.heapreplace(emptiest, (load + cost[item], p))
    return members


def imbalance(cost_N: Tensor, members: list[list[int]]) -> float:
    """Heaviest part over the mean, minus 1."""
    load_P = torch.stack([cost_N[part].sum() for part in members]).double()
    return (load_P.max() / load_P.mean()).item() - 1


def members_of(part_N: Tensor, parts: int) -> list[list[int]]:
    """Items of each part."""
    return [part_N.eq(p).nonzero().flatten().tolist() for p in range(parts)]


def measure(count: int, parts: int, equal_size: bool, samples: int, patience: int) -> dict[str, Any]:
    """One row: milliseconds and imbalance of ours and of the peers; worst and mean imbalance over ten draws."""
    cost_N = work(lengths(count, 0))
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: karmarkar_karp(cost_N, parts, equal_size),
        "python": lambda: reference_karmarkar_karp(cost_N, parts, equal_size),
    }
    if not equal_size:
        runs["greedy"] = lambda: greedy(cost_N, parts)
    row: dict[str, Any] = {"items": count, "parts": parts, "equal_size": equal_size}
    row |= in_turns(runs, samples, patience)
    found: dict[str, list[float]] = {name: [] for name in runs}
    for seed in range(10):
        drawn_N = work(lengths(count, seed))
        ours = members_of(karmarkar_karp(drawn_N, parts, equal_size), parts)
        if equal_size:
            assert {len(part) for part in ours} <= {count // parts, -(-count // parts)}
        found["ours"].append(imbalance(drawn_N, ours))
        found["python"].append(imbalance(drawn_N, reference_karmarkar_karp(drawn_N, parts, equal_size)))
        if not equal_size:
            found["greedy"].append(imbalance(drawn_N, greedy(drawn_N, parts)))
    row |= {f"{name}_imbalance_mean": sum(values) / len(values) for name, values in found.items()}
    return row | {f"{name}_imbalance_most": max(values) for name, values in found.items()}


def greedy_within(length_N: Tensor, ranks: int) -> list[list[int]]:
    """The greedy deal for the smallest multiple of `ranks` that keeps the budget."""
    parts = ranks
    while True:
        members = greedy(length_N, parts)
        if all(int(length_N[part].sum()) <= BUDGET for part in members):
            return members
        parts += ranks


def measure_budget(count: int, ranks: int, samples: int, patience: int) -> dict[str, Any]:
    """One row of `within_budget`, tokens being the cost: parts and imbalance, means over ten draws."""
    row: dict[str, Any] = {"items": count, "ranks": ranks, "budget": BUDGET}
    length_N = lengths(count, 0)
    runs: dict[str, Callable[[], object]] = {
        "ours": lambda: within_budget(length_N, length_N, BUDGET, ranks),
        "greedy": lambda: greedy_within(length_N, ranks),
    }
    row |= in_turns(runs, samples, patience)
    parts: dict[str, list[int]] = {"ours": [], "greedy": []}
    uneven: dict[str, list[float]] = {"ours": [], "greedy": []}
    for seed in range(10):
        drawn_N = lengths(count, seed)
        part_N = within_budget(drawn_N, drawn_N, BUDGET, ranks)
        number = -(-(int(part_N.max()) + 1) // ranks) * ranks
        for name, members in (("ours", members_of(part_N, number)), ("greedy", greedy_within(drawn_N, ranks))):
            assert all(int(drawn_N[part].sum()) <= BUDGET for part in members)
            parts[name].append(len(members))
            uneven[name].append(imbalance(drawn_N, members))
    row |= {f"{name}_parts_mean": sum(values) / len(values) for name, values in parts.items()}
    return row | {f"{name}_imbalance_mean": sum(values) / len(values) for name, values in uneven.items()}


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=7)
    parser.add_argument("--patience", type=int, default=3, help="times to repeat a case that others disturbed")
    options = parser.parse_args()
    surroundings, rows = environment(), []
    for count, parts in COUNTS:
        for equal_size in (False, True):
            row = measure(count, parts, equal_size, options.samples, options.patience)
            rows.append(row)
            peers = [name for name in ("python", "greedy") if f"{name}_ms" in row]
            print(
                f"{count:5} / {parts:2} {'equal' if equal_size else 'free ':5} ours {row['ours_ms']:7.3f} ms, "
                f"{row['ours_imbalance_mean']:.4%} (most {row['ours_imbalance_most']:.4%}); "
                + "; ".join(
                    f"{name} {row[f'{name}_ms']:.1f} ms, {row[f'{name}_imbalance_mean']:.4%} "
                    f"(most {row[f'{name}_imbalance_most']:.4%})"
                    for name in peers
                ),
                flush=True,
            )
    for count, ranks in BUDGETS:
        row = measure_budget(count, ranks, options.samples, options.patience)
        rows.append(row)
        print(
            f"{count:5} within {BUDGET}, {ranks} ranks: ours {row['ours_ms']:.3f} ms, {row['ours_parts_mean']} parts, "
            f"{row['ours_imbalance_mean']:.3%}; greedy {row['greedy_ms']:.3f} ms, {row['greedy_parts_mean']} parts, "
            f"{row['greedy_imbalance_mean']:.3%}",
            flush=True,
        )
    save("kernel_balance", rows, surroundings)


if __name__ == "__main__":
    main()
