"""What a model asks for while it computes: its part of a size, and the moves between ranks that its products need.

`WHOLE` is the answer on one rank: every part is the whole, and nothing moves. Model files name neither groups nor
ranks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seedthink.errors import ConfigError
from seedthink.kernels.experts import experts
from seedthink.kernels.finite import not_finite
from seedthink.kernels.route import Routing, route
from seedthink.parallel import context
from seedthink.parallel.cut import Seat
from seedthink.parallel.expert import spread_experts
from seedthink.parallel.mesh import Mesh
from seedthink.parallel.runs import EveryRow, Run
from seedthink.parallel.tensor import TensorAxis, share_of


class Shards:
    """One rank alone. Subclassed where ranks share a model."""

    alone = True
    seat = Seat()

    def heads(self, heads: int, kv_heads: int) -> tuple[int, int]:
        """Query and key heads that a rank projects."""
        return heads, kv_heads

    def cached_heads(self, kv_heads: int) -> int:
        """Key heads whose pages a rank keeps."""
        return kv_heads

    def part(self, size: int, name: str) -> int:
        """A rank's part of the rows of a weight."""
        return size

    def held(self, experts: int) -> int:
        """Experts that a rank holds."""
        return experts

    def rows(self, x_UD: Tensor, compute: torch.dtype) -> Tensor:
        """Before the first product of a half: the rows that it is over."""
        return x_UD

    def columns(self, x_UX: Tensor, compute: torch.dtype) -> Tensor:
        """Before the second product of a half: all columns."""
        return x_UX

    def home(self, y_UX: Tensor) -> Tensor:
        """After the second product of a half: own rows with all columns."""
        return y_UX

    def route(self, logits_TE: Tensor, k: int, **rule: Any) -> Routing:
        """`kernels.route.route`."""
        return route(logits_TE, k, **rule)

    def experts(self, x_TD: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, compute: torch.dtype) -> Tensor:
        """`kernels.experts.experts`, wherever the experts are."""
        return experts(x_TD, routing, gate_up, down, compute)

    def run(self, rows: int) -> EveryRow | Run:
        """Which of `rows` packed rows are this rank's."""
        return EveryRow()


class CopiedShards(Shards):
    """A whole module on a rank that makes every step together with others."""

    def route(self, logits_TE: Tensor, k: int, **rule: Any) -> Routing:
        """Rows that cannot be routed get weights of NaN."""
        return route_or_nan(logits_TE, k, **rule)


class MeshShards(Shards):
    """The shards of a model over the ranks of a mesh."""

    alone = False

    def __init__(self, mesh: Mesh) -> None:
        self.mesh = mesh
        self._tensor = TensorAxis(mesh.tp)
        self.seat = Seat(mesh.layout.tp, mesh.tp.index, mesh.layout.ep, mesh.experts.index)

    def rows(self, x_UD: Tensor, compute: torch.dtype) -> Tensor:
        """Those of all tp ranks."""
        return self._tensor.rows(x_UD, compute)

    def columns(self, x_UX: Tensor, compute: torch.dtype) -> Tensor:
        """Those of all tp ranks."""
        return self._tensor.columns(x_UX, compute)

    def home(self, y_UX: Tensor) -> Tensor:
        """Columns go to the ranks of their rows."""
        return self._tensor.home(y_UX)

    def part(self, size: int, name: str) -> int:
        """Errors: ConfigError where tp ranks cannot share `size` evenly."""
        return self._tensor.share(size, name)

    def heads(self, heads: int, kv_heads: int) -> tuple[int, int]:
        """Errors: ConfigError where heads cannot be shared."""
        self.cached_heads(kv_heads)
        share_of(heads, self.mesh.plane.size, "num_heads", "cp * tp")
        return heads // self.seat.tp, max(1, kv_heads // self.seat.tp)

    def cached_heads(self, kv_heads: int) -> int:
        """Errors: ConfigError where ranks can share neither heads nor a head."""
        for ranks, axes in ((self.seat.tp, "tp"), (self.mesh.plane.size, "cp * tp")):
            if kv_heads % ranks and ranks % kv_heads:
                raise ConfigError(
                    f"num_kv_heads = {kv_heads} and {axes} = {ranks}: one must be a multiple of the other"
                )
        return max(1, kv_heads // self.mesh.plane.size)

    def held(self, experts: int) -> int:
        """Errors: ConfigError where experts cannot be shared evenly."""
        return share_of(experts, self.seat.ep, "num_experts", "ep")

    def route(self, logits_TE: Tensor, k: int, **rule: Any) -> Routing:
        """Rows that cannot be routed get weights of NaN."""
        return route_or_nan(logits_TE, k, **rule)

    def experts(self, x_TD: Tensor, routing: Routing, gate_up: Tensor, down: Tensor, compute: torch.dtype) -> Tensor:
        """Rows go to the experts' ranks and come back."""
        return spread_experts(x_TD, routing, gate_up, down, compute, self.mesh.experts)

    def run(self, rows: int) -> Run:
        """The run of this rank among those of its data index."""
        return Run(rows, self.mesh.plane, self.mesh.layout.tp)

    def heads_for_rows(
        self, q_TNH: Tensor, k_TnH: Tensor, v_TnH: Tensor, compute: torch.dtype
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Before attention: all rows of a share of the heads."""
        return context.heads_for_rows(q_TNH, k_TnH, v_TnH, self.mesh.cp, compute)

    def rows_for_heads(self, o_TNH: Tensor) -> Tensor:
        """After attention: own rows of all projected heads."""
        return context.rows_for_heads(o_TNH, self.mesh.cp)


def route_or_nan(logits_TE: Tensor, k: int, **rule: Any) -> Routing:
    """`kernels.route.route`, with weights of NaN for what it refuses: an error would leave the other ranks waiting."""
    try:
        return route(logits_TE, k, **rule)
    except ValueError as error:
        if not not_finite(error):
            raise
    routing = route(torch.nan_to_num(logits_TE), k, **rule)
    return routing._replace(weight_TK=routing.weight_TK * torch.nan)


WHOLE = Shards()


def shards_of(mesh: Mesh | None) -> Shards:
    """How a model is spread over a mesh; copies of whole models are each alone."""
    if mesh is None or not mesh.together:
        return WHOLE
    return MeshShards(mesh) if mesh.entangled else CopiedShards()
