"""Settings that contradict each other, and keys that would change nothing in the chosen mode: errors, both.

A key set on purpose and silently ignored costs its owner a training run. Only keys that a recipe or a flag sets count;
defaults never do.
"""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatch
from typing import Any

from seedthink.config.algorithm import ineffective, without_effect
from seedthink.config.commands import RlConfig, SftConfig
from seedthink.config.convert import convert
from seedthink.config.tree import get, keys
from seedthink.errors import ConfigError

_MEASURED = ("explained_variance", "evaluations", "evaluate_every", "held_out_batches")
# (pattern of keys, why they have no effect, what to do)
Rule = tuple[str, str, str]


def check(config: Any, explicit: frozenset[str] = frozenset()) -> None:
    """Raise ConfigError for a value out of range, a contradiction, or an explicit key without effect."""
    cls: type = type(config)
    for path, key in keys(cls).items():
        convert(get(config, path), key.hint, path)
    for message in contradictions(config):
        raise ConfigError(message)
    algorithm = getattr(config, "algorithm", None)
    meant = explicit | ({f"algorithm.{key}" for key in ineffective(algorithm)} if algorithm else set())
    for pattern, reason, remedy in rules(config):
        for path in sorted(meant):
            if fnmatch(path, pattern):
                raise ConfigError(f"{path} has no effect: {reason}; {remedy}")


def contradictions(config: Any) -> Iterator[str]:
    """Yield what cannot be: settings that no run could follow."""
    if isinstance(config, RlConfig):
        if config.rollout.top_k or config.rollout.top_p < 1:
            key = "top_k" if config.rollout.top_k else "top_p"
            yield (
                f"rollout.{key} = {getattr(config.rollout, key)} is not allowed in rl: a cut renormalises the policy "
                "that samples, and its log-probs would lie. Remove it; rollout.temperature sharpens sampling"
            )
        if config.rollout.temperature == 0:
            yield "rollout.temperature = 0 is not allowed in rl: all answers of a group would be the same; take 1.0"
        if not config.run.steps and not config.run.time_limit_minutes:
            yield "run.steps = 0 leaves the end to run.time_limit_minutes, which is 0: set one of them"
        if config.rollout.group_size == 1 and config.algorithm.grouped:
            yield (
                f'rollout.group_size = 1 is not allowed with algorithm.estimator = "{config.algorithm.estimator}": '
                "a group of one is its own baseline and teaches nothing; 8 is usual, 2 the least"
            )
    if config.parallel.numerics != "exact":
        yield (
            f'parallel.numerics = "{config.parallel.numerics}" does not exist yet: every product and every sum over '
            'ranks is exact; remove it, or set "exact"'
        )
    for section in ("policy_optimizer", "critic_optimizer", "optimizer"):
        optimizer = getattr(config, section, None)
        if optimizer and optimizer.schedule != "constant" and not config.run.steps:
            yield f'{section}.schedule = "{optimizer.schedule}" needs an end to decay to: set run.steps'


def rules(config: Any) -> Iterator[Rule]:
    """Yield the keys that the rest of the configuration makes meaningless."""
    if isinstance(config, RlConfig):
        yield from (
            (f"algorithm.{key}", reason, "remove it") for key, reason in without_effect(config.algorithm).items()
        )
        yield from _critic_rules(config)
    if isinstance(config, SftConfig) and config.run.steps:
        yield "data.epochs", f"run.steps = {config.run.steps} sets the end", "remove it, or set run.steps = 0"
    for section in ("policy_optimizer", "critic_optimizer", "optimizer"):
        optimizer = getattr(config, section, None)
        if optimizer and optimizer.schedule == "constant":
            yield f"{section}.min_lr_ratio", f'{section}.schedule = "constant"', "remove it, or choose cosine or linear"
    if getattr(config, "controller", None) and config.controller.kind == "local":
        for key in ("restarts", "heartbeat_seconds", "step_deadline_seconds"):
            yield f"controller.{key}", 'controller.kind = "local" has no workers', 'remove it, or set kind = "ray"'
    if getattr(config, "reward", None) and config.reward.function:
        yield "reward.verifiers", "reward.function judges every answer", "remove one of them"
    if getattr(config, "data", None) and _puzzles_only(config.data):
        yield "data.system", "every source is a puzzle", "remove it; it goes before problems that come from files"


def _puzzles_only(data: Any) -> bool:
    sources = (*getattr(data, "train", ()), *data.eval)
    return bool(sources) and all(source.kind == "puzzle" for source in sources)


def _critic_rules(config: RlConfig) -> Iterator[Rule]:
    if not config.algorithm.critic:
        reason = f'algorithm.preset = "{config.algorithm.preset}" trains no critic'
        for section in ("critic_optimizer", "value_pretraining"):
            yield f"{section}.*", reason, "remove it, or choose a preset with a critic (vapo, ppo)"
    elif config.value_pretraining.critic_path:
        for key in ("max_steps", *_MEASURED):
            yield (
                f"value_pretraining.{key}",
                "value_pretraining.critic_path brings a trained critic",
                "remove one of them",
            )
    elif not config.value_pretraining.max_steps:
        for key in _MEASURED:
            reason = "value_pretraining.max_steps = 0 leaves value pretraining out"
            yield f"value_pretraining.{key}", reason, "remove it, or raise max_steps"
