"""The command line over a recipe: `seedthink rl recipes/x --rollout.temperature 0.8`.

Preset, then file, then flags. tyro parses the flags and writes the help from the same dataclasses. It is imported late:
a command without flags should not wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from seedthink.config.convert import source
from seedthink.config.effects import check
from seedthink.config.loader import explicit_keys, in_file, load, merged, named, read, unknown_key, unknown_section
from seedthink.config.sections import SourceConfig
from seedthink.config.tree import hints, keys
from seedthink.errors import ConfigError

Config = TypeVar("Config")


def parse(
    cls: type[Config],
    arguments: Sequence[str],
    *,
    command: str,
    about: str,
    overrides: Mapping[str, Any] | None = None,
) -> Config:
    """Read `[RECIPE] [--section.key value ...]` into a checked configuration.

    `overrides` are dotted keys that stand between file and flags. `--help` prints `about` and every key and exits with
    0, a value of the wrong type exits with 2; any other mistake raises ConfigError, which names the nearest key.
    """
    recipe, flags = split_recipe(arguments)
    if not flags:
        return load(recipe, cls, overrides)
    refuse_strays(cls, flags)
    given = flag_values(cls, flags)
    table = merged({} if recipe is None else read(recipe), overrides or {})
    if "algorithm.preset" in given:
        table = merged(table, {"algorithm.preset": given["algorithm.preset"]})
    config = named(_tyro(cls, flags, in_file(recipe, cls, table), command, about), recipe)
    check(config, explicit_keys(cls, table) | given.keys())
    return config


def split_recipe(arguments: Sequence[str]) -> tuple[str | None, list[str]]:
    """Separate the recipe, which comes first, from the flags."""
    if arguments and not arguments[0].startswith("-"):
        return arguments[0], list(arguments[1:])
    return None, list(arguments)


def refuse_strays(cls: type, flags: Sequence[str]) -> None:
    """Raise ConfigError for a flag that is no key, and for a recipe that does not stand first."""
    if {"-h", "--help"} & set(flags):
        return
    for at, word in enumerate(flags):
        if not word.startswith("-") and (at == 0 or (word.endswith(".toml") and not flags[at - 1].startswith("--"))):
            if "=" in word:
                continue  # an assignment without dashes; `_tyro` says how to write it
            raise ConfigError(f'"{word}" is no flag; a command takes one recipe, before its flags')
        path = word[2:].partition("=")[0].replace("-", "_")
        if word.startswith("--") and not key_of(cls, path):
            section = path.rpartition(".")[0]
            raise unknown_section(section, cls) if section and section not in hints(cls) else unknown_key(path, cls)


def key_of(cls: type, path: str) -> str:
    """Return the key that a flag sets: the path itself, or without the "no_" that switches it off; "" for neither."""
    section, dot, leaf = path.rpartition(".")
    known = keys(cls)
    return next((name for name in (path, f"{section}{dot}{leaf.removeprefix('no_')}") if name in known), "")


def flag_values(cls: type, flags: Sequence[str]) -> dict[str, str]:
    """Map the dotted keys that flags set to the word that follows each ("" where none does)."""
    found: dict[str, str] = {}
    for at, word in enumerate(flags):
        if not word.startswith("--"):
            continue
        name, equals, value = word[2:].partition("=")
        if path := key_of(cls, name.replace("-", "_")):
            found[path] = value if equals else " ".join(flags[at + 1 : at + 2])
    return found


def _tyro(cls: type[Config], flags: list[str], start: Config, command: str, about: str) -> Config:
    import tyro
    from tyro.constructors import ConstructorRegistry, PrimitiveConstructorSpec, PrimitiveTypeInfo

    registry = ConstructorRegistry()

    @registry.primitive_rule
    def source_rule(info: PrimitiveTypeInfo) -> PrimitiveConstructorSpec[SourceConfig] | None:
        if info.type is not SourceConfig:
            return None
        return PrimitiveConstructorSpec(
            nargs=1,
            metavar="SOURCE",
            instance_from_str=lambda words: source(words[0], "source"),
            is_instance=lambda value: isinstance(value, SourceConfig),
            str_from_instance=lambda spec: [spec.path or f"puzzle:{spec.family}"],
        )

    known = keys(cls)  # type: ignore[arg-type]
    stray = next((word for word in flags if "=" in word and word.partition("=")[0] in known), "")
    if stray:
        key, _, value = stray.partition("=")
        raise ConfigError(f'"{stray}" is not a flag: write --{key} {value}')
    return tyro.cli(cls, args=flags, default=start, prog=f"seedthink {command}", description=about, registry=registry)
