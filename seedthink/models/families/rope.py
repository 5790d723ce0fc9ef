"""The rotary embedding's keys of a config.json: base and scaling, in the form of transformers 4 and of 5.

Version 4 writes rope_theta beside rope_scaling = {"rope_type" or "type": ..., "factor": ...}; version 5 writes both
into rope_parameters, and reads the older form too, which is why it is the one that is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from seedthink.errors import DataError
from seedthink.kernels.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling
from seedthink.models.families.values import integer, number

_PLACE = "rope_parameters (or rope_scaling)"
_KINDS: dict[str, type[RopeScaling] | None] = {"default": None, "linear": LinearScaling, "llama3": Llama3Scaling}


def read_rope(config: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """(rope_theta, scaling). DataError names the rope_type or the key that is not supported."""
    rope = config.get("rope_scaling") or config.get("rope_parameters") or {}
    theta = number(rope if rope.get("rope_theta") is not None else config, "rope_theta", 10000.0)
    name = rope.get("rope_type", rope.get("type", "default"))
    if name not in _KINDS:
        raise DataError(f"config.json: {_PLACE} = {rope!r} is not supported; supported: rope_type {_known()}")
    kind = _KINDS[name]
    known = {} if kind is None else kind.__dataclass_fields__
    for key, value in rope.items():
        if (
            key in ("rope_type", "type", "rope_theta")
            or key in known
            or (key == "partial_rotary_factor" and value == 1)
        ):
            continue
        raise DataError(
            f"config.json: {_PLACE}: {key} = {value!r} is not supported; rope_type {name!r} takes: "
            f"{', '.join(['rope_theta', *known])}"
        )
    if kind is LinearScaling:
        return theta, LinearScaling(factor=number(rope, "factor"))
    return theta, _llama3(rope, config) if kind is Llama3Scaling else None


def write_rope(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The value of rope_scaling."""
    if scaling is None:
        return None
    name = next(name for name, kind in _KINDS.items() if kind is type(scaling))
    return {"rope_type": name, **asdict(scaling)}


def _llama3(rope: Mapping[str, Any], config: Mapping[str, Any]) -> Llama3Scaling:
    key = "original_max_position_embeddings"
    return Llama3Scaling(
        factor=number(rope, "factor"),
        low_freq_factor=number(rope, "low_freq_factor"),
        high_freq_factor=number(rope, "high_freq_factor"),
        original_max_position_embeddings=integer(
            config if config.get(key) is not None else rope, key, integer(config, "max_position_embeddings", 0)
        ),
    )


def _known() -> str:
    return ", ".join(f'"{name}"' for name in _KINDS)
