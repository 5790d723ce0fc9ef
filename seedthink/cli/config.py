"""`seedthink config`: show, check and explain settings; write a first recipe."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress

from seedthink.cli.arguments import Parser

EXAMPLES = """Examples:
  seedthink config init rl > run.toml
  seedthink config check run.toml
  seedthink config explain rollout.temperature"""


def run(arguments: Sequence[str]) -> int:
    """Dispatch to show, check, explain or init."""
    parser = Parser("seedthink config", EXAMPLES)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="show|check|explain|init")
    for verb, text in (("show", "print every setting of a recipe"), ("check", "say whether recipes are right")):
        sub = verbs.add_parser(verb, help=text)
        sub.add_argument("recipes", nargs="+" if verb == "check" else 1, metavar="RECIPE")
        sub.add_argument("--command", default="", help="rl, sft, eval or generate (default: told by its sections)")
    sub = verbs.add_parser("explain", help="what a key means, what it takes, its default and presets")
    sub.add_argument("key", metavar="KEY")
    sub = verbs.add_parser("init", help="print a commented recipe to start from")
    sub.add_argument("command", metavar="rl|sft|eval|generate")
    chosen = parser.parse_args(arguments)
    return {"show": _show, "check": _check, "explain": _explain, "init": _init}[chosen.verb](chosen)


def command_of(recipe: str, wanted: str = "") -> str:
    """Return the command that a recipe is for.

    It is the one with the fewest keys that takes the recipe as it stands; where none does, the one that knows most of
    its sections, so that `check` complains in the right terms.
    """
    from seedthink.config import COMMANDS
    from seedthink.config.loader import build, read
    from seedthink.config.suggest import did_you_mean
    from seedthink.config.tree import hints, keys
    from seedthink.errors import ConfigError

    if wanted:
        if wanted not in COMMANDS:
            raise ConfigError(f"--command {wanted} is not one of {', '.join(COMMANDS)}{did_you_mean(wanted, COMMANDS)}")
        return wanted
    table = read(recipe)
    for command in sorted(COMMANDS, key=lambda command: len(keys(COMMANDS[command]))):
        with suppress(ConfigError):
            build(COMMANDS[command], table)
            return command
    sections = set(table)
    return max(COMMANDS, key=lambda command: len(sections & set(hints(COMMANDS[command]))))


def _show(chosen: Namespace) -> int:
    from seedthink.config import COMMANDS, load, to_dict

    (recipe,) = chosen.recipes
    print(json.dumps(to_dict(load(recipe, COMMANDS[command_of(recipe, chosen.command)])), indent=2))
    return 0


def _check(chosen: Namespace) -> int:
    from seedthink.config import COMMANDS, load

    for recipe in chosen.recipes:
        command = command_of(recipe, chosen.command)
        load(recipe, COMMANDS[command])
        print(f"{recipe}: fine for seedthink {command}")
    return 0


def _explain(chosen: Namespace) -> int:
    from seedthink.config.explain import explain, in_words
    from seedthink.report.metric_table import related

    found = explain(chosen.key)
    print(in_words(found))
    moved = related(found.key.path)
    if moved:
        print(f"  metrics  {', '.join(entry.name for entry in moved)}")
    return 0


def _init(chosen: Namespace) -> int:
    from seedthink.config.explain import starter

    print(starter(chosen.command), end="")
    return 0
