"""The parts of a Qwen3 block. Parameters are float32; `compute` is the dtype of the matrix products' operands.

Attention: q and k are normalised per head (RMSNorm over the head width) before the half-split rotary embedding; several
query heads share a key-value head. MLP: down(silu(gate(x)) * up(x)). The sparse MLP sends a token to its k likeliest
experts and sums them by router weight. Router products are always float32: they are small, and top-k must not flip.
Projections that read the same rows are one weight: q, k and v; gate and up. Where ranks share a model, `shards` says
which part of a weight is here and makes the moves between ranks; on one rank it does nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seedthink.kernels.activation import swiglu
from seedthink.kernels.block import PagedBatch, attention_step, dense_step, sparse_step
from seedthink.kernels.heads import split_heads
from seedthink.kernels.linear import linear
from seedthink.kernels.norm import add_rms_norm, rms_norm
from seedthink.models.config import ModelConfig
from seedthink.models.context import Context
from seedthink.parallel.shards import WHOLE, Shards


def empty(*shape: int) -> nn.Parameter:
    """A float32 parameter without values yet: loading or `init_weights` fills it."""
    return nn.Parameter(torch.empty(*shape, dtype=torch.float32))


class Attention(nn.Module):
    """Grouped-query attention with normalised queries and keys. Rows of `qkv_weight`: N query, n key, n value heads."""

    def __init__(self, config: ModelConfig, layer: int, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        self.shards, width = shards, config.head_dim
        heads, kv_heads = shards.heads(config.num_heads, config.num_kv_heads)
        self.layer, self.compute, self.eps, self.counts = layer, compute, config.rms_norm_eps, (heads, kv_heads)
        self.qkv_weight = empty((heads + 2 * kv_heads) * width, config.hidden_size)
        self.q_norm_H, self.k_norm_H = empty(width), empty(width)
        self.out_weight = empty(shards.part(config.hidden_size, "hidden_size"), config.num_heads * width)

    def forward(self, x_TD: Tensor, table: Tensor, context: Context) -> Tensor:
        """x_TD -> y_TD; `table` is the rotary table, `context` knows the keys and values of earlier tokens."""
        qkv_TX = linear(self.shards.rows(x_TD, self.compute), self.qkv_weight, self.compute)
        norms = self.q_norm_H, self.k_norm_H
        q_TNH, k_TnH, v_TnH = split_heads(qkv_TX, *norms, self.eps, table, context.positions_T, *self.counts)
        o_TNH = context.attend(self.layer, q_TNH, k_TnH, v_TnH)
        o_TX = self.shards.columns(o_TNH.flatten(1), self.compute)
        return self.shards.home(linear(o_TX, self.out_weight, self.compute))

    def advance(self, x_TD: Tensor, norm_D: Tensor, table: Tensor, batch: PagedBatch) -> None:
        """x_TD += forward(norm(x_TD)), keys and values in pages; no autograd."""
        norms, eps = (self.q_norm_H, self.k_norm_H), self.eps
        attention_step(
            x_TD, norm_D, eps, self.qkv_weight, norms, self.out_weight, table, batch, self.layer, self.compute
        )


class DenseMLP(nn.Module):
    """down(silu(gate(x)) * up(x)); gate rows stand before up rows."""

    def __init__(self, config: ModelConfig, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        self.compute, self.shards = compute, shards
        width = shards.part(config.intermediate_size, "intermediate_size")
        self.gate_up_2I_D = empty(2 * width, config.hidden_size)
        self.down_D_I = empty(shards.part(config.hidden_size, "hidden_size"), config.intermediate_size)

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """x_TD -> y_TD."""
        gate_up = linear(self.shards.rows(x_TD, self.compute), self.gate_up_2I_D, self.compute)
        act_TI = self.shards.columns(swiglu(gate_up), self.compute)
        return self.shards.home(linear(act_TI, self.down_D_I, self.compute))

    def advance(self, x_TD: Tensor, norm_D: Tensor, eps: float) -> None:
        """x_TD += forward(norm(x_TD)); no autograd."""
        dense_step(x_TD, norm_D, eps, self.gate_up_2I_D, self.down_D_I, self.compute)


class SparseMoE(nn.Module):
    """A mixture of experts: softmax over all experts, top-k, weights renormalised where the model says so."""

    def __init__(self, config: ModelConfig, layer: int, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        width, hidden, held = config.moe_intermediate_size, config.hidden_size, shards.held(config.num_experts)
        self.layer, self.compute, self.shards = layer, compute, shards
        self.k, self.norm_topk = config.experts_per_token, config.norm_topk_prob
        self.router_ED = empty(config.num_experts, hidden)
        self.gate_up_E_2I_D = empty(held, 2 * width, hidden)
        self.down_E_D_I = empty(held, hidden, width)

    def forward(self, x_TD: Tensor, context: Context) -> Tensor:
        """x_TD -> y_TD; the context is told the routing."""
        logits_TE = linear(x_TD, self.router_ED, torch.float32)
        routing = self.shards.route(logits_TE, self.k, norm_topk=self.norm_topk)
        context.note_routing(self.layer, routing, logits_TE)
        return self.shards.experts(x_TD, routing, self.gate_up_E_2I_D, self.down_E_D_I, self.compute)

    def advance(self, x_TD: Tensor, norm_D: Tensor, eps: float) -> None:
        """x_TD += forward(norm(x_TD)); no autograd."""
        weights = self.gate_up_E_2I_D, self.down_E_D_I
        sparse_step(x_TD, norm_D, eps, self.router_ED, self.k, self.norm_topk, *weights, self.compute)


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the MLP is dense or sparse by `config.is_sparse(layer)`."""

    def __init__(self, config: ModelConfig, layer: int, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        self.eps = config.rms_norm_eps
        self.attention_norm_D, self.mlp_norm_D = empty(config.hidden_size), empty(config.hidden_size)
        self.attention = Attention(config, layer, compute, shards)
        sparse = config.is_sparse(layer)
        self.mlp = SparseMoE(config, layer, compute, shards) if sparse else DenseMLP(config, compute, shards)

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
        self.attention.advance(x_TD, self.attention_norm_D, table, batch)
        self.mlp.advance(x_TD, self.mlp_norm_D, self.eps)
