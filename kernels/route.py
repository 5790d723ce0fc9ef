"""Routing of a mixture of experts: from the router's logits to each token's experts, weights and rows in one call.

Scores are softmax(logits) or sigmoid(logits). A token's k experts are those of the largest score + bias, ties to the
smaller id, where the bias (aux-loss-free balancing, arXiv:2408.15664) moves the choice and never a weight; with groups
they come from the groups whose two best have the largest sum (DeepSeek-V3, arXiv:2412.19437, section 2.1.2). Its weight
is the score, divided by the sum of the chosen ones where `norm_topk` asks for it, times `scale`. Rows of an expert
stand in token order. The losses that keep a router even and its logits small are here too.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from seedthink import _C
from seedthink.kernels import cuda
from seedthink.kernels.decided import decided
from seedthink.kernels.registry import define

Score = Literal["softmax", "sigmoid"]
_SCORES = ("softmax", "sigmoid")
_TINY = 1e-20  # keeps scores that are all zero from dividing zero by zero


class Routing(NamedTuple):
    """Where each token goes. R = T * K rows stand expert by expert, in token order within an expert."""

    ids_TK: Tensor  # int32, ascending within a token
    weight_TK: Tensor  # float32, differentiable with respect to the logits
    counts_E: Tensor  # int32, rows of each expert
    offsets_E1: Tensor  # int32, first row of each expert; the last entry is R
    row_TK: Tensor  # int32, the row of (t, k)
    token_R: Tensor  # int32, the token of a row


def reference_route(
    logits_TE: Tensor,
    k: int,
    *,
    score: Score = "softmax",
    norm_topk: bool = True,
    scale: float = 1.0,
    bias_E: Tensor | None = None,
    groups: int = 1,
    topk_groups: int = 1,
) -> Routing:
    """The contract of `route` in torch, in the dtype of the logits."""
    experts = logits_TE.shape[1]
    score_TE = logits_TE.softmax(dim=-1) if score == "softmax" else logits_TE.sigmoid()
    key_TE = logits_TE.detach()
    if bias_E is not None or groups > 1:
        key_TE = score_TE.detach() + (0 if bias_E is None else bias_E.detach().to(score_TE.dtype))
    if groups > 1:
        key_TGS = key_TE.unflatten(1, (groups, -1))
        group_TG = key_TGS.topk(min(2, experts // groups), dim=-1).values.sum(-1)
        dropped_TG = torch.ones_like(group_TG, dtype=torch.bool).scatter_(1, _largest(group_TG, topk_groups), False)
        key_TE = key_TGS.masked_fill(dropped_TG[:, :, None], -torch.inf).flatten(1)
    ids_TK = _largest(key_TE, k).sort(dim=-1).values
    weight_TK = score_TE.gather(1, ids_TK)
    if norm_topk:
        weight_TK = weight_TK / (weight_TK.sum(dim=-1, keepdim=True) + _TINY)
    flat_R = ids_TK.reshape(-1)
    slot_R = torch.sort(flat_R, stable=True).indices
    row_TK = torch.empty_like(slot_R).scatter_(0, slot_R, torch.arange(slot_R.numel())).reshape(ids_TK.shape)
    counts_E = torch.bincount(flat_R, minlength=experts)
    offsets_E1 = torch.cat([counts_E.new_zeros(1), counts_E.cumsum(0)])
    places = (counts_E.int(), offsets_E1.int(), row_TK.int(), (slot_R // k).int())
    return Routing(ids_TK.int(), weight_TK * scale, *places)


def _largest(value_TN: Tensor, k: int) -> Tensor:
    return torch.sort(value_TN, dim=-1, descending=True, stable=True).indices[:, :k]


def route(
    logits_TE: Tensor,
    k: int,
    *,
    score: Score = "softmax",
    norm_topk: bool = True,
    scale: float = 1.0,
    bias_E: Tensor | None = None,
    groups: int = 1,
    topk_groups: int = 1,
) -> Routing:
    """Choose k of E experts for each token. logits_TE: float32 [T, E]; the weights are differentiable in them.

    norm_topk: divide the k chosen scores by their sum. scale: factor of all weights, above 0. bias_E: float32 [E],
    finite, added to the scores for the choice alone; it gets no gradient. groups: cuts the experts into so many equal
    runs of ids, of which the best topk_groups are kept. Without bias and groups logits are compared: scores grow with
    them, and logits never tie by rounding.
    Raises ValueError for NaN or +inf logits or a row with nothing finite (naming the row), for k outside 1..E or above
    the experts that the groups leave, and for another value, dtype or shape that does not fit, naming the argument.
    """
    weight_TK, ids_TK, *places = _route(logits_TE, k, score, norm_topk, scale, bias_E, groups, topk_groups)
    return Routing(ids_TK, weight_TK, *places)


def expert_fraction(counts_E: Tensor) -> Tensor:
    """Tokens per expert (int) -> float32 shares that sum to 1; all zero where nothing was routed."""
    return counts_E.float() / counts_E.sum().clamp(min=1)


def balance_loss(
    logits_TE: Tensor, fraction_E: Tensor, tokens: float, mask_T: Tensor | None = None, *, score: Score = "softmax"
) -> Tensor:
    """The load-balancing loss of one layer, a scalar with gradient to the logits (arXiv:2101.03961, equations 4 to 6).

        loss = E * sum_e f_e * P_e,   P_e = sum_t mask_t * probability_te / tokens

    f_e is the fraction of assignments that went to expert e, a constant to the gradient; a perfectly even router scores
    1, and transformers' `load_balancing_loss_func` is k times this. With f and `tokens` taken over the whole mini-batch
    the loss is linear in the tokens, so cutting the mini-batch into micro-batches changes neither its sum nor its
    gradient (Megatron and transformers take both per micro-batch).

    fraction_E: float32, sums to 1. mask_T: how often each token counts, 0 not at all. tokens: its sum over the
    mini-batch.
    score: probabilities are a softmax, or sigmoids divided by their sum.
    """
    probability_TE = _probabilities(logits_TE, score)
    if mask_T is not None:
        probability_TE = probability_TE * mask_T[:, None]
    return (probability_TE.sum(0) * fraction_E).sum() * (logits_TE.shape[1] / tokens)


def sequence_balance_loss(
    logits_TE: Tensor, ids_TK: Tensor, cu_seqlens_B1: Tensor, sequences: float, *, score: Score = "sigmoid"
) -> Tensor:
    """The balance loss within each sequence, summed over sequences and divided by `sequences` (DeepSeek-V3, 17 to 20).

    f and P are those of one sequence; sequences is the number of sequences in the mini-batch, so that cutting it
    between sequences changes nothing. Sequence b is rows cu_seqlens_B1[b]..cu_seqlens_B1[b + 1]; empty ones add none.
    """
    experts, k = logits_TE.shape[1], ids_TK.shape[1]
    lengths_B = cu_seqlens_B1.diff()
    sequence_T = torch.repeat_interleave(torch.arange(lengths_B.numel()), lengths_B, output_size=logits_TE.shape[0])
    slots = (sequence_T[:, None] * experts + ids_TK).reshape(-1)
    length_B1 = lengths_B[:, None].clamp(min=1)
    fraction_BE = torch.bincount(slots, minlength=lengths_B.numel() * experts).view(-1, experts) / (k * length_B1)
    probability_BE = logits_TE.new_zeros(lengths_B.numel(), experts)
    probability_BE = probability_BE.index_add(0, sequence_T, _probabilities(logits_TE, score)) / length_B1
    return (fraction_BE.to(logits_TE.dtype) * probability_BE).sum() * (experts / sequences)


def z_loss(logits_TE: Tensor, tokens: float, mask_T: Tensor | None = None) -> Tensor:
    """sum_t mask_t * logsumexp(logits_t)^2 / tokens, which keeps logits small (ST-MoE, arXiv:2202.08906, equation 5).

    A scalar with gradient to the logits; mask_T and tokens: as in `balance_loss`.
    """
    square_T = logits_TE.logsumexp(-1).square()
    return (square_T if mask_T is None else square_T * mask_T).sum() / tokens


def _probabilities(logits_TE: Tensor, score: Score) -> Tensor:
    _check_score(score)
    if score == "softmax":
        return logits_TE.softmax(-1)
    score_TE = logits_TE.sigmoid()
    return score_TE / (score_TE.sum(-1, keepdim=True) + _TINY)


def _check_score(score: str) -> None:
    if score not in _SCORES:
        raise ValueError(f"score: {score!r} is not one of {', '.join(_SCORES)}")


def _route_forward(
    logits_TE: Tensor,
    k: int,
    score: str,
    norm_topk: bool,
    scale: float,
    bias_E: Tensor | None,
    groups: int,
    topk_groups: int,
) -> tuple[Tensor, ...]:
    _check_score(score)
    if logits_TE.dim() != 2:
        raise ValueError(f"logits: expected 2 dimensions, got {logits_TE.dim()}")
    if not 1 <= k <= logits_TE.shape[1]:
        raise ValueError(f"k: {k} is not between 1 and the number of experts, {logits_TE.shape[1]}")
    tokens, count = logits_TE.shape
    ids_TK = torch.empty((tokens, k), dtype=torch.int32)
    weight_TK = torch.empty((tokens, k), dtype=torch.float32)
    counts_E, offsets_E1 = torch.empty(count, dtype=torch.int32), torch.empty(count + 1, dtype=torch.int32)
    row_TK, token_R = torch.empty_like(ids_TK), torch.empty(tokens * k, dtype=torch.int32)
    rule = (bias_E, score == "sigmoid", norm_topk, scale, groups, topk_groups)
    _C.route_forward(logits_TE, *rule, ids_TK, weight_TK, counts_E, offsets_E1, row_TK, token_R)
    return weight_TK, ids_TK, counts_E, offsets_E1, row_TK, token_R


def _route_shapes(logits: Tensor, k: int, *rule: object) -> tuple[Tensor, ...]:
    tokens, count = logits.shape
    ids = logits.new_empty((tokens, k), dtype=torch.int32)
    flat = logits.new_empty(tokens * k, dtype=torch.int32)
    sizes = [logits.new_empty(n, dtype=torch.int32) for n in (count, count + 1)]
    return logits.new_empty((tokens, k)), ids, *sizes, torch.empty_like(ids), flat


def _save_route(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    logits_TE, _, *ctx.rule = inputs[:5]
    weight_TK, ids_TK, *rest = output
    ctx.mark_non_differentiable(ids_TK, *rest)
    ctx.save_for_backward(logits_TE, ids_TK, weight_TK)


def _route_backward(ctx: Any, dweight_TK: Tensor, *rest: Tensor) -> tuple[Tensor | None, ...]:
    return _route_grad(dweight_TK.contiguous(), *ctx.saved_tensors, *ctx.rule), *(None,) * 7


def _route_grad_cpu(
    dweight: Tensor, logits: Tensor, ids: Tensor, weight: Tensor, score: str, norm_topk: bool, scale: float
) -> Tensor:
    dlogits = torch.empty_like(logits)
    _C.route_backward(dweight, logits, ids, weight, score == "sigmoid", norm_topk, scale, dlogits)
    return dlogits


_route = define(
    "route(Tensor logits, int k, str score, bool norm_topk, float scale, Tensor? bias, int groups, int topk_groups) -> "
    "(Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    cpu=decided(_route_forward),
    cuda=decided(cuda.route),
    fake=_route_shapes,
    backward=_route_backward,
    setup_context=_save_route,
)
_route_grad = define(
    "route_backward(Tensor grad, Tensor logits, Tensor ids, Tensor weight, str score, bool norm_topk, float scale) -> "
    "Tensor",
    cpu=_route_grad_cpu,
    cuda=cuda.route_backward,
    fake=lambda grad, logits, *rest: torch.empty_like(logits),
)
