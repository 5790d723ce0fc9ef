"""Health notes: what a metric says about the run, in words and with the setting to look at.

Thresholds are where practitioners start to look, not proofs of trouble. A note is about one step; `worst` joins the
notes of many steps so that a report names each trouble once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Note:
    """A warning about one metric at one step."""

    metric: str
    text: str
    step: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """When a metric deserves a note. `text` may use {value}, {percent} and {first} (the run's first value)."""

    metric: str
    when: Callable[[float, float], bool]
    text: str


RULES: tuple[Rule, ...] = (
    Rule(
        "rollout/groups_all_equal",
        lambda now, first: now > 0.6,
        "no reward variance in {percent} of groups: problems are too easy or too hard (data.train, rollout.group_size)",
    ),
    Rule(
        "response_length/clip_ratio",
        lambda now, first: now > 0.1,
        "truncated {percent} of answers at the limit in rollout.max_tokens",
    ),
    Rule(
        "actor/entropy",
        lambda now, first: now < 0.1 * first and now < 0.1,
        "entropy fell from {first} to {value} nats: exploration is ending (algorithm.clip_high, entropy_weight)",
    ),
    Rule(
        "actor/entropy",
        lambda now, first: now > 3 * first and now > 1,
        "entropy rose from {first} to {value} nats: the policy dissolves (policy_optimizer.lr, algorithm.clip_high)",
    ),
    Rule(
        "actor/ppo_kl",
        lambda now, first: abs(now) > 0.1,
        "the policy moved {value} nats in one step: lower policy_optimizer.lr or algorithm.updates_per_rollout",
    ),
    Rule(
        "actor/pg_clipfrac",
        lambda now, first: now > 0.3,
        "{percent} of tokens hit the clip: lower policy_optimizer.lr or algorithm.updates_per_rollout",
    ),
    Rule(
        "critic/vf_explained_var",
        lambda now, first: now < -0.25,  # a little below 0 is the noise of one batch
        "the critic explains less than a constant would ({value}): train it longer (value_pretraining.max_steps)",
    ),
    Rule(
        "rollout/logp_gap_max",
        lambda now, first: now > 0.1,
        "generator and trainer log-probs differ by up to {value} nats (usual: below 0.02, exact mode: 0)",
    ),
    Rule(
        "verifier/errors",
        lambda now, first: now > 0,
        "the verifier failed on {value} answers of a step; they leave the batch (see logs/)",
    ),
    Rule(
        "verifier/timeouts",
        lambda now, first: now > 0,
        "the verifier ran out of time on {value} answers of a step; they leave the batch (reward.timeout_seconds)",
    ),
    Rule(
        "training/skipped_steps",
        lambda now, first: now > 0,
        "{value} optimizer steps were skipped: loss or gradient was not finite (offending samples are in rollouts/)",
    ),
)


def notes(metrics: Mapping[str, float], first: Mapping[str, float] | None = None, exact: bool = False) -> list[Note]:
    """Return the notes about one step. `first` holds the run's first values; `exact` promises a log-prob gap of 0."""
    step = int(metrics.get("step", 0))
    found: list[Note] = []
    for rule in RULES:
        value = metrics.get(rule.metric)
        start = (first or {}).get(rule.metric, value)
        if value is not None and start is not None and rule.when(value, start):
            found.append(Note(rule.metric, _filled(rule.text, value, start), step))
    gap = metrics.get("rollout/logp_gap_max") or 0.0
    if exact and gap > 0:
        text = f"generator and trainer log-probs differ by up to {gap:.3g} nats although exact mode promises 0 bits"
        found = [note for note in found if note.metric != "rollout/logp_gap_max"]
        found.append(Note("rollout/logp_gap_max", text, step))
    return found


def worst(steps: Iterable[Mapping[str, float]], exact: bool = False) -> list[tuple[Note, int]]:
    """Return each metric's latest note over a run, with the number of steps that had one, most frequent first."""
    first: dict[str, float] = {}
    latest: dict[str, Note] = {}
    counts: dict[str, int] = {}
    for metrics in steps:
        for name, value in metrics.items():
            if value is not None:
                first.setdefault(name, value)
        for note in notes(metrics, first, exact):
            latest[note.metric] = note
            counts[note.metric] = counts.get(note.metric, 0) + 1
    ranked = sorted(latest, key=lambda metric: -counts[metric])
    return [(latest[metric], counts[metric]) for metric in ranked]


def _filled(text: str, value: float, first: float) -> str:
    return text.format(value=f"{value:.3g}", percent=f"{100 * value:.0f} %", first=f"{first:.3g}")
