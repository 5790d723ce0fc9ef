"""The parts of a decoder block. Parameters are float32; `compute` is the dtype of the matrix products' operands.

Attention: q and k are normalised per head (RMSNorm over the head width) where the family does so, then turned by the
half-split rotary embedding; several query heads share a key-value head. MLP: down(silu(gate(x)) * up(x)). The sparse
MLP sends a token to its k likeliest experts and sums them by router weight. Router products
are always float32: they are small, and top-k must not flip.
Projections that read the same rows are one weight: q, k and v; gate and up. Where ranks share a model, `shards` says
which part of a weight is here and makes the moves between ranks; on one rank it does nothing.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seedthink.kernels.activation import swiglu
from seedthink.kernels.block import PagedBatch, attention_step, dense_step, sparse_step
from seedthink.kernels.heads import split_heads
from seedthink.kernels.linear import linear
from seedthink.kernels.norm import add_rms_norm, rms_norm
from seedthink.models.config import ModelConfig
from seedthink.models.context import Context
from seedthink.models.latent import LatentAttention
from seedthink.models.parameter import empty
from seedthink.parallel.shards import WHOLE, Shards


class Attention(nn.Module):
    """Grouped-query attention. Rows of `qkv_weight`: N query, n key, n value heads; bias and norms as config says."""

    qkv_bias_X: nn.Parameter | None
    q_norm_H: nn.Parameter | None
    k_norm_H: nn.Parameter | None

    def __init__(self, config: ModelConfig, layer: int, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        self.shards, width = shards, config.head_dim
        heads, kv_heads = shards.heads(config.num_heads, config.num_kv_heads)
        self.layer, self.compute, self.eps, self.counts = layer, compute, config.rms_norm_eps, (heads, kv_heads)
        self.qkv_weight = empty((heads + 2 * kv_heads) * width, config.hidden_size)
        self.qkv_bias_X = empty((heads + 2 * kv_heads) * width) if config.qkv_bias else None
        self.q_norm_H, self.k_norm_H = (empty(width) if config.qk_norm else None for _ in range(2))
        self.out_weight = empty(shards.part(config.hidden_size, "hidden_size"), config.num_heads * width)

    def forward(self, x_TD: Tensor, table: Tensor, context: Context) -> Tensor:
        """x_TD -> y_TD; `table` is the rotary table, `context` knows the keys and values of earlier tokens."""
        qkv_TX = linear(self.shards.rows(x_TD, self.compute), self.qkv_weight, self.compute)
        norms, places = (self.q_norm_H, self.k_norm_H), (table, context.positions_T)
        q_TNH, k_TnH, v_TnH = split_heads(qkv_TX, *norms, self.eps, *places, *self.counts, self.qkv_bias_X)
        o_TNH = context.attend(self.layer, q_TNH, k_TnH, v_TnH)
        o_TX = self.shards.columns(o_TNH.flatten(1), self.compute)
        return self.shards.home(linear(o_TX, self.out_weight, self.compute))

    def advance(self, x_TD: Tensor, norm_D: Tensor, eps: float, table: Tensor, batch: PagedBatch) -> None:
        """x_TD += forward(norm(x_TD)), keys and values in pages; no autograd."""
        norms = self.q_norm_H, self.k_norm_H
        weights = self.qkv_weight, self.qkv_bias_X, norms, self.out_weight
        attention_step(x_TD, norm_D, eps, *weights, table, batch, self.layer, self.compute)


class DenseMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); gate rows stand before up rows."""

    def __init__(self, hidden: int, width: int, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        self.compute, self.shards = compute, shards
        self.gate_up_2I_D = empty(2 * shards.part(width, "intermediate_size"), hidden)
        self.down_D_I = empty(shards.part(hidden, "hidden_size"), width)

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """x_TD -> y_TD."""
        gate_up = linear(self.shards.rows(x_TD, self.compute), self.gate_up_2I_D, self.compute)
        act_TI = self.shards.columns(swiglu(gate_up), self.compute)
        return self.shards.home(linear(act_TI, self.down_D_I, self.compute))

    def advance(self, x_TD: Tensor, norm_D: Tensor, eps: float) -> None:
        """x_TD += forward(norm(x_TD)); no autograd."""
        dense_step(x_TD, norm_D, eps, self.gate_up_2I_D, self.down_D_I, self.compute)


class SparseMoE(nn.Module):
    """A mixture of experts, routed as the config says, and where it says so an MLP that all tokens share."""

    router_bias_E: nn.Parameter | None
    shared: DenseMLP | None

    def __init__(self, config: ModelConfig, layer: int, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        width, hidden, held = config.moe_intermediate_size, config.hidden_size, shards.held(config.num_experts)
        self.layer, self.compute, self.shards, self.k = layer, compute, shards, config.experts_per_token
        router = config.router
        self.rule: dict[str, Any] = {"score": router.score, "scale": router.scale, "norm_topk": config.norm_topk_prob}
        self.rule |= {"groups": router.groups, "topk_groups": router.topk_groups}
        self.router_ED = empty(config.num_experts, hidden)
        self.router_bias_E = empty(config.num_experts, learns=False) if router.bias else None
        self.gate_up_E_2I_D = empty(held, 2 * width, hidden)
        self.down_E_D_I = empty(held, hidden, width)
        shared = config.shared_expert_width
        self.shared = DenseMLP(hidden, shared, compute, shards) if shared else None

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """x_TD -> y_TD; the context is told the routing."""
        logits_TE = linear(x_TD, self.router_ED, torch.float32)
        routing = self.shards.route(logits_TE, self.k, bias_E=self.router_bias_E, **self.rule)
        context.note_routing(self.layer, routing, logits_TE)
        y_TD = self.shards.experts(x_TD, routing, self.gate_up_E_2I_D, self.down_E_D_I, self.compute)
        return y_TD if self.shared is None else y_TD + self.shared(x_TD, context)

    def advance(self, x_TD: Tensor, norm_D: Tensor, eps: float) -> None:
        """x_TD += forward(norm(x_TD)); no autograd."""
        weights = self.gate_up_E_2I_D, self.down_E_D_I
        shared = None if self.shared is None else (self.shared.gate_up_2I_D, self.shared.down_D_I)
        router = self.router_ED, self.k
        sparse_step(x_TD, norm_D, eps, *router, *weights, self.compute, shared, bias_E=self.router_bias_E, **self.rule)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the MLP is dense or sparse by `config.is_sparse(layer)`."""

    def __init__(self, config: ModelConfig, layer: int, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.attention_norm_D, self.mlp_norm_D = empty(config.hidden_size), empty(config.hidden_size)
        self.attention = (Attention if config.latent is None else LatentAttention)(config, layer, compute, shards)
        dense = config.hidden_size, config.intermediate_size, compute, shards
        self.mlp = SparseMoE(config, layer, compute, shards) if config.is_sparse(layer) else DenseMLP(*dense)

    def forward(self, x_TD: Tensor, delta_TD: Tensor | None, table: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """The residual stream comes and goes as (x, what is still to be added to it): adding belongs to the next norm.

        `delta_TD` None: x is whole.
        """
        if delta_TD is None:
            normed_TD = rms_norm(x_TD, self.attention_norm_D, self.eps)
        else:
            x_TD, normed_TD = add_rms_norm(x_TD, delta_TD, self.attention_norm_D, self.eps)
        delta_TD = self.attention(normed_TD, table, context)
        x_TD, normed_TD = add_rms_norm(x_TD, delta_TD, self.mlp_norm_D, self.eps)
        return x_TD, self.mlp(normed_TD, context)

    def advance(self, x_TD: Tensor, table: Tensor, batch: PagedBatch) -> None:
        """`forward` for generation on one rank: x_TD in place, one native call for each half."""
        self.attention.advance(x_TD, self.attention_norm_D, self.eps, table, batch)
        self.mlp.advance(x_TD, self.mlp_norm_D, self.eps)
