"""`seedthink sft`: supervised fine-tuning on chains of thought."""

from __future__ import annotations

from collections.abc import Sequence

from seedthink.cli.recipe_command import finish, going_on, resolve
from seedthink.config import SftConfig

EXAMPLES = """  seedthink sft recipes/quickstart/sft.toml --model.path my-model
  seedthink sft run.toml --data.train mine.jsonl --run.steps 0 --data.epochs 2
  seedthink sft run.toml --dry-run"""


def run(arguments: Sequence[str]) -> int:
    """Train by a recipe, write the report, and say where things are."""
    config, switches = resolve(SftConfig, "sft", EXAMPLES, arguments)
    if config is not None:
        from seedthink.controller.run import run_sft
        from seedthink.controller.spmd import follows

        if follows(config):
            return 0
        return finish(run_sft(config, switches.verbose), going_on("sft", arguments, config.run.resume))
    return 0
