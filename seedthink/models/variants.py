"""What a model may have beyond plain attention and plain routing, as the config holds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Router:
    """How experts are chosen and weighted (kernels/route.py says what each means); `bias`: the choice has one."""

    score: Literal["softmax", "sigmoid"] = "softmax"
    scale: float = 1.0
    groups: int = 1
    topk_groups: int = 1
    bias: bool = False


PLAIN_ROUTER = Router()


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentSizes:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): queries and keys-values pass through narrow layers.

    q_rank: width of the queries' layer, None where they come straight from the hidden state. kv_rank: width of the
    keys' and values'. A head's query and key have `plain_dim` entries and then `turned_dim` that carry the position
    (the key's are shared by all heads); its value has `value_dim`. interleaved: turned pairs stand side by side.
    """

    q_rank: int | None
    kv_rank: int
    plain_dim: int
    turned_dim: int
    value_dim: int
    interleaved: bool = True

    @property
    def key_dim(self) -> int:
        """Entries of a head's query and key."""
        return self.plain_dim + self.turned_dim

    @property
    def head_dim(self) -> int:
        """Width at which attention holds a head: zeros fill queries, keys and values up to a multiple of 16."""
        return -(-max(self.key_dim, self.value_dim) // 16) * 16
