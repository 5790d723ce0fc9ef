"""Routing: scores of T x E logits, the K best, their weights, counts, offsets and the two maps between tokens and rows.

Bound by memory on paper: 4 bytes a logit in, 16 a row out (expert, weight, row of a token, token of a row). In fact the
selection and the exponentials bind. The peers are the same in torch, ids left in the order of their scores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from seedthink.bench.case import Case, Draw, Outputs, Prepared, Work
from seedthink.bench.peers import of_torch
from seedthink.bench.presets import Shapes
from seedthink.kernels.permute import permute
from seedthink.kernels.route import route

EXACT, ROUNDED = 1e-6, 1e-5  # a choice may differ from float64's where scores are this close; weights by rounding


@dataclass(frozen=True, slots=True)
class Router:
    """How a model routes."""

    k: int
    score: str
    groups: int
    topk_groups: int
    scale: float


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """The router's logits of T tokens, and their rows of the residual stream."""
    router = Router(shapes.experts_per_token, shapes.score, shapes.groups, shapes.topk_groups, shapes.scale)
    for tokens in shapes.tokens if shapes.experts else ():
        size = (tokens, shapes.experts)
        place = {"T": tokens, "E": shapes.experts, "K": router.k}
        if router.groups > 1:
            place |= {"groups": router.groups, "kept": router.topk_groups}
        moved = 4.0 * (tokens * shapes.width + tokens * router.k * shapes.width)  # rows in, rows out
        least = work(*size, router.k)
        yield Case("route", place, "float32", least, partial(prepare, size, router, shapes.bias, 0))
        yield Case(
            "route_permute",
            place | {"D": shapes.width},
            "float32",
            Work(least.bytes + moved, least.flops),
            partial(prepare, size, router, shapes.bias, shapes.width),
            memory=2 * moved,
        )


def work(tokens: int, experts: int, k: int) -> Work:
    """Logits in; an id, a weight and two map entries per row out, a count and an offset per expert; exp of a logit."""
    return Work(bytes=4.0 * tokens * experts + 16.0 * tokens * k + 8.0 * experts, flops=1.0 * tokens * experts)


def prepare(size: tuple[int, int], router: Router, biased: bool, width: int, draw: Draw) -> Prepared:
    """width: of the rows that are permuted as well, 0 for none."""
    logits_TE = draw.normal(*size)
    bias_E = draw.normal(size[1], std=0.01) if biased else None
    x_TD = draw.normal(size[0], width) if width else None
    return Prepared(
        ours={draw.device.type: lambda: own(logits_TE, bias_E, router, x_TD)},
        peers=of_torch(partial(in_torch, router=router), logits_TE, bias_E, x_TD),
        error=partial(error, logits_TE, bias_E, router, x_TD),
        tolerance=ROUNDED,
    )


def own(logits_TE: Tensor, bias_E: Tensor | None, router: Router, x_TD: Tensor | None) -> Callable[[], Outputs]:
    """Our operations, without a copy between them."""
    options: dict[str, Any] = {"score": router.score, "scale": router.scale, "bias_E": bias_E}
    options |= {"groups": router.groups, "topk_groups": router.topk_groups}

    def run() -> Outputs:
        routing = route(logits_TE, router.k, **options)
        maps = routing.counts_E, routing.offsets_E1, routing.row_TK, routing.token_R
        return routing.ids_TK, routing.weight_TK, *maps, None if x_TD is None else permute(x_TD, routing)

    return run


def in_torch(logits_TE: Tensor, bias_E: Tensor | None, x_TD: Tensor | None, *, router: Router) -> Outputs:
    """The same with torch's operations."""
    score_TE, choice_TE = scores(logits_TE, bias_E, router)
    ids_TK = choice_TE.topk(router.k, dim=-1).indices
    weight_TK = score_TE.gather(1, ids_TK)
    weight_TK = weight_TK / weight_TK.sum(-1, keepdim=True) * router.scale
    maps = maps_of(ids_TK, logits_TE.shape[1])
    return ids_TK, weight_TK, *maps, None if x_TD is None else x_TD.index_select(0, maps[3])


def scores(logits_TE: Tensor, bias_E: Tensor | None, router: Router) -> tuple[Tensor, Tensor]:
    """(scores, what the choice is made by: biased, and minus infinity in the groups that are not kept)."""
    score_TE = logits_TE.softmax(-1) if router.score == "softmax" else logits_TE.sigmoid()
    choice_TE = score_TE if bias_E is None else score_TE + bias_E
    if router.groups > 1:
        grouped = choice_TE.view(len(choice_TE), router.groups, -1)
        kept = grouped.topk(2, dim=-1).values.sum(-1).topk(router.topk_groups, dim=-1).indices
        dropped = torch.ones(grouped.shape[:2], dtype=torch.bool, device=kept.device).scatter_(1, kept, False)
        choice_TE = grouped.masked_fill(dropped[..., None], float("-inf")).flatten(1)
    return score_TE, choice_TE


def maps_of(ids_TK: Tensor, experts: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(counts_E, offsets_E1, row_TK, token_R) of the chosen experts: rows stand by expert, then by token."""
    flat_R = ids_TK.reshape(-1)
    slot_R = torch.sort(flat_R, stable=True).indices
    rows_R = torch.arange(len(flat_R), device=flat_R.device)
    row_TK = torch.empty_like(slot_R).scatter_(0, slot_R, rows_R).view(ids_TK.shape)
    counts_E = torch.bincount(flat_R, minlength=experts)
    return counts_E, torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)]), row_TK, slot_R // ids_TK.shape[1]


def error(logits_TE: Tensor, bias_E: Tensor | None, router: Router, x_TD: Tensor | None, outputs: Outputs) -> float:
    """The largest relative error of a weight; infinite for a choice that float64 would not make, or a wrong map."""
    ids_TK, weight_TK, counts_E, offsets_E1, row_TK, token_R, x_RD = (
        None if each is None else each.detach().cpu() for each in outputs
    )
    assert ids_TK is not None and weight_TK is not None and token_R is not None and row_TK is not None
    ids_TK, bias = ids_TK.long(), None if bias_E is None else bias_E.cpu().double()
    score_TE, choice_TE = scores(logits_TE.cpu().double(), bias, router)
    chosen_TK = choice_TE.gather(1, ids_TK)
    if (chosen_TK.sort(-1).values < choice_TE.topk(router.k).values.sort(-1).values - EXACT).any():
        return float("inf")
    if (ids_TK.sort(-1).values.diff(dim=-1) == 0).any():
        return float("inf")
    ordered, by_id = ids_TK.sort(-1)
    wanted = maps_of(ordered, logits_TE.shape[1])
    made = counts_E, offsets_E1, row_TK.gather(1, by_id), token_R
    if not all(each is not None and torch.equal(each.long(), want) for each, want in zip(made, wanted, strict=True)):
        return float("inf")
    if x_TD is not None and x_RD is not None and not torch.equal(x_RD, x_TD.cpu()[token_R.long()]):
        return float("inf")
    weight = score_TE.gather(1, ids_TK)
    weight = weight / weight.sum(-1, keepdim=True) * router.scale
    return ((weight_TK - weight).abs() / weight).max().item()
