"""Which rows of each parameter a rank holds where ranks share a model: one table for all families, by name."""

from __future__ import annotations

from torch import Tensor, nn

from seedthink.models.config import ModelConfig
from seedthink.parallel.cut import Cut, Seat, even_cut, experts_cut, heads_cut, whole_cut

_HEADS = {"qkv_weight", "qkv_bias_X"}
_ROWS = {"out_weight", "down_D_I", "q_weight", "kv_weight"}
_EXPERTS = {"gate_up_E_2I_D", "down_E_D_I"}


def cut_of(name: str, parameter: Tensor, config: ModelConfig, seat: Seat) -> Cut:
    """The cut of one parameter, of which `parameter` is a part; what the table does not name is held whole."""
    last = name.rpartition(".")[2]
    if last in _HEADS:
        return heads_cut(config.num_heads, config.num_kv_heads, config.head_dim, seat)
    if last == "gate_up_2I_D":
        return even_cut(parameter.shape[0] * seat.tp, seat, runs=2)
    if last in _ROWS:
        return even_cut(parameter.shape[0] * seat.tp, seat)
    if last in _EXPERTS:
        return experts_cut(parameter.shape[0] * seat.ep, seat)
    return whole_cut(parameter.shape[0], seat)


def cuts_of(module: nn.Module, config: ModelConfig, seat: Seat) -> dict[str, Cut]:
    """The cut of every parameter of a policy or critic."""
    return {name: cut_of(name, parameter, config, seat) for name, parameter in module.named_parameters()}
