"""Values of a config.json by their type. A wrong one is a DataError that names the key; null counts as missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from seedthink.errors import DataError


def integer(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """The integer at `key`; without a default it must be there."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise DataError(f"config.json: {key} is missing; this model cannot be built without it")
    if not isinstance(value, int) or isinstance(value, bool):
        raise DataError(f"config.json: {key} = {value!r} must be an integer")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """The number at `key`, as a float; without a default it must be there."""
    value = config.get(key)
    if value is None:
        value = default
    if value is None:
        raise DataError(f"config.json: {key} is missing; this model cannot be built without it")
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise DataError(f"config.json: {key} = {value!r} must be a number")
    return float(value)


def token_id(config: Mapping[str, Any], key: str) -> int | None:
    """The token at `key`, or None."""
    return None if config.get(key) is None else integer(config, key)


def integers(config: Mapping[str, Any], key: str) -> tuple[int, ...]:
    """The list at `key`, or the one integer there; none where it is missing."""
    value = config.get(key)
    several = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(integer({key: one}, key) for one in several)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """The boolean at `key`; false where it is not there."""
    value = config.get(key, False)
    if not isinstance(value, bool):
        raise DataError(f"config.json: {key} = {value!r} must be true or false")
    return value
