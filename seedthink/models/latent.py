"""Multi-head latent attention, as DeepSeek-V3 has it (arXiv:2412.19437, section 2.1.1).

Keys and values are unfolded from the latent before they are attended to and cached, all heads at one width with zeros
filling the shorter ones up: the kernels, and so the bits, are those of every other model. (A cache of latents would be
smaller.) Turned pairs that stand side by side in the weights are moved half a head apart, on queries and keys alike,
which no product of the two notices.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seedthink.kernels.attention import attend_paged, write_pages
from seedthink.kernels.block import PagedBatch
from seedthink.kernels.linear import linear
from seedthink.kernels.norm import rms_norm
from seedthink.kernels.rope import rope
from seedthink.models.config import ModelConfig
from seedthink.models.context import Context
from seedthink.models.parameter import empty
from seedthink.parallel.shards import WHOLE, Shards

LATENT_EPS = 1e-6  # of the norms within attention: transformers gives them its default, whatever rms_norm_eps is


class LatentAttention(nn.Module):
    """Rows of `first_weight`: the queries' latent (or the queries), that of keys and values, the shared turned key.

    Where ranks share the model each unfolds its own heads: latents, which are small, are made of own rows by whole
    weights and gathered.
    """

    q_norm_R: nn.Parameter | None
    q_weight: nn.Parameter | None

    def __init__(self, config: ModelConfig, layer: int, compute: torch.dtype, shards: Shards = WHOLE) -> None:
        super().__init__()
        sizes = config.latent
        assert sizes is not None, "a model with latent attention has its sizes"
        self.sizes, self.layer, self.compute, self.shards = sizes, layer, compute, shards
        self.heads, _ = shards.heads(config.num_heads, config.num_heads)
        self.q_rows = config.num_heads * sizes.key_dim if sizes.q_rank is None else sizes.q_rank
        self.first_weight = empty(self.q_rows + sizes.kv_rank + sizes.turned_dim, config.hidden_size)
        self.q_norm_R = self.q_weight = None
        if sizes.q_rank is not None:
            self.q_norm_R = empty(sizes.q_rank)
            self.q_weight = empty(self.heads * sizes.key_dim, sizes.q_rank)
        self.kv_norm_R = empty(sizes.kv_rank)
        self.kv_weight = empty(self.heads * (sizes.plain_dim + sizes.value_dim), sizes.kv_rank)
        self.out_weight = empty(shards.part(config.hidden_size, "hidden_size"), config.num_heads * sizes.value_dim)

    def forward(self, x_TD: Tensor, table: Tensor, context: Context) -> Tensor:
        """x_TD -> y_TD; `table` is the rotary table of heads of width `turned_dim`."""
        o_TNH = context.attend(self.layer, *self._heads(x_TD, table, context.positions_T))
        return self._out(o_TNH)

    def advance(self, x_TD: Tensor, norm_D: Tensor, eps: float, table: Tensor, batch: PagedBatch) -> None:
        """x_TD += forward(norm(x_TD)), keys and values in pages; no autograd."""
        q_TNH, k_TNH, v_TNH = self._heads(rms_norm(x_TD, norm_D, eps), table, batch.positions_T)
        pages = batch.layers[self.layer]
        write_pages(k_TNH, v_TNH, batch.slots_T, *pages)
        places = batch.page_table_BM, batch.cu_q_B1, batch.lengths_B
        x_TD += self._out(attend_paged(q_TNH, *pages, *places, batch.scale))

    def _heads(self, x_TD: Tensor, table: Tensor, positions_T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [T, N, H], filled up to one width."""
        sizes, shards, compute = self.sizes, self.shards, self.compute
        first_TX = linear(x_TD, self.first_weight, compute)
        q_TX, kv_TR, turned_TS = first_TX.split([self.q_rows, sizes.kv_rank, sizes.turned_dim], dim=1)
        if self.q_norm_R is not None and self.q_weight is not None:
            q_TR = shards.rows(rms_norm(q_TX.contiguous(), self.q_norm_R, LATENT_EPS), compute)
            q_TX = linear(q_TR, self.q_weight, compute)
        else:
            own = self.heads * sizes.key_dim
            q_TX = shards.rows(q_TX.contiguous(), torch.float32).narrow(1, shards.seat.tp_index * own, own)
        q_TNX = q_TX.reshape(-1, self.heads, sizes.key_dim)
        kv_TR = shards.rows(rms_norm(kv_TR.contiguous(), self.kv_norm_R, LATENT_EPS), compute)
        kv_TX, turned_TS = linear(kv_TR, self.kv_weight, compute), shards.rows(turned_TS.contiguous(), torch.float32)
        kv_TNX = kv_TX.view(-1, self.heads, sizes.plain_dim + sizes.value_dim)
        q_plain, q_turned = q_TNX.split([sizes.plain_dim, sizes.turned_dim], dim=2)
        k_plain, v_TNX = kv_TNX.split([sizes.plain_dim, sizes.value_dim], dim=2)
        q_turned = rope(self._half_apart(q_turned), table, positions_T)
        k_turned = rope(self._half_apart(turned_TS[:, None]), table, positions_T).expand(-1, self.heads, -1)
        parts = (q_plain, q_turned), (k_plain, k_turned), (v_TNX,)
        q_TNH, k_TNH, v_TNH = (self._filled(torch.cat(part, dim=2)) for part in parts)
        return q_TNH, k_TNH, v_TNH

    def _half_apart(self, x_TNS: Tensor) -> Tensor:
        if not self.sizes.interleaved:
            return x_TNS.contiguous()
        return x_TNS.unflatten(2, (-1, 2)).transpose(2, 3).flatten(2).contiguous()

    def _filled(self, x_TNX: Tensor) -> Tensor:
        return F.pad(x_TNX, (0, self.sizes.head_dim - x_TNX.shape[2])).contiguous()

    def _out(self, o_TNH: Tensor) -> Tensor:
        value_TX = self.shards.columns(o_TNH[:, :, : self.sizes.value_dim].flatten(1), self.compute)
        return self.shards.home(linear(value_TX, self.out_weight, self.compute))
