"""`seedthink eval`: accuracy of a model on held-out problems."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from seedthink.cli.recipe_command import resolve
from seedthink.config import EvalConfig

EXAMPLES = """  seedthink eval --model.path runs/quickstart/export --data.eval puzzle:countdown
  seedthink eval run.toml --evaluation.problems 500 --evaluation.samples 8
  seedthink eval run.toml --evaluation.thinking empty"""


def run(arguments: Sequence[str]) -> int:
    """Evaluate by a recipe and print accuracy per family."""
    config, switches = resolve(EvalConfig, "eval", EXAMPLES, arguments)
    if config is not None:
        from seedthink.controller.run import run_eval
        from seedthink.controller.spmd import follows

        if follows(config):
            return 0
        for line in in_words(run_eval(config, switches.verbose)):
            print(line)
    return 0


def in_words(found: Mapping[str, Any]) -> list[str]:
    """Return one line per family, all problems first."""
    entries = {"all problems": found, **found.get("families", {})}
    width = max(map(len, entries))
    return [
        f"{name:{width}}  {100 * entry['mean']:5.1f} %  ({100 * entry['low']:.1f} to {100 * entry['high']:.1f})  "
        f"pass@{entry['k']} {100 * entry['pass_at_k']:.1f} %  {entry['problems']} problems"
        for name, entry in entries.items()
    ]
