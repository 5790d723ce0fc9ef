"""Rows in expert order, and each token's weighted sum of them: bound by memory, T rows on one side and T * K on the other.

"index_add" is the scatter form of the sum; the others gather K rows for each token.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any


from torch import Tensor

from seedthink.bench.case import Case, Draw, Outputs, Prepared, Work, against
from seedthink.bench.cases.route import maps_of
from seedthink.bench.peers import as_outputs, of_torch
from seedthink.bench.pending import built
from seedthink.bench.presets import Shapes

CHECKED = 256  # tokens whose sum is made in float64


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """Rows of the residual stream."""
    k = shapes.experts_per_token
    for tokens in shapes.tokens if shapes.experts else ():
        size = (tokens, shapes.width, shapes.experts, k)
        place = {"T": tokens, "D": shapes.width, "E": shapes.experts, "K": k}
        least = work(tokens, shapes.width, k)
        memory = 3 * least.bytes
        yield Case("permute", place, "float32", least, partial(prepare_permute, size), memory)
        summed = Work(least.bytes + 4.0 * tokens * k, 2.0 * tokens * k * shapes.width)
        yield Case("combine", place, "float32", summed, partial(prepare_combine, size), memory)


def work(tokens: int, width: int, k: int) -> Work:
    """T rows and T * K rows of float32, and a map entry per row; the combination reads a weight per row, too."""
    return Work(bytes=4.0 * (tokens * width + tokens * k * width + tokens * k))


def prepare_permute(size: tuple[int, int, int, int], draw: Draw) -> Prepared:
    """A copy: it must be exact."""
    tokens, width, experts, k = size
    x_TD, logits_TE = draw.normal(tokens, width), draw.normal(tokens, experts)
    token_R = maps_of(logits_TE.topk(k).indices.sort(-1).values, experts)[3]
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, built("permute", "permute"), x_TD, routed(logits_TE, k))},
        peers=of_torch(rows_of, x_TD, token_R),
        error=against(lambda: (x_TD[token_R],)),
        tolerance=0.0,
    )


def prepare_combine(size: tuple[int, int, int, int], draw: Draw) -> Prepared:
    """Weights as the router gives them."""
    tokens, width, experts, k = size
    logits_TE, y_RD = draw.normal(tokens, experts), draw.normal(tokens * k, width)
    ids_TK = logits_TE.topk(k).indices.sort(-1).values
    score_TK = logits_TE.softmax(-1).gather(1, ids_TK)
    weight_TK = score_TK / score_TK.sum(-1, keepdim=True)
    _, _, row_TK, token_R = maps_of(ids_TK, experts)
    weight_R1 = weight_TK.view(-1)[row_TK.view(-1).argsort()][:, None]
    return Prepared(
        ours={draw.device.type: lambda: partial(as_outputs, built("permute", "unpermute"), y_RD, routed(logits_TE, k))},
        peers={
            **of_torch(gather_sum, y_RD, row_TK, weight_TK),
            "index_add": lambda: partial(as_outputs, scatter_sum, y_RD, token_R, weight_R1, tokens),
        },
        error=against(partial(summed_rows, y_RD, row_TK, weight_TK), rows=CHECKED),
        tolerance=1e-5,
    )


def routed(logits_TE: Tensor, k: int) -> Any:
    """Our routing, made outside the clock."""
    return built("route", "route")(logits_TE, k)


def rows_of(x_TD: Tensor, token_R: Tensor) -> Tensor:
    """A row of x for each row in expert order."""
    return x_TD.index_select(0, token_R)


def summed_rows(y_RD: Tensor, row_TK: Tensor, weight_TK: Tensor) -> Outputs:
    """The first tokens' sums in float64."""
    first = y_RD[row_TK[:CHECKED]].double()
    return ((first * weight_TK[:CHECKED, :, None].double()).sum(1),)


def gather_sum(y_RD: Tensor, row_TK: Tensor, weight_TK: Tensor) -> Tensor:
    """K rows for each token."""
    return (y_RD[row_TK] * weight_TK[..., None]).sum(1)


def scatter_sum(y_RD: Tensor, token_R: Tensor, weight_R1: Tensor, tokens: int) -> Tensor:
    """Each row into its token."""
    return y_RD.new_zeros(tokens, y_RD.shape[1]).index_add_(0, token_R, y_RD * weight_R1)
