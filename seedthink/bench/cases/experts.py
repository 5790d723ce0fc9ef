"""The routed SwiGLU experts: bound by reading weights while tokens are few, by matrix products beyond.

Least work as tokens go in and out: the weights of the experts that are expected to be hit, E (1 - (1 - K/E)^T), and T
rows on either side; 6 R D I FLOPs. Ours takes float32 rows and rounds them itself in bfloat16; the peers' operands are
rounded before the clock starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import linear as torch_linear
from torch.nn.functional import silu

from seedthink.bench.case import DTYPES, ITEM_SIZE, Case, Draw, Outputs, Prepared, Run, Work, against
from seedthink.bench.cases.route import maps_of
from seedthink.bench.peers import as_outputs, needs, trained
from seedthink.bench.presets import Shapes
from seedthink.kernels.experts import experts as run_experts
from seedthink.kernels.route import route

CHECKED = 8  # tokens: each takes K experts' weights to float64
TOLERANCE = {"float32": 1e-4, "bfloat16": 2e-2}


def cases(shapes: Shapes, device: str) -> Iterator[Case]:
    """The experts of one layer, tokens spread evenly."""
    sizes = shapes.width, shapes.expert_width, shapes.experts, shapes.experts_per_token
    for tokens in shapes.product_tokens(device) if shapes.experts else ():
        place = {"T": tokens, "D": sizes[0], "I": sizes[1], "E": sizes[2], "K": sizes[3]}
        for dtype in DTYPES:
            least, memory = work(tokens, *sizes, dtype), 3.0 * 4 * shapes.experts * shapes.width * shapes.expert_width
            yield Case("experts", place, dtype, least, partial(prepare, tokens, *sizes, dtype), 2.5 * memory)
            both = Work(3 * least.bytes, 3 * least.flops, dtype)
            yield Case("experts_train", place, dtype, both, partial(prepare_train, tokens, *sizes, dtype), 4.5 * memory)


def work(tokens: int, width: int, inner: int, experts: int, k: int, dtype: str) -> Work:
    """See above; rows in float32, weights in the dtype of the product."""
    hit, size = experts * (1 - (1 - k / experts) ** tokens), ITEM_SIZE[dtype]
    return Work(
        bytes=3.0 * size * hit * width * inner + 8.0 * tokens * width + 12.0 * tokens * k,
        flops=6.0 * tokens * k * width * inner,
        rate=dtype,
    )


class Inputs:
    """One layer's rows, routing and weights."""

    def __init__(self, tokens: int, width: int, inner: int, experts: int, k: int, dtype: str, draw: Draw) -> None:
        self.x_TD, self.logits_TE, self.k = draw.normal(tokens, width), draw.normal(tokens, experts), k
        self.gate_up = draw.normal(experts, 2 * inner, width, std=width**-0.5)
        self.down = draw.normal(experts, width, inner, std=inner**-0.5)
        self.compute = DTYPES[dtype]
        self.ids_TK = self.logits_TE.topk(k).indices.sort(-1).values
        score_TK = self.logits_TE.softmax(-1).gather(1, self.ids_TK)
        self.weight_TK = score_TK / score_TK.sum(-1, keepdim=True)
        counts_E, offsets_E1, row_TK, self.token_R = maps_of(self.ids_TK, experts)
        self.bounds, self.counts_E, self.row_TK = offsets_E1.tolist(), counts_E, row_TK
        self.weight_R = self.weight_TK.view(-1)[row_TK.view(-1).argsort()]

        # Rows and weights in the dtype of the product, for the peers.
        self.rounded = tuple(each.to(self.compute) for each in (self.x_TD, self.gate_up, self.down))


def prepare(tokens: int, width: int, inner: int, experts: int, k: int, dtype: str, draw: Draw) -> Prepared:
    """Forward."""
    inputs = Inputs(tokens, width, inner, experts, k, dtype, draw)
    return Prepared(
        ours={draw.device.type: lambda: own(inputs)},
        peers={
            "eager": lambda: partial(as_outputs, partial(loop, inputs), *inputs.rounded),
            "grouped_mm": lambda: partial(as_outputs, partial(grouped, inputs), *inputs.rounded),
            "transformers": lambda: transformers(inputs),
        },
        error=against(partial(reference, inputs), rows=CHECKED),
        tolerance=TOLERANCE[dtype],
    )


def prepare_train(tokens: int, width: int, inner: int, experts: int, k: int, dtype: str, draw: Draw) -> Prepared:
    """Forward and backward: the gradients of the rows, of which the first are checked, and of the weights."""
    inputs, grad_TD = Inputs(tokens, width, inner, experts, k, dtype, draw), draw.normal(tokens, width)

    def ours() -> Run:
        routing = route(inputs.logits_TE, k)

        def formula(x_TD: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
            return run_experts(x_TD, routing, gate_up, down, inputs.compute)

        return rows_alone(trained(formula, (inputs.x_TD, inputs.gate_up, inputs.down), [grad_TD]))

    def peer(formula: Callable[..., Tensor]) -> Run:
        return rows_alone(trained(partial(formula, inputs), inputs.rounded, [grad_TD.to(inputs.compute)]))

    peers = {"eager": partial(peer, loop)}
    if draw.device.type == "cuda":  # a CPU takes minutes for it
        peers["grouped_mm"] = partial(peer, grouped)
    return Prepared(
        ours={draw.device.type: ours},
        peers=peers,
        error=against(partial(reference_gradient, inputs, grad_TD), rows=CHECKED),
        tolerance=TOLERANCE[dtype],
    )


def own(inputs: Inputs) -> Run:
    """Our operation; packs the weights at its first call."""
    routing = route(inputs.logits_TE, inputs.k)
    return partial(as_outputs, run_experts, inputs.x_TD, routing, inputs.gate_up, inputs.down, inputs.compute)


def loop(inputs: Inputs, x_TD: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Expert by expert: gather, two products around SwiGLU, weighted scatter."""
    y_TD, weight_R1 = torch.zeros_like(x_TD), inputs.weight_R[:, None].to(x_TD.dtype)
    for e, (first, last) in enumerate(pairwise(inputs.bounds)):
        if last > first:
            tokens = inputs.token_R[first:last]
            gate, up = torch_linear(x_TD[tokens], gate_up[e]).chunk(2, dim=-1)
            y_TD = y_TD.index_add(0, tokens, torch_linear(silu(gate) * up, down[e]) * weight_R1[first:last])
    return y_TD


def grouped(inputs: Inputs, x_TD: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """torch's grouped product over rows in expert order, and a gather of each token's rows."""
    ends_E = inputs.counts_E.cumsum(0).int()
    gate, up = torch.nn.functional.grouped_mm(x_TD[inputs.token_R], gate_up.mT, offs=ends_E).chunk(2, dim=-1)
    out_RD = torch.nn.functional.grouped_mm(silu(gate) * up, down.mT, offs=ends_E)
    return (out_RD[inputs.row_TK] * inputs.weight_TK[..., None].to(out_RD.dtype)).sum(1)


def transformers(inputs: Inputs) -> Run:
    """The experts of transformers' Qwen3-MoE block, in its own implementation."""
    with needs("transformers"):
        from transformers import Qwen3MoeConfig
        from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts
    x_TD, gate_up, down = inputs.rounded
    config = Qwen3MoeConfig(
        hidden_size=down.shape[1],
        moe_intermediate_size=down.shape[2],
        num_experts=len(down),
        num_experts_per_tok=inputs.k,
    )
    config._experts_implementation = "eager"
    with torch.device("meta"):
        block = Qwen3MoeExperts(config)
    block.gate_up_proj, block.down_proj = (torch.nn.Parameter(each, requires_grad=False) for each in (gate_up, down))
    return partial(as_outputs, block, x_TD, inputs.ids_TK, inputs.weight_TK.to(x_TD.dtype))


def reference(inputs: Inputs) -> Outputs:
    """The first tokens' outputs in float64, operands rounded as the product rounds them."""
    with torch.no_grad():
        return (_first_outputs(inputs, inputs.x_TD[:CHECKED].double()),)


def reference_gradient(inputs: Inputs, grad_TD: Tensor) -> Outputs:
    """The gradient of the first tokens' rows in float64. Roundings hand gradients on as they are."""
    x = inputs.x_TD[:CHECKED].double().requires_grad_()
    with torch.enable_grad():
        made = _first_outputs(inputs, x)
        return torch.autograd.grad(made, [x], grad_TD[:CHECKED].double())


def _first_outputs(inputs: Inputs, x: Tensor) -> Tensor:
    rows = []
    for t in range(len(x)):
        row, y = x[t] + (x[t].detach().to(inputs.compute).double() - x[t].detach()), torch.zeros_like(x[t])
        for e, weight in zip(inputs.ids_TK[t].tolist(), inputs.weight_TK[t].double(), strict=True):
            gate, up = (inputs.gate_up[e].to(inputs.compute).double() @ row).chunk(2)
            y = y + weight * (inputs.down[e].to(inputs.compute).double() @ (silu(gate) * up))
        rows.append(y)
    return torch.stack(rows)


def rows_alone(run: Run) -> Run:
    """`run` with only the first of its outputs: the gradients of the weights are made and not checked."""
    return lambda: run()[:1]
