"""RMSNorm: bound by memory, one read and one write of the rows (two of each with the residual sum)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor
from torch.nn import functional as F

from seedthink.bench.case import Case, Draw, Prepared, Work, against
from seedthink.bench.peers import as_outputs, gradients_in_float64, in_float64, of_torch, of_torch_trained, trained
from seedthink.bench.presets import Shapes
from seedthink.kernels.norm import add_rms_norm, reference_rms_norm, rms_norm

EPS = 1e-6


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """The norm of T rows of the residual stream."""
    for tokens in shapes.tokens:
        size = (tokens, shapes.width)
        place = {"T": tokens, "D": shapes.width}
        yield Case("rms_norm", place, "float32", work(*size, arrays=2), partial(prepare, size))
        yield Case("rms_norm_train", place, "float32", work(*size, arrays=5), partial(prepare_train, size))
        yield Case("add_rms_norm", place, "float32", work(*size, arrays=4), partial(prepare_sum, size))


def work(tokens: int, width: int, arrays: int) -> Work:
    """`arrays` passes over float32 rows: in and out; with gradients also x and dy in and dx out; or two in, two out."""
    return Work(bytes=4.0 * (arrays * tokens * width + width), flops=2.0 * arrays * tokens * width)


def prepare(size: tuple[int, int], draw: Draw) -> Prepared:
    """Forward."""
    x_TD, weight_D = draw.normal(*size), draw.normal(size[1])
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, rms_norm, x_TD, weight_D, EPS)},
        peers={
            **of_torch(formula, x_TD, weight_D),
            "F.rms_norm": lambda: partial(as_outputs, torch_norm, x_TD, weight_D),
        },
        error=against(in_float64(formula, x_TD, weight_D)),
        tolerance=1e-5,
    )


def prepare_train(size: tuple[int, int], draw: Draw) -> Prepared:
    """Forward and backward."""
    leaves, grads = (draw.normal(*size), draw.normal(size[1])), [draw.normal(*size)]
    return Prepared(
        ours={draw.device.type: lambda: trained(lambda x, weight: rms_norm(x, weight, EPS), leaves, grads)},
        peers=of_torch_trained(formula, leaves, grads),
        error=against(gradients_in_float64(formula, leaves, grads)),
        tolerance=1e-4,
    )


def prepare_sum(size: tuple[int, int], draw: Draw) -> Prepared:
    """The residual stream's step."""
    inputs = draw.normal(*size), draw.normal(*size), draw.normal(size[1])
    return Prepared(
        ours={draw.device.type: lambda: partial(add_rms_norm, *inputs, EPS)},
        peers=of_torch(sum_formula, *inputs),
        error=against(in_float64(sum_formula, *inputs)),
        tolerance=1e-5,
    )


def formula(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    """RMSNorm in torch."""
    return reference_rms_norm(x_TD, weight_D, EPS)


def sum_formula(x_TD: Tensor, delta_TD: Tensor, weight_D: Tensor) -> tuple[Tensor, Tensor]:
    """Sum and norm in torch."""
    sum_TD = x_TD + delta_TD
    return sum_TD, formula(sum_TD, weight_D)


def torch_norm(x_TD: Tensor, weight_D: Tensor) -> Tensor:
    """torch's own RMSNorm."""
    return F.rms_norm(x_TD, weight_D.shape, weight_D, EPS)
