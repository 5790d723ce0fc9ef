"""Turning what a recipe says into what a field holds, with an error that names key, value and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from seedthink.config.fields import Range
from seedthink.config.sections import SourceConfig
from seedthink.config.suggest import did_you_mean
from seedthink.config.tree import describe, hints
from seedthink.errors import ConfigError

_FILE_KINDS = {".jsonl": "jsonl", ".json": "jsonl", ".parquet": "parquet"}


def convert(value: Any, hint: Any, path: str) -> Any:
    """Return `value` as the type `hint`, or raise ConfigError naming `path`, the value and what is allowed."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        inner = convert(value, args[0], path)
        for extra in args[1:]:
            if isinstance(extra, Range) and not extra.holds(inner):
                raise refused(path, value, hint)
        return inner
    if origin is Literal:
        if value not in args:
            near = did_you_mean(value, [arg for arg in args if isinstance(arg, str)]) if isinstance(value, str) else ""
            raise refused(path, value, hint, near)
        return value
    if origin in (Union, UnionType):
        for arg in args:
            if arg is type(value):
                return value
        return convert(value, args[0], path)
    if origin is tuple:
        return _items(value, hint, args, path)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        if not isinstance(value, Mapping):
            raise refused(path, value, hint)
        return {str(name): convert(item, args[1], f"{path}.{name}") for name, item in value.items()}
    if hint is SourceConfig:
        return source(value, path)
    return _scalar(value, hint, path)


def refused(path: str, value: Any, hint: Any, more: str = "") -> ConfigError:
    """Build the error for a value that a key does not take."""
    shown = f'"{value}"' if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)
    return ConfigError(f"{path} = {shown} is not allowed: it takes {describe(hint)}{more}")


def source(value: Any, path: str) -> SourceConfig:
    """Read one source: "puzzle:FAMILY", "FILE.jsonl", "FAMILY=FILE.jsonl", or a table of SourceConfig's fields.

    In the table of a puzzle, keys that are no field of SourceConfig are difficulty knobs of its family.
    """
    if isinstance(value, SourceConfig):
        value = {name: getattr(value, name) for name in hints(SourceConfig)}
    if isinstance(value, str):
        value = _shorthand(value, path)
    if not isinstance(value, Mapping):
        raise refused(path, value, SourceConfig)
    known = hints(SourceConfig)
    loose = {name: item for name, item in value.items() if name not in known}
    given = {name: convert(item, known[name], f"{path}.{name}") for name, item in value.items() if name in known}
    spec = SourceConfig(**given)
    if spec.kind != "puzzle":
        for name in [*loose, *spec.knobs]:
            raise ConfigError(f'unknown key "{name}" in {path}{did_you_mean(name, known)}')
        if not spec.path:
            raise ConfigError(f'{path}: kind = "{spec.kind}" needs path, the file to read')
        return spec
    for item in fields(SourceConfig):
        if item.name in given and (item.name == "path" or item.name.endswith("_field")):
            if given[item.name] == item.default:
                continue
            raise ConfigError(f'{path}.{item.name} has no effect with kind = "puzzle"; remove it, or set kind')
    if not spec.family:
        raise ConfigError(f'{path}: kind = "puzzle" needs family, for instance family = "countdown"')
    knobs = {**spec.knobs, **loose}
    for name, item in knobs.items():
        if not isinstance(item, int | float | str | bool):
            raise ConfigError(f"{path}.{name} = {item} is not allowed: a knob is a number, a text or true/false")
    return SourceConfig(**{**given, "knobs": knobs})


def _shorthand(text: str, path: str) -> dict[str, Any]:
    kind, colon, family = text.partition(":")
    if colon and kind == "puzzle":
        return {"kind": "puzzle", "family": family}
    family, equals, file = text.rpartition("=")
    for ending, of_kind in _FILE_KINDS.items():
        if file.endswith(ending):
            return {"kind": of_kind, "path": file, **({"family": family} if equals else {})}
    raise refused(path, text, SourceConfig)


def _items(value: Any, hint: Any, args: tuple[Any, ...], path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise refused(path, value, hint)
    if args[-1] is Ellipsis:
        return tuple(convert(item, args[0], f"{path}[{at}]") for at, item in enumerate(value))
    if len(value) != len(args):
        raise refused(path, value, hint)
    return tuple(convert(item, arg, f"{path}[{at}]") for at, (item, arg) in enumerate(zip(value, args, strict=True)))


def _scalar(value: Any, hint: Any, path: str) -> Any:
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is Any or type(value) is hint:
        return value
    raise refused(path, value, hint)
