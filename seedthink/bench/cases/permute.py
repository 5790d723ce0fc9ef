"""Rows in expert order, and each token's weighted sum of them: bound by memory, T rows on one side, T * K on the other.

"index_add" is the scatter form of the sum; the others gather K rows for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from torch import Tensor

from seedthink.bench.case import DTYPES, ITEM_SIZE, Case, Draw, Outputs, Prepared, Work, against
from seedthink.bench.cases.route import maps_of
from seedthink.bench.peers import as_outputs, of_torch
from seedthink.bench.presets import Shapes
from seedthink.kernels.permute import permute, unpermute
from seedthink.kernels.route import route

TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
CHECKED = 256  # tokens whose sum is made in float64
Size = tuple[int, int, int, int]  # tokens, width, experts, experts per token


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """Rows of the residual stream."""
    k = shapes.experts_per_token
    for tokens in shapes.tokens if shapes.experts else ():
        size = (tokens, shapes.width, shapes.experts, k)
        place = {"T": tokens, "D": shapes.width, "E": shapes.experts, "K": k}
        for dtype in DTYPES:
            least = work(tokens, shapes.width, k, ITEM_SIZE[dtype])
            yield Case("permute", place, dtype, least, partial(prepare_permute, size, dtype), 4 * least.bytes)
            summed = Work(least.bytes + 4.0 * tokens * k, 2.0 * tokens * k * shapes.width)
            yield Case("combine", place, dtype, summed, partial(prepare_combine, size, dtype), 6 * least.bytes)


def work(tokens: int, width: int, k: int, item: int) -> Work:
    """T rows and T * K rows of `item` bytes a number, and a map entry per row; the sum reads a weight per row, too."""
    return Work(bytes=float(item) * (1 + k) * tokens * width + 4.0 * tokens * k)


def prepare_permute(size: Size, dtype: str, draw: Draw) -> Prepared:
    """A copy: it must be exact."""
    tokens, width, experts, k = size
    x_TD, logits_TE = draw.normal(tokens, width, dtype=DTYPES[dtype]), draw.normal(tokens, experts)
    token_R = maps_of(logits_TE.topk(k).indices.sort(-1).values, experts)[3]
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, permute, x_TD, routed(logits_TE, k))},
        peers=of_torch(rows_of, x_TD, token_R),
        error=against(lambda: (x_TD[token_R],)),
        tolerance=0.0,
    )


def prepare_combine(size: Size, dtype: str, draw: Draw) -> Prepared:
    """Weights as the router gives them."""
    tokens, width, experts, k = size
    logits_TE, y_RD = draw.normal(tokens, experts), draw.normal(tokens * k, width, dtype=DTYPES[dtype])
    ids_TK = logits_TE.topk(k).indices.sort(-1).values
    score_TK = logits_TE.softmax(-1).gather(1, ids_TK)
    weight_TK = score_TK / score_TK.sum(-1, keepdim=True)
    _, _, row_TK, token_R = maps_of(ids_TK, experts)
    rounded_TK = weight_TK.to(y_RD.dtype)
    weight_R1 = rounded_TK.view(-1)[row_TK.view(-1).argsort()][:, None]
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, unpermute, y_RD, routed(logits_TE, k))},
        peers={
            **of_torch(gather_sum, y_RD, row_TK, rounded_TK),
            "index_add": lambda: partial(as_outputs, scatter_sum, y_RD, token_R, weight_R1, tokens),
        },
        error=against(partial(summed_rows, y_RD, row_TK, weight_TK), rows=CHECKED),
        tolerance=TOLERANCE[dtype],
    )


def routed(logits_TE: Tensor, k: int) -> Any:
    """Our routing, made outside the clock."""
    return route(logits_TE, k)


def gather_sum(y_RD: Tensor, row_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """K rows for each token."""
    return (y_RD[row_TK] * weight_TK[..., None]).sum(1)


def scatter_sum(y_RD: Tensor, token_R: Tensor, weight_R1: Tensor, tokens: int) -> Tensor:
    """Each row into its token."""
    return y_RD.new_zeros(tokens, y_RD.shape[1]).index_add_(0, token_R, y_RD * weight_R1)


def rows_of(x_TD: Tensor, token_R: Tensor) -> Tensor:
    """A row of x for each row in expert order."""
    return x_TD.index_select(0, token_R)


def summed_rows(y_RD: Tensor, row_TK: Tensor, weight_TK: Tensor) -> Outputs:
    """The first tokens' sums in float64."""
    first = y_RD[row_TK[:CHECKED]].double()
    return ((first * weight_TK[:CHECKED, :, None].double()).sum(1),)
