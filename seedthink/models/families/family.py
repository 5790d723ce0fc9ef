"""What sets a family of models apart: switches of the one decoder, names of its tensors, keys of its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from seedthink.models.config import ModelConfig


class ExpertNames(NamedTuple):
    """Hugging Face names of a sparse MLP: its module within a layer, and an expert's three products."""

    module: str
    gate: str
    up: str
    down: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One `model_type` of Hugging Face.

    qk_norm: queries and keys are normalised per head. qkv_bias: their projections and the values' have a bias.
    experts: names of the sparse layers' tensors; None where every layer is dense.
    defaults: what transformers takes for keys that a config.json may leave out (of each family its own).
    refused: keys that are not computed, which must be absent, null, 0 or false -> what is supported instead.
    constant: keys of config.json that are the same for every model. fixed: fields of ModelConfig that have one value in
    this family, because its config.json has no key for them. read_experts, write_experts: the keys of the
    experts, to fields of ModelConfig and back.
    """

    architecture: str
    qk_norm: bool = False
    qkv_bias: bool = False
    experts: ExpertNames | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, str] = field(default_factory=dict)
    constant: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    read_experts: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    write_experts: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
