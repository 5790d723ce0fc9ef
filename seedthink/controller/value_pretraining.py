"""Teaching the critic on the frozen starting policy, before the policy moves (VC-PPO, arXiv 2503.01491; VAPO).

Some batches of rollouts are kept apart, and the critic's explained variance is measured on them every few steps; each
step fits the Monte-Carlo returns of a new batch. It ends when explained variance is high enough and flat over the last
measurements: as good as this policy's rollouts make it, without learning them by heart.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from seedthink.config.algorithm import AlgorithmConfig
from seedthink.controller.loop import RlJob, averaged, check_skipped, collect_settings, mini_batches, score
from seedthink.rl.credit import credit, credit_metrics
from seedthink.rl.shaping import build_reward
from seedthink.rollout.collect import Collected, collect
from seedthink.telemetry.metrics import reduce
from seedthink.telemetry.samples import rows

FLAT = 0.05  # explained variance is flat when its last measurements lie within this of each other
EXPLAINED, HELD_OUT = "critic/vf_explained_var", "critic/vf_explained_var_held_out"
# What enters the seeds: keeps the samples of pretraining apart from those of the steps that follow.
_SEED_SHIFT, _HELD_OUT_SHIFT = 1_000_000, 2_000_000


@dataclass
class Lessons:
    """How far value pretraining has come: steps done, and the held-out explained variances measured so far."""

    step: int = 0
    measured: list[float] = field(default_factory=list)


def pretrain_value(job: RlJob, lessons: Lessons) -> bool:
    """Goes on from `lessons` and stores the critic in the run folder; False, with a checkpoint, after Ctrl-C.

    Takes at most `value_pretraining.max_steps` rollout batches. Group filters are off: a critic learns from every
    answer.
    """
    config, session = job.config.value_pretraining, job.session
    algorithm = replace(job.config.algorithm, dynamic_sampling=False, overlong_filter=False, gae_lambda_critic=1.0)
    cursor = job.prompts.state()
    held_out = [sample(job, algorithm, _HELD_OUT_SHIFT + n) for n in range(config.held_out_batches)]
    if lessons.step:
        job.prompts.restore(cursor)
    while lessons.step < config.max_steps and not finished(
        lessons.measured, config.explained_variance, config.evaluations
    ):
        if session.stop.requested:
            save_lessons(job, lessons)
            return False
        lessons.step += 1
        collected = sample(job, algorithm, _SEED_SHIFT + lessons.step)
        credited = credit(score(job.engine, collected), algorithm)
        metrics = reduce(collected.statistics.metrics()) | reduce(credit_metrics(credited, algorithm))
        batches = mini_batches(job, credited, _SEED_SHIFT + lessons.step)
        updates = [job.engine.learn_value(batch) for batch in batches]
        metrics |= averaged([update for (update, *_) in updates])
        if lessons.step % config.evaluate_every == 0:
            metrics[HELD_OUT] = foresight(job, held_out, algorithm)
            lessons.measured.append(metrics[HELD_OUT])
        session.run.record("value", lessons.step, metrics | session.run.events.take())
        job.terminal.step(lessons.step, metrics, "value", config.max_steps)
        if any(update.skipped for (update, *_) in updates):
            kept = session.run.record_skipped(lessons.step, rows(credited, session.tokenizer.decode))
            check_skipped(job, lessons.step, [update for (update, *_) in updates], kept)
        every = job.config.checkpoint.every_steps
        if every and lessons.step % every == 0:
            save_lessons(job, lessons)
    job.engine.export_critic(session.run.path / "critic")
    job.critic_explained = lessons.measured[-1] if lessons.measured else 0.0
    return True


def sample(job: RlJob, algorithm: AlgorithmConfig, step: int) -> Collected:
    """One batch of the frozen policy's rollouts, judged; `step` enters their seeds."""
    reward = build_reward(algorithm, max_tokens=job.config.rollout.max_tokens)
    settings = replace(collect_settings(job, step), dynamic_sampling=False)
    return collect(job.prompts.next, job.engine, job.session.judge, reward, settings)


def foresight(job: RlJob, held_out: Sequence[Collected], algorithm: AlgorithmConfig) -> float:
    """Explained variance of the critic's values over all tokens of the held-out batches."""
    groups = [group for collected in held_out for group in score(job.engine, collected)]
    return reduce(credit_metrics(credit(groups, algorithm), algorithm))[EXPLAINED]


def finished(measured: Sequence[float], wanted: float, evaluations: int) -> bool:
    """Whether the last `evaluations` explained variances are all at least `wanted` and within `FLAT` of each other."""
    last = measured[-evaluations:]
    return len(last) == evaluations and min(last) >= wanted and max(last) - min(last) <= FLAT


def save_lessons(job: RlJob, lessons: Lessons) -> None:
    """Writes the critic half taught, so that pretraining too goes on where it stopped."""
    extra = {"before": job.before, "measured": lessons.measured, "data": job.prompts.state()}
    job.engine.save(job.session.run.checkpoints / "value", lessons.step, extra, keep=1)


def forget_lessons(job: RlJob) -> None:
    """Removes the half-taught critic, once the run has a checkpoint of its own."""
    shutil.rmtree(job.session.run.checkpoints / "value", ignore_errors=True)


def resume_lessons(job: RlJob) -> Lessons | None:
    """Restores a half-taught critic; None where there is none."""
    found = job.session.restore(job.engine, "value", job.config.value_pretraining.max_steps, folder="value")
    if found is None:
        return None
    step, extra = found
    job.prompts.restore(extra["data"])
    job.before = extra["before"]
    return Lessons(step, list(extra["measured"]))
