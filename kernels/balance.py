"""Items shared out over parts of like cost: Karmarkar-Karp differencing, then exchanges between parts.

Differencing (Karmarkar and Karp 1982): of all partial solutions, sets of items that must stay apart, the two with the
largest spread are combined, the fullest set of one with the emptiest of the other, until one solution is left. Then
the heaviest part moves or swaps items with others while that lightens it, down to 0.01 % above the mean. int64 costs
are added exactly. Ties go by the smaller item: the result is a function of the arguments alone.
"""

from __future__ import annotations

import heapq

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels.registry import define


def reference_karmarkar_karp(cost_N: Tensor, parts: int, equal_size: bool = False) -> list[list[int]]:
    """The differencing alone, in Python: the items of each part, the heaviest part first.

    For equal sizes the items, sorted by cost, are cut into runs of `parts`; a run starts as one solution.
    """
    cost = cost_N.tolist()
    runs = [[item] for item in range(len(cost))]
    if equal_size:
        order = sorted(range(len(cost)), key=lambda item: (-cost[item], item))
        runs = [order[begin : begin + parts] for begin in range(0, len(cost), parts)]
    solutions = [_solution([(cost[item], [item]) for item in run], parts) for run in runs]
    heapq.heapify(solutions)
    while len(solutions) > 1:
        *_, one = heapq.heappop(solutions)
        *_, other = heapq.heappop(solutions)
        sets = [(a + b, sorted(left + right)) for (a, left), (b, right) in zip(one, reversed(other), strict=True)]
        heapq.heappush(solutions, _solution(sets, parts))
    return [items for _, items in solutions[0][-1]] if solutions else [[] for _ in range(parts)]


def _solution(sets: list[tuple[float, list[int]]], parts: int) -> tuple[float, int, list[tuple[float, list[int]]]]:
    """(minus the spread, smallest item, sets from the fullest to the emptiest)."""
    sets = [*sets, *((0, []) for _ in range(parts - len(sets)))]
    sets.sort(key=lambda each: (-each[0], not each[1], each[1]))
    return sets[-1][0] - sets[0][0], min(items[0] for _, items in sets if items), sets


def karmarkar_karp(cost_N: Tensor, parts: int, equal_size: bool = False) -> Tensor:
    """part_N int64 [N]: the part of each item, 0 the heaviest, such that the heaviest part is light.

    cost_N int64 (sums below 2^62) or float64 [N], finite, 0 or more; parts >= 1. equal_size: every part has N / parts
    items, or, where that is no whole number, one more or less than another. Equal loads are numbered by their smallest
    item, empty parts come last. ValueError names the argument that does not fit.
    """
    part_N: Tensor = _karmarkar_karp(cost_N, parts, equal_size)
    return part_N


def within_budget(cost_N: Tensor, size_N: Tensor, budget: int, multiple: int = 1) -> Tensor:
    """part_N int64 [N]: as few parts as are found to hold the sizes, of like cost, 0 the heaviest.

    cost_N as in `karmarkar_karp`; size_N int64 [N], each from 0 to `budget`, which bounds a part's total size. The
    number of parts is the smallest multiple of `multiple` (ranks that must all have as many) for which one of three
    methods keeps the budget: balancing the costs, balancing the sizes, best fit decreasing. It is part_N.max() + 1
    rounded up: parts of the last row may be empty. ValueError names the item that exceeds the budget alone.
    """
    part_N: Tensor = _within_budget(cost_N, size_N, budget, multiple)
    return part_N


def _karmarkar_karp_cpu(cost_N: Tensor, parts: int, equal_size: bool) -> Tensor:
    part_N = torch.empty(cost_N.shape, dtype=torch.int64)
    _C.karmarkar_karp(cost_N, parts, equal_size, part_N)
    return part_N


def _within_budget_cpu(cost_N: Tensor, size_N: Tensor, budget: int, multiple: int) -> Tensor:
    part_N = torch.empty(cost_N.shape, dtype=torch.int64)
    _C.within_budget(cost_N, size_N, budget, multiple, part_N)
    return part_N


_karmarkar_karp = define(
    "karmarkar_karp(Tensor cost, int parts, bool equal_size) -> Tensor",
    cpu=_karmarkar_karp_cpu,
    fake=lambda cost, parts, equal_size: cost.new_empty(cost.shape, dtype=torch.int64),
)
_within_budget = define(
    "within_budget(Tensor cost, Tensor size, int budget, int multiple) -> Tensor",
    cpu=_within_budget_cpu,
    fake=lambda cost, size, budget, multiple: cost.new_empty(cost.shape, dtype=torch.int64),
)
