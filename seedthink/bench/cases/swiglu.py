"""SwiGLU of a dense layer's gate and up rows: bound by memory, 2I in and I out per row."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from torch import Tensor
from torch.nn.functional import silu

from seedthink.bench.case import Case, Draw, Prepared, Work, against
from seedthink.bench.peers import as_outputs, gradients_in_float64, in_float64, of_torch, of_torch_trained, trained
from seedthink.bench.presets import Shapes
from seedthink.kernels.activation import reference_swiglu, swiglu


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """T rows as wide as the hidden layers of one token's experts together."""
    width = shapes.expert_width * shapes.experts_per_token
    for tokens in shapes.tokens if width else ():
        place = {"T": tokens, "I": width}
        yield Case("swiglu", place, "float32", work(tokens, width, 3), partial(prepare, tokens, width))
        yield Case("swiglu_train", place, "float32", work(tokens, width, 8), partial(prepare_train, tokens, width))


def work(tokens: int, width: int, arrays: int) -> Work:
    """`arrays` passes over [T, I] float32: gate, up, y; the gradient adds gate, up, dy and two gradients."""
    return Work(bytes=4.0 * arrays * tokens * width, flops=4.0 * tokens * width)


def prepare(tokens: int, width: int, draw: Draw) -> Prepared:
    """Forward."""
    gate_up_T_2I = draw.normal(tokens, 2 * width)
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, swiglu, gate_up_T_2I)},
        peers=of_torch(formula, gate_up_T_2I),
        error=against(in_float64(reference_swiglu, gate_up_T_2I)),
        tolerance=1e-5,
    )


def prepare_train(tokens: int, width: int, draw: Draw) -> Prepared:
    """Forward and backward."""
    leaves, grads = [draw.normal(tokens, 2 * width)], [draw.normal(tokens, width)]
    return Prepared(
        ours={draw.device.type: lambda: trained(swiglu, leaves, grads)},
        peers=of_torch_trained(formula, leaves, grads),
        error=against(gradients_in_float64(reference_swiglu, leaves, grads)),
        tolerance=1e-5,
    )


def formula(gate_up_T_2I: Tensor) -> Tensor:
    """SwiGLU with torch's own silu."""
    gate, up = gate_up_T_2I.chunk(2, dim=-1)
    return silu(gate) * up
