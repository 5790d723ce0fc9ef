"""Sequences into micro-batches of equal cost by Karmarkar-Karp differencing: bound by its heap, so no ceiling is given.

"python" is the algorithm with Python's heapq, which is what RL frameworks ship. The error is how much heavier the
heaviest micro-batch is than the one that "python" finds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from seedthink.bench.case import Case, Draw, Outputs, Prepared, Work
from seedthink.bench.peers import as_outputs
from seedthink.bench.presets import Shapes
from seedthink.kernels.balance import karmarkar_karp, reference_karmarkar_karp


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """Costs of sequences, in tokens; free sizes or equal ones."""
    for count, parts in shapes.balances if device == "cpu" else ():
        for equal in (0, 1):
            place = {"N": count, "parts": parts, "equal": equal}
            yield Case("karmarkar_karp", place, "int64", Work(0.0), partial(prepare, count, parts, bool(equal)))


def prepare(count: int, parts: int, equal: bool, draw: Draw) -> Prepared:
    """Lengths of a long-tailed distribution, as answers have them."""
    cost_N = (draw.normal(count).exp() * 1000).long() + 1
    return Prepared(
        ours={"cpu": lambda: partial(as_outputs, karmarkar_karp, cost_N, parts, equal)},
        peers={"python": lambda: partial(in_python, reference_karmarkar_karp, cost_N, parts, equal)},
        error=partial(error, cost_N, parts, equal),
        tolerance=0.0,
    )


def in_python(differencing: Callable[..., list[list[int]]], cost_N: Tensor, parts: int, equal: bool) -> Outputs:
    """The parts of the items."""
    part_N = torch.empty(len(cost_N), dtype=torch.int64)
    for part, items in enumerate(differencing(cost_N, parts, equal)):
        part_N[items] = part
    return (part_N,)


def error(cost_N: Tensor, parts: int, equal: bool, outputs: Outputs) -> float:
    """Excess of the heaviest part over that of "python", as a share; infinite where sizes are not what was asked."""
    part_N = outputs[0]
    assert part_N is not None
    sizes = part_N.bincount(minlength=parts)
    if len(sizes) != parts or (equal and sizes.max() - sizes.min() > 1):
        return float("inf")
    wanted_N = in_python(reference_karmarkar_karp, cost_N, parts, equal)[0]
    assert wanted_N is not None
    return max(0.0, heaviest(cost_N, part_N, parts) / heaviest(cost_N, wanted_N, parts) - 1.0)


def heaviest(cost_N: Tensor, part_N: Tensor, parts: int) -> int:
    """The largest cost of a part."""
    return int(torch.zeros(parts, dtype=torch.int64).index_add_(0, part_N, cost_N).max())
