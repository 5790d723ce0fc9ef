"""Log-probability and entropy of the next token from hidden rows, without the [T, V] logits in memory.

Bound by the product, 2 T D V FLOPs (three of them and the logits again with gradients); rows, weights and targets are
read once. The peers hold the full logits. `peak` of a row says how much memory one call took.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from seedthink.bench.case import DTYPES, ITEM_SIZE, Case, Draw, Outputs, Prepared, Work, against
from seedthink.bench.peers import as_outputs, of_torch, of_torch_trained, trained
from seedthink.bench.presets import Shapes
from seedthink.kernels.logprob import linear_logprob, reference_linear_logprob

TEMPERATURE = 0.8
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CHECKED = 16  # rows whose logits are made in float64


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """The head of the model over T rows."""
    for tokens in shapes.scored_tokens if shapes.vocabulary else ():
        size = tokens, shapes.width, shapes.vocabulary
        place = {"T": tokens, "D": shapes.width, "V": shapes.vocabulary}
        memory = 4.0 * (3 * shapes.width * shapes.vocabulary + 3 * tokens * shapes.vocabulary)
        for dtype in DTYPES:
            yield Case("linear_logprob", place, dtype, work(*size, dtype, 1), partial(prepare, size, dtype), memory)
            train = partial(prepare_train, size, dtype)
            yield Case("linear_logprob_train", place, dtype, work(*size, dtype, 3), train, 2 * memory)


def work(tokens: int, width: int, vocabulary: int, dtype: str, products: int) -> Work:
    """Rows, weights and targets in, two numbers a row out; gradients read rows and weights again and write them."""
    moved = products * ITEM_SIZE[dtype] * (tokens * width + vocabulary * width) + 16 * tokens
    return Work(bytes=float(moved), flops=2.0 * products * tokens * width * vocabulary, rate=dtype)


def inputs(size: tuple[int, int, int], draw: Draw) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, weights that make logits of size one, targets."""
    tokens, width, vocabulary = size
    h_TD, weight_VD = draw.normal(tokens, width), draw.normal(vocabulary, width, std=width**-0.5)
    return h_TD, weight_VD, draw.integers(0, vocabulary, tokens)


def prepare(size: tuple[int, int, int], dtype: str, draw: Draw) -> Prepared:
    """Forward."""
    h_TD, weight_VD, targets_T = inputs(size, draw)
    compute = DTYPES[dtype]
    call = partial(as_outputs, linear_logprob, h_TD, weight_VD, targets_T, TEMPERATURE, compute)
    return Prepared(
        ours={draw.device.type: lambda: call},
        peers=of_torch(formula, h_TD.to(compute), weight_VD.to(compute), targets_T),
        error=against(partial(reference, h_TD, weight_VD, targets_T, compute), rows=CHECKED),
        tolerance=TOLERANCE[dtype],
    )


def prepare_train(size: tuple[int, int, int], dtype: str, draw: Draw) -> Prepared:
    """Forward and backward through both outputs; the first rows' gradients are checked."""
    h_TD, weight_VD, targets_T = inputs(size, draw)
    grads, compute = [draw.normal(size[0]), draw.normal(size[0], std=0.01)], DTYPES[dtype]

    def own(h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return linear_logprob(h, weight, targets_T, TEMPERATURE, compute)

    def peer(h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        return formula(h, weight, targets_T)

    return Prepared(
        ours={draw.device.type: lambda: trained(own, (h_TD, weight_VD), grads)},
        peers=of_torch_trained(peer, (h_TD.to(compute), weight_VD.to(compute)), grads),
        error=against(partial(reference_gradient, h_TD, weight_VD, targets_T, grads, compute), rows=CHECKED),
        tolerance=10 * TOLERANCE[dtype],
    )


def formula(h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    """Full logits in float32, log-softmax, gather, and the sum of -p log p."""
    log_p = torch.log_softmax((h_TD @ weight_VD.T).float() / TEMPERATURE, dim=-1)
    return log_p.gather(-1, targets_T[:, None]).squeeze(-1), -(log_p.exp() * log_p).sum(-1)


def reference(h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, compute: torch.dtype) -> Outputs:
    """The first rows in float64, operands rounded."""
    h, weight = (each.to(compute).cpu().double() for each in (h_TD[:CHECKED], weight_VD))
    return reference_linear_logprob(h, weight, targets_T[:CHECKED].cpu(), TEMPERATURE)


def reference_gradient(
    h_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, grads: list[Tensor], compute: torch.dtype
) -> Outputs:
    """The gradient of the first rows in float64; None for the weights, whose gradient needs every row."""
    h = h_TD[:CHECKED].to(compute).cpu().double().requires_grad_()
    weight = weight_VD.to(compute).cpu().double()
    with torch.enable_grad():
        made = reference_linear_logprob(h, weight, targets_T[:CHECKED].cpu(), TEMPERATURE)
        (gradient,) = torch.autograd.grad(made, [h], [grad[:CHECKED].cpu().double() for grad in grads])
    return gradient, None
