"""SwiGLU of a dense layer's gate and up rows: bound by memory, 2I in and I out per row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor
from torch.nn.functional import silu

from seedthink.bench.case import DTYPES, ITEM_SIZE, Case, Draw, Prepared, Work, against, row_dtypes
from seedthink.bench.peers import as_outputs, gradients_in_float64, in_float64, of_torch, of_torch_trained, trained
from seedthink.bench.presets import Shapes
from seedthink.kernels.activation import reference_swiglu, swiglu

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """T rows as wide as the hidden layers of one token's experts together."""
    width = shapes.expert_width * shapes.experts_per_token
    for tokens in shapes.tokens if width else ():
        place = {"T": tokens, "I": width}
        for dtype in row_dtypes(device):
            item, size = ITEM_SIZE[dtype], (tokens, width)
            yield Case("swiglu", place, dtype, work(*size, item, 3), partial(prepare, size, dtype))
            yield Case("swiglu_train", place, dtype, work(*size, item, 8), partial(prepare_train, size, dtype))


def work(tokens: int, width: int, item: int, arrays: int) -> Work:
    """`arrays` passes over [T, I] of `item` bytes a number: gate, up, y; gradients add gate, up, dy and two of them."""
    return Work(bytes=float(item) * arrays * tokens * width, flops=4.0 * tokens * width)


def prepare(size: tuple[int, int], dtype: str, draw: Draw) -> Prepared:
    """Forward."""
    gate_up_T_2I = draw.normal(size[0], 2 * size[1], dtype=DTYPES[dtype])
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, swiglu, gate_up_T_2I)},
        peers=of_torch(formula, gate_up_T_2I),
        error=against(in_float64(reference_swiglu, gate_up_T_2I)),
        tolerance=TOLERANCE[dtype],
    )


def prepare_train(size: tuple[int, int], dtype: str, draw: Draw) -> Prepared:
    """Forward and backward."""
    leaves = [draw.normal(size[0], 2 * size[1], dtype=DTYPES[dtype])]
    grads = [draw.normal(*size, dtype=DTYPES[dtype])]
    return Prepared(
        ours={draw.device.type: lambda: trained(swiglu, leaves, grads)},
        peers=of_torch_trained(formula, leaves, grads),
        error=against(gradients_in_float64(reference_swiglu, leaves, grads)),
        tolerance=TOLERANCE[dtype],
    )


def formula(gate_up_T_2I: Tensor) -> Tensor:
    """SwiGLU with torch's own silu."""
    gate, up = gate_up_T_2I.chunk(2, dim=-1)
    return silu(gate) * up
