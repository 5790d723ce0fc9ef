"""Recipe file + changes -> a checked configuration: preset first, then the file, then the changes.

Strict by construction: a key that does not exist, stands in the wrong place, has the wrong type or range, or has no
effect in the chosen mode is a ConfigError that names the key that was probably meant.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

from seedthink.config.algorithm import PRESETS, AlgorithmConfig
from seedthink.config.commands import COMMANDS
from seedthink.config.convert import convert
from seedthink.config.effects import check
from seedthink.config.suggest import did_you_mean, nearest_section
from seedthink.config.tree import get, hints, is_section, keys
from seedthink.errors import ConfigError

Config = TypeVar("Config")


def load(path: str | Path | None, cls: type[Config], overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a recipe into `cls` and check it.

    `path` is a TOML file, a folder that holds run.toml, or None for defaults. `overrides` maps dotted keys to values
    and wins over the file. Raises ConfigError naming the file, the key, the value, what is allowed and the nearest key.
    """
    table = merged({} if path is None else read(path), overrides or {})
    config = named(in_file(path, cls, table), path)
    check(config, explicit_keys(cls, table))
    return config


def in_file(path: str | Path | None, cls: type[Config], table: Mapping[str, Any]) -> Config:
    """Build `table`, and name the recipe in front of an error."""
    try:
        return build(cls, table)
    except ConfigError as error:
        raise ConfigError(f"{recipe_file(path)}: {error}") if path is not None else error from None


def read(path: str | Path) -> dict[str, Any]:
    """Parse a recipe into nested tables; ConfigError names the file and line of a syntax error."""
    file = recipe_file(path)
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        if Path(path).is_dir():
            raise ConfigError(f"{path} is a folder without run.toml, so it is no recipe; name a TOML file") from None
        known = sorted(str(found.parent) for found in Path("recipes").glob("*/run.toml"))
        here = f" Recipes here: {', '.join(known)}." if known else ""
        raise ConfigError(
            f"recipe {path} does not exist{did_you_mean(str(path), known)}{here or '.'} "
            "`seedthink config init rl > run.toml` writes one to start from"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {file} is not valid TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"recipe {file} cannot be read: {error.strerror}") from None


def recipe_file(path: str | Path) -> Path:
    """Return the file a recipe's path means: a folder stands for its run.toml."""
    return Path(path) / "run.toml" if Path(path).is_dir() else Path(path)


def merged(table: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return `table` with dotted `overrides` put over it."""
    out = {name: merged(item, {}) if isinstance(item, Mapping) else item for name, item in table.items()}
    for path, value in overrides.items():
        *parents, leaf = path.split(".")
        inner = out
        for parent in parents:
            below = inner.setdefault(parent, {})
            if not isinstance(below, dict):
                raise ConfigError(f"{path} = {value}: {parent} is a value, not a section")
            inner = below
        inner[leaf] = value
    return out


def build(cls: type[Config], table: Mapping[str, Any]) -> Config:
    """Turn nested tables into a configuration over the preset and the defaults; ranges and types are checked."""
    return _section(cls, table, base(cls, _preset_of(cls, table)), "", cls)


def base(cls: type[Config], preset_name: str = "") -> Config:
    """Return the defaults of a tree, with the algorithm section of a preset where one is named."""
    start = cls()
    if preset_name:
        start = replace(start, algorithm=PRESETS[preset_name])  # type: ignore[type-var]
    return start


def explicit_keys(cls: type, table: Mapping[str, Any], prefix: str = "") -> frozenset[str]:
    """Return the dotted keys that a table sets."""
    found: set[str] = set()
    for name, item in table.items():
        if is_section(hints(cls).get(name)) and isinstance(item, Mapping):
            found |= explicit_keys(hints(cls)[name], item, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return frozenset(found)


def named(config: Config, path: str | Path | None) -> Config:
    """Fill in an empty run.name: the recipe's folder, or its file name, or the command."""
    if not hasattr(config, "run") or config.run.name:
        return config
    command = next((name for name, cls in COMMANDS.items() if cls is type(config)), "run")
    name = command
    if path is not None:
        file = recipe_file(path)
        name = file.resolve().parent.name if file.name == "run.toml" else file.stem
    return replace(config, run=replace(config.run, name=name))  # type: ignore[type-var]


def _preset_of(cls: type, table: Mapping[str, Any]) -> str:
    section = table.get("algorithm")
    if hints(cls).get("algorithm") is not AlgorithmConfig or not isinstance(section, Mapping):
        return ""
    if "preset" not in section:
        return ""
    key = keys(cls)["algorithm.preset"]
    return str(convert(section["preset"], key.hint, key.path))


def _section(cls: type[Config], table: Mapping[str, Any], start: Config, prefix: str, root: type) -> Config:
    changes: dict[str, Any] = {}
    known: dict[str, Any] = hints(cls)  # type: ignore[arg-type]
    for name, value in table.items():
        path, hint = prefix + name, known.get(name)
        if hint is None:
            raise unknown_key(path, root) if not isinstance(value, Mapping) else unknown_section(path, root)
        if is_section(hint):
            if not isinstance(value, Mapping):
                raise ConfigError(f"{path} is a section: write [{path}] with keys {', '.join(_names(hint))}")
            changes[name] = _section(hint, value, getattr(start, name), path + ".", root)
        else:
            changes[name] = convert(value, hint, path)
    return replace(start, **changes)  # type: ignore[type-var]


def unknown_key(path: str, root: type) -> ConfigError:
    """Build the error for a key that does not exist in `root`, naming what was probably meant."""
    hint = did_you_mean(path, keys(root))
    others = [command for command, cls in COMMANDS.items() if cls is not root and path in keys(cls)]
    if others:
        hint = f"; it belongs to `seedthink {others[0]}`" + hint
    if not hint:
        section = path.rpartition(".")[0]
        names = _names(root) if not section else _names(type(get(root(), section)))
        hint = f"; [{section}] has {', '.join(names)}" if section else f"; sections are {', '.join(names)}"
    return ConfigError(f'unknown key "{path}"{hint}')


def unknown_section(path: str, root: type) -> ConfigError:
    """Build the error for a table that is no section of `root`."""
    sections = [name for name in _names(root) if is_section(hints(root)[name])]
    found = nearest_section(path, sections)
    others = [command for command, cls in COMMANDS.items() if cls is not root and path in _names(cls)]
    owner = f"; it belongs to `seedthink {others[0]}`" if others else ""
    hint = f"; did you mean [{'] or ['.join(found)}]?" if found else f"; sections are {', '.join(sections)}"
    return ConfigError(f"unknown section [{path}]{owner}{hint}")


def _names(cls: type) -> list[str]:
    return [item.name for item in fields(cls)]
