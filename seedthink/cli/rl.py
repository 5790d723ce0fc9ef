"""`seedthink rl`: reinforcement learning from verifiable rewards."""

from __future__ import annotations

from collections.abc import Sequence

from seedthink.cli.recipe_command import finish, going_on, resolve
from seedthink.config import RlConfig

EXAMPLES = """  seedthink rl recipes/quickstart/rl.toml --model.path my-model
  seedthink rl run.toml --algorithm.preset grpo --run.name grpo --rollout.group-size 16
  seedthink rl run.toml --dry-run"""


def run(arguments: Sequence[str]) -> int:
    """Train by a recipe, write the report, and say where things are."""
    config, switches = resolve(RlConfig, "rl", EXAMPLES, arguments)
    if config is not None:
        from seedthink.controller.run import run_rl
        from seedthink.controller.spmd import follows

        if follows(config):
            return 0
        return finish(run_rl(config, switches.verbose), going_on("rl", arguments, config.run.resume))
    return 0
