"""RMSNorm: bound by memory, one read and one write of the rows (two of each with the residual sum)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from seedthink.bench.case import DTYPES, ITEM_SIZE, Case, Draw, Prepared, Work, against, row_dtypes
from seedthink.bench.peers import as_outputs, gradients_in_float64, in_float64, of_torch, of_torch_trained, trained
from seedthink.bench.presets import Shapes
from seedthink.kernels.norm import add_rms_norm, reference_rms_norm, rms_norm

EPS = 1e-6
TOLERANCE = {"float32": 1e-5, "bfloat16": 1e-2}
Size = tuple[int, int]


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """The norm of T rows of the residual stream."""
    for tokens in shapes.tokens:
        size = (tokens, shapes.width)
        place = {"T": tokens, "D": shapes.width}
        for dtype in row_dtypes(device):
            item = ITEM_SIZE[dtype]
            yield Case("rms_norm", place, dtype, work(*size, item, arrays=2), partial(prepare, size, dtype))
            yield Case("rms_norm_train", place, dtype, work(*size, item, arrays=5), partial(prepare_train, size, dtype))
            yield Case("add_rms_norm", place, dtype, work(*size, item, arrays=4), partial(prepare_sum, size, dtype))


def work(tokens: int, width: int, item: int, arrays: int) -> Work:
    """`arrays` passes over rows of `item` bytes a number: in and out; gradients also read x and dy and write dx."""
    return Work(bytes=float(item) * arrays * tokens * width + 4.0 * width, flops=2.0 * arrays * tokens * width)


def prepare(size: Size, dtype: str, draw: Draw) -> Prepared:
    """Forward."""
    x_TD, weight_D = draw.normal(*size, dtype=DTYPES[dtype]), draw.normal(size[1])
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, rms_norm, x_TD, weight_D, EPS)},
        peers={
            **of_torch(formula, x_TD, weight_D),
            "F.rms_norm": lambda: partial(as_outputs, torch_norm, x_TD, weight_D),
        },
        error=against(in_float64(formula, x_TD, weight_D)),
        tolerance=TOLERANCE[dtype],
    )


def prepare_train(size: Size, dtype: str, draw: Draw) -> Prepared:
    """Forward and backward."""
    leaves = draw.normal(*size, dtype=DTYPES[dtype]), draw.normal(size[1])
    grads = [draw.normal(*size, dtype=DTYPES[dtype])]
    return Prepared(
        ours={draw.device.type: lambda: trained(lambda x, weight: rms_norm(x, weight, EPS), leaves, grads)},
        peers=of_torch_trained(formula, leaves, grads),
        error=against(gradients_in_float64(formula, leaves, grads)),
        tolerance=10 * TOLERANCE[dtype],
    )


def prepare_sum(size: Size, dtype: str, draw: Draw) -> Prepared:
    """The residual stream's step."""
    x_TD, delta_TD = (draw.normal(*size, dtype=DTYPES[dtype]) for _ in range(2))
    inputs = x_TD, delta_TD, draw.normal(size[1])
    return Prepared(
        ours={draw.device.type: lambda: partial(add_rms_norm, *inputs, EPS)},
        peers=of_torch(sum_formula, *inputs),
        error=against(in_float64(sum_formula, *inputs)),
        tolerance=TOLERANCE[dtype],
    )


def formula(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    """RMSNorm in torch; rows in bfloat16 go through float32."""
    wide_TD = x_TD if x_TD.element_size() > 2 else x_TD.float()
    return reference_rms_norm(wide_TD, weight_D, EPS).to(x_TD.dtype)


def sum_formula(x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and norm in torch."""
    sum_TD = x_TD + delta_TD
    return sum_TD, formula(sum_TD, weight_D)


def torch_norm(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    """torch's own RMSNorm."""
    return F.rms_norm(x_TD, weight_D.shape, weight_D.to(x_TD.dtype), EPS)
