"""The rotary embedding's keys of a config.json: base and scaling, in the form of transformers 4 and of 5.

Version 4 writes rope_theta beside rope_scaling = {"rope_type" or "type": ..., "factor": ...}; version 5 writes both
into rope_parameters, and reads the older form too, which is why it is the one that is written here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from seedthink.errors import DataError
from seedthink.kernels.rope_scaling import LinearScaling, Llama3Scaling, RopeScaling, YarnScaling
from seedthink.models.families.values import flag, integer, number

_PLACE = "rope_parameters (or rope_scaling)"
_ORIGINAL = "original_max_position_embeddings"
_KINDS: dict[str, type[RopeScaling] | None] = {
    "default": None,
    "linear": LinearScaling,
    "llama3": Llama3Scaling,
    "yarn": YarnScaling,
}


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
    if kind is None:
        return theta, None
    return theta, kind(**_arguments(kind, rope, config))


def write_rope(scaling: RopeScaling | None) -> dict[str, Any] | None:
    """The value of rope_scaling."""
    if scaling is None:
        return None
    name = next(name for name, kind in _KINDS.items() if kind is type(scaling))
    given = {key: value for key, value in asdict(scaling).items() if value is not None}
    return {"rope_type": name, **given}


def _arguments(kind: type[RopeScaling], rope: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `kind` that are there; those without a default must be, but for the original context's length,
    which transformers looks up beside the rope's keys first, and takes for the whole where it finds none.
    """
    found: dict[str, Any] = {}
    for field in fields(kind):
        if field.name == _ORIGINAL:
            found[_ORIGINAL] = integer(
                config if config.get(_ORIGINAL) is not None else rope,
                _ORIGINAL,
                integer(config, "max_position_embeddings"),
            )
        elif field.name == "truncate":
            found["truncate"] = flag({"truncate": True, **rope}, "truncate")
        elif rope.get(field.name) is not None or field.default is MISSING:
            found[field.name] = number(rope, field.name)
    return found


def _known() -> str:
    return ", ".join(f'"{name}"' for name in _KINDS)
