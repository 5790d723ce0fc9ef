"""The row-exact product y = x W^T against torch's: bound by reading W while rows are few, by FLOPs beyond.

Ours takes and returns float32 and rounds the operands itself in bfloat16; torch's bfloat16 operands and result are
bfloat16. Weights are packed before the clock starts, as in decoding and between two steps of an optimizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear

from seedthink.bench.case import DTYPES, ITEM_SIZE, Case, Draw, Outputs, Prepared, Work, against
from seedthink.bench.peers import as_outputs, of_torch, trained
from seedthink.bench.presets import Shapes
from seedthink.kernels.linear import linear, reference_linear

TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
CHECKED = 64  # rows made in float64
TRAINED_FROM = 64  # rows: fewer are never trained on


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """M rows through the weights of the preset."""
    for inputs, outputs in shapes.linears:
        for dtype in DTYPES:
            for rows in shapes.rows:
                size, place = (rows, inputs, outputs), {"M": rows, "K": inputs, "N": outputs}
                yield Case("linear", place, dtype, work(*size, dtype), partial(prepare, size, dtype))
                if rows >= TRAINED_FROM:
                    both = work(*size, dtype, passes=3)
                    yield Case("linear_train", place, dtype, both, partial(prepare_train, size, dtype))


def work(rows: int, inputs: int, outputs: int, dtype: str, passes: int = 1) -> Work:
    """Each product reads two of x [M, K], W [N, K] and y [M, N] and writes the third; three products with gradients."""
    moved = ITEM_SIZE[dtype] * (rows * inputs + inputs * outputs + rows * outputs)
    return Work(bytes=float(passes * moved), flops=2.0 * passes * rows * inputs * outputs, rate=dtype)


def prepare(size: tuple[int, int, int], dtype: str, draw: Draw) -> Prepared:
    """Forward."""
    rows, inputs, outputs = size
    x_MK, weight_NK = draw.normal(rows, inputs), draw.normal(outputs, inputs, std=inputs**-0.5)
    compute = DTYPES[dtype]
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, linear, x_MK, weight_NK, compute)},
        peers=of_torch(product, x_MK.to(compute), weight_NK.to(compute)),
        error=against(partial(reference, x_MK, weight_NK, compute), rows=CHECKED),
        tolerance=TOLERANCE[dtype],
    )


def prepare_train(size: tuple[int, int, int], dtype: str, draw: Draw) -> Prepared:
    """Forward and both gradients."""
    rows, inputs, outputs = size
    leaves = draw.normal(rows, inputs), draw.normal(outputs, inputs, std=inputs**-0.5)
    grad_MN, compute = draw.normal(rows, outputs), DTYPES[dtype]

    def formula(x: Tensor, weight: Tensor) -> Tensor:
        return linear(x, weight, compute)

    rounded = [leaf.to(compute) for leaf in leaves]
    return Prepared(
        ours={draw.device.type: lambda: trained(formula, leaves, [grad_MN])},
        peers={"eager": lambda: trained(torch_linear, rounded, [grad_MN.to(compute)])},
        error=against(partial(reference_gradients, leaves, grad_MN, compute), rows=CHECKED),
        tolerance=10 * TOLERANCE[dtype],
    )


def product(x_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """torch's product."""
    return torch_linear(x_MK, weight_NK)


def reference(x_MK: Tensor, weight_NK: Tensor, compute: torch.dtype) -> Outputs:
    """The first rows in float64, operands rounded."""
    return (reference_linear(x_MK[:CHECKED].cpu().double(), weight_NK.cpu().double(), compute),)


def reference_gradients(leaves: tuple[Tensor, Tensor], grad_MN: Tensor, compute: torch.dtype) -> Outputs:
    """The first rows of both gradients in float64; in bfloat16 every operand is rounded."""
    x, weight, grad = (each.to(compute).cpu().double() for each in (*leaves, grad_MN))
    return grad[:CHECKED] @ weight, grad[:, :CHECKED].T @ x
