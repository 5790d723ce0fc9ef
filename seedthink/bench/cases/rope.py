"""Rotary position embedding of the query heads: bound by memory, one read and one write of the rows."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from seedthink.bench.case import DTYPES, ITEM_SIZE, Case, Draw, Prepared, Work, against, row_dtypes
from seedthink.bench.peers import as_outputs, in_float64, of_torch
from seedthink.bench.presets import Shapes
from seedthink.kernels.rope import reference_rope, rope, rope_table

POSITIONS, THETA = 4096, 1e6
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """The query heads of T tokens."""
    for tokens in shapes.tokens if shapes.heads else ():
        size = (tokens, shapes.heads, shapes.head_dim)
        place = {"T": tokens, "N": shapes.heads, "H": shapes.head_dim}
        for dtype in row_dtypes(device):
            yield Case("rope", place, dtype, work(*size, ITEM_SIZE[dtype]), partial(prepare, size, dtype))


def work(tokens: int, heads: int, head_dim: int, item: int) -> Work:
    """Heads in and out, a position and a row of the float32 table per token; three operations per element."""
    turned = tokens * heads * head_dim
    return Work(bytes=2.0 * item * turned + 4.0 * tokens * (head_dim + 1), flops=3.0 * turned)


def prepare(size: tuple[int, int, int], dtype: str, draw: Draw) -> Prepared:
    """Positions at random, as in a batch of many sequences."""
    x_TNH, table = draw.normal(*size, dtype=DTYPES[dtype]), rope_table(POSITIONS, size[2], THETA).to(draw.device)
    inputs = x_TNH, table, draw.integers(0, POSITIONS, size[0]).int()
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, rope, *inputs)},
        peers=of_torch(reference_rope, *inputs),
        error=against(in_float64(reference_rope, *inputs)),
        tolerance=TOLERANCE[dtype],
    )
