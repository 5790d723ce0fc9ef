"""`seedthink.train_rl`: reinforcement learning from Python, with a user's own model, reward and data.

seedthink.train_rl("my-model", "my_rewards:score", "problems.jsonl", run__steps=50, rollout__group_size=8)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from seedthink.config.commands import RlConfig
from seedthink.config.loader import load
from seedthink.controller.run import run_rl
from seedthink.errors import ConfigError


def train_rl(
    model: str | Path,
    reward_fn: str | Callable[..., Any],
    data: str | Path,
    *,
    recipe: str | Path | None = None,
    **overrides: Any,
) -> Path:
    """Trains the policy in the folder `model` and returns the run folder.

    `reward_fn` is "module:function" or a function of a module: (prompt dict, completion text) -> float in 0..1 or a
    dict of parts. `data` is a JSONL or parquet file with `prompt` and `answer`. Settings are keywords with `__` for the
    dot (`policy_optimizer__lr=1e-5`), on top of `recipe` where one is given. ConfigError names an unknown setting.
    """
    settings = {name.replace("__", "."): value for name, value in overrides.items()}
    kind = "parquet" if str(data).endswith(".parquet") else "jsonl"
    settings |= {
        "model.path": str(model),
        "reward.function": reward_fn if isinstance(reward_fn, str) else importable(reward_fn),
        "data.train": [{"kind": kind, "path": str(data), "family": "custom"}],
    }
    return run_rl(load(recipe, RlConfig, settings))


def importable(function: Callable[..., Any]) -> str:
    """The "module:function" by which verifier processes find a function; ConfigError where they could not."""
    name, module = getattr(function, "__qualname__", ""), getattr(function, "__module__", "")
    if not name or not module or module == "__main__" or "<" in name or "." in name:
        raise ConfigError(
            f"reward_fn {name or function!r} cannot be imported by verifier processes; put it at the top level of a "
            'module of its own and pass it, or "module:function"'
        )
    return f"{module}:{name}"
