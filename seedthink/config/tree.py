"""The configuration tree as data: every key with its type, default, allowed values and documentation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from seedthink.config.fields import Range, field_docs
from seedthink.config.sections import SourceConfig


@dataclass(frozen=True, slots=True)
class Key:
    """One leaf: its dotted path, type and default, and the dataclass that declares it."""

    path: str
    hint: Any
    default: Any
    section: type

    @property
    def doc(self) -> str:
        """The sentence under the field. Read when asked for: parsing sources takes longer than parsing flags."""
        return field_docs(self.section).get(self.path.rpartition(".")[2], "")

    @property
    def allowed(self) -> str:
        """The allowed values in words."""
        return describe(self.hint)


@cache
def hints(cls: type) -> dict[str, Any]:
    """Resolved annotations of a dataclass, ranges included."""
    return get_type_hints(cls, include_extras=True)


def is_section(hint: Any) -> bool:
    """Say whether a field's type is a section of the tree. A source is a leaf: recipes write it as one small table."""
    return isinstance(hint, type) and hasattr(hint, "__dataclass_fields__") and hint is not SourceConfig


@cache
def keys(cls: type, prefix: str = "") -> dict[str, Key]:
    """Map each dotted path below `cls` to its Key, in the order of declaration."""
    found: dict[str, Key] = {}
    for item in fields(cls):
        path = prefix + item.name
        hint = hints(cls)[item.name]
        if is_section(hint):
            found |= keys(hint, path + ".")
        else:
            default = item.default if item.default_factory is MISSING else item.default_factory()
            found[path] = Key(path, hint, default, cls)
    return found


def get(config: Any, path: str) -> Any:
    """Value of a dotted path."""
    for part in path.split("."):
        config = getattr(config, part)
    return config


def describe(hint: Any) -> str:
    """Say in words what a type allows."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [str(extra) for extra in args[1:] if isinstance(extra, Range)]
        return " ".join([describe(args[0]), *ranges])
    if origin is Literal:
        return " or ".join(f'"{arg}"' if isinstance(arg, str) else repr(arg) for arg in args)
    if origin in (Union, UnionType):
        return " or ".join(describe(arg) for arg in args)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"a list of {describe(args[0])}"
        return "[" + ", ".join(describe(arg) for arg in args) + "]"
    if origin is Mapping or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return f"a table of name = {describe(args[1])}"
    names = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "nothing"}
    return names.get(hint, 'sources ("puzzle:FAMILY", "FILE.jsonl" or a table)' if hint is SourceConfig else str(hint))
