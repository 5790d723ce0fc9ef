"""Configuration for the reader: one key explained, and a commented recipe to start from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from seedthink.config.algorithm import PRESETS
from seedthink.config.commands import COMMANDS
from seedthink.config.loader import base
from seedthink.config.resolved import to_dict, toml_value
from seedthink.config.suggest import did_you_mean
from seedthink.config.tree import Key, get, keys
from seedthink.errors import ConfigError

# The keys a first recipe shows, with values that a user is likely to change; everything else stays at its default.
_STARTERS: dict[str, dict[str, Any]] = {
    "rl": {
        "run.steps": 200,
        "model.path": "my-model",
        "data.train": [{"kind": "jsonl", "path": "train.jsonl", "family": "math"}],
        "data.eval": [{"kind": "jsonl", "path": "heldout.jsonl", "family": "math"}],
        "data.prompts_per_step": 16,
        "rollout.group_size": 8,
        "rollout.max_tokens": 512,
        "algorithm.preset": "vapo",
        "policy_optimizer.lr": 1e-5,
        "critic_optimizer.lr": 2e-5,
        "evaluation.every_steps": 20,
        "checkpoint.every_steps": 20,
    },
    "sft": {
        "run.steps": 0,
        "model.path": "my-model",
        "data.train": [{"kind": "jsonl", "path": "train.jsonl", "family": "math"}],
        "data.eval": [{"kind": "jsonl", "path": "heldout.jsonl", "family": "math"}],
        "data.epochs": 2.0,
        "data.batch_tokens": 16384,
        "data.max_length": 2048,
        "optimizer.lr": 2e-5,
        "optimizer.warmup_steps": 20,
        "checkpoint.every_steps": 100,
    },
    "eval": {
        "model.path": "my-model",
        "data.eval": [{"kind": "jsonl", "path": "heldout.jsonl", "family": "math"}],
        "generation.max_tokens": 512,
        "generation.temperature": 1.0,
        "evaluation.problems": 200,
        "evaluation.samples": 8,
    },
    "generate": {
        "model.path": "my-model",
        "generation.max_tokens": 512,
        "generation.temperature": 0.7,
        "request.input": "prompts.jsonl",
        "request.output": "answers.jsonl",
    },
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known about one key: where it lives, what it takes, and its value under each preset."""

    key: Key
    commands: tuple[str, ...]
    presets: dict[str, Any]


def explain(path: str) -> Explanation:
    """Look a dotted key up in every command's tree; ConfigError names the nearest keys where there is none."""
    path = path.replace("-", "_")
    having = [command for command, cls in COMMANDS.items() if path in keys(cls)]
    if not having:
        known = {key: None for cls in COMMANDS.values() for key in keys(cls)}
        raise ConfigError(f'unknown key "{path}"{did_you_mean(path, known)}')
    key = keys(COMMANDS[having[0]])[path]
    presets: dict[str, Any] = {}
    if path.startswith("algorithm.") and path != "algorithm.preset":
        presets = {name: get(base(COMMANDS["rl"], name), path) for name in PRESETS}
    return Explanation(key, tuple(having), presets)


def starter(command: str) -> str:
    """Return a commented recipe for a command: the dozen keys most users change, each with its documentation."""
    if command not in _STARTERS:
        raise ConfigError(f'there is no recipe for "{command}"; recipes are for {", ".join(_STARTERS)}')
    lines = [f"# {COMMANDS[command].__doc__} Run it: seedthink {command} THIS_FILE"]
    lines += ["# Every other key has a default: seedthink config explain KEY, or seedthink config show THIS_FILE"]
    section = ""
    known = keys(COMMANDS[command])
    for path, value in _STARTERS[command].items():
        head, _, name = path.rpartition(".")
        if head != section:
            lines += ["", f"[{head}]"]
            section = head
        lines += [f"# {known[path].doc}", f"{name} = {toml_value(value)}"]
    return "\n".join(lines) + "\n"


def in_words(found: Explanation) -> str:
    """Write an explanation as the lines that `seedthink config explain` prints."""
    default = json.dumps(to_dict(found.key.default))
    lines = [f"{found.key.path} = {default}", f"  {found.key.doc}", f"  takes    {found.key.allowed}"]
    lines.append(f"  used by  {', '.join(f'seedthink {command}' for command in found.commands)}")
    if found.presets:
        groups: dict[str, list[str]] = {}
        for name, value in found.presets.items():
            groups.setdefault(json.dumps(to_dict(value)), []).append(name)
        lines.append("  presets  " + "; ".join(f"{value} in {', '.join(names)}" for value, names in groups.items()))
    return "\n".join(lines)
