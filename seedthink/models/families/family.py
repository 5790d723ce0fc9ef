"""What sets a family of models apart: switches of the one decoder, names of its tensors, keys of its config.json."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from seedthink.models.variants import PLAIN_ROUTER

if TYPE_CHECKING:
    from seedthink.models.config import ModelConfig


class ExpertNames(NamedTuple):
    """Hugging Face names of a sparse MLP: its module within a layer, and an expert's three products."""

    module: str
    gate: str
    up: str
    down: str


PLAIN: dict[str, Any] = {"latent": None, "router": PLAIN_ROUTER, "shared_expert_width": 0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One `model_type` of Hugging Face.

    qk_norm: queries and keys are normalised per head. qkv_bias: their projections and the values' have a bias.
    experts: names of the sparse layers' tensors; None where every layer is dense.
    defaults: what transformers takes for keys that a config.json may leave out (of each family its own).
    constant: keys of config.json for which one value is computed: it is written, and others are refused.
    fixed: fields of ModelConfig that have one value in this family, because its config.json has no key for them.
    further_layers: its folders may hold layers after the last one, which predict more than the next token; they are
    left out.
    read, write: the family's own keys to fields of ModelConfig and back. check: ConfigError where fields contradict.
    """

    architecture: str
    qk_norm: bool = False
    qkv_bias: bool = False
    experts: ExpertNames | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)
    constant: Mapping[str, Any] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=lambda: {**PLAIN, "num_experts": 0})
    further_layers: bool = False
    read: Callable[[Mapping[str, Any]], dict[str, Any]] = lambda config: {}
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    check: Callable[[ModelConfig], None] = lambda config: None
