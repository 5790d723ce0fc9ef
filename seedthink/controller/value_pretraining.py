"""Teaching the critic on the frozen starting policy, before the policy moves (VC-PPO, arXiv 2503.01491; VAPO).

Each step samples a batch from the frozen policy. The critic is first measured on it - the batch is new to it, so its
explained variance is held-out - and then fits the Monte-Carlo returns. It ends when explained variance is high enough
and flat over the last evaluations: as good as this much data makes it, without learning the batches by heart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from seedthink.controller.loop import RlJob, averaged, collect_settings, mini_batches, score
from seedthink.rl.credit import credit, credit_metrics
from seedthink.rl.shaping import build_reward
from seedthink.rollout.collect import collect
from seedthink.telemetry.metrics import reduce

FLAT = 0.05  # explained variance is flat when its last evaluations lie within this of each other
_SEED_SHIFT = 1_000_000  # keeps the samples of pretraining apart from those of the steps that follow


def pretrain_value(job: RlJob) -> float:
    """Runs value pretraining and stores the critic in the run folder; returns the last explained variance.

    Takes at most `value_pretraining.max_steps` rollout batches. Group filters are off: a critic learns from every
    answer.
    """
    config = job.config.value_pretraining
    algorithm = replace(job.config.algorithm, dynamic_sampling=False, overlong_filter=False, gae_lambda_critic=1.0)
    reward = build_reward(algorithm, max_tokens=job.config.rollout.max_tokens)
    measured: list[float] = []
    for step in range(1, config.max_steps + 1):
        if done(measured, config.explained_variance, config.evaluations) or job.session.stop.requested:
            break
        settings = replace(collect_settings(job, _SEED_SHIFT + step), dynamic_sampling=False)
        collected = collect(job.prompts.next, job.engine, job.session.judge, reward, settings)
        credited = credit(score(job.engine, collected), algorithm)
        metrics = reduce(collected.statistics.metrics()) | reduce(credit_metrics(credited, algorithm))
        measured.append(metrics["critic/vf_explained_var"])
        updates = [job.engine.learn_value(batches) for batches in mini_batches(job, credited, _SEED_SHIFT + step)]
        metrics |= averaged([update for (update, *_) in updates]) | job.session.run.events.take()
        job.session.run.record("value", step, metrics)
        job.terminal.step(step, metrics, "value", config.max_steps)
    job.engine.export_critic(job.session.run.path / "critic")
    return measured[-1] if measured else 0.0


def done(measured: Sequence[float], wanted: float, evaluations: int) -> bool:
    """Whether the last `evaluations` explained variances are all at least `wanted` and within `FLAT` of each other."""
    last = measured[-evaluations:]
    return len(last) == evaluations and min(last) >= wanted and max(last) - min(last) <= FLAT
