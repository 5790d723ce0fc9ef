"""A configuration as plain data: to JSON and TOML, back, and the difference of two."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from seedthink.config.loader import base, build
from seedthink.config.sections import SourceConfig
from seedthink.config.tree import get, keys

Config = TypeVar("Config")


@dataclass(frozen=True, slots=True)
class Change:
    """One key that differs; a value is None where that side does not have the key."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.key}: {json.dumps(self.before)} -> {json.dumps(self.after)}"


def to_dict(value: Any) -> Any:
    """Return a configuration (or any value in one) as tables, lists and scalars, ready for JSON."""
    if isinstance(value, SourceConfig):
        return _source_table(value)
    if hasattr(value, "__dataclass_fields__"):
        return {item.name: to_dict(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, Mapping):
        return {str(name): to_dict(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_dict(item) for item in value]
    return value


def from_dict(cls: type[Config], table: Mapping[str, Any]) -> Config:
    """Rebuild a configuration from `to_dict`'s tables, for instance from a run's resolved.json."""
    return build(cls, table)


def diff(before: Mapping[str, Any], after: Mapping[str, Any], prefix: str = "") -> list[Change]:
    """Return the leaves that differ between two `to_dict` results, in the order of `before`."""
    changes: list[Change] = []
    for name in [*before, *(name for name in after if name not in before)]:
        old, new, path = before.get(name), after.get(name), prefix + name
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            changes += diff(old, new, path + ".")
        elif old != new:
            changes.append(Change(path, old, new))
    return changes


def to_toml(config: Any) -> str:
    """Return a recipe that loads to `config`: only what differs from the preset and the defaults, and the preset."""
    chosen = getattr(getattr(config, "algorithm", None), "preset", "")
    start = base(type(config), chosen)
    lines: list[str] = []
    section = ""
    cls: type = type(config)
    for path in keys(cls):
        value = get(config, path)
        if value == get(start, path) and path != "algorithm.preset":
            continue
        head, _, name = path.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"] if lines else [f"[{head}]"]
            section = head
        lines.append(f"{name} = {toml_value(to_dict(value))}")
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """Write one value as TOML; a table is written inline, a list of tables one to a line."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml_name(name)} = {toml_value(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        if value and all(isinstance(item, Mapping) for item in value):
            return "[\n" + "".join(f"    {toml_value(item)},\n" for item in value) + "]"
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)


def _toml_name(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _source_table(source: SourceConfig) -> dict[str, Any]:
    """Kind first, then what differs from the defaults, knobs beside the other keys: as a recipe writes it."""
    table: dict[str, Any] = {"kind": source.kind}
    for item in fields(source):
        if item.name not in ("kind", "knobs") and getattr(source, item.name) != item.default:
            table[item.name] = getattr(source, item.name)
    return table | dict(source.knobs)
