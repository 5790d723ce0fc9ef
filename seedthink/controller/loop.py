"""The reinforcement-learning loop: nine lines, the same under Ray, torchrun or in one process.

    next -> collect -> score -> credit -> pack -> learn -> publish -> save -> record

Everything a step needs stands in `RlJob`; whatever a step must remember (data cursor, versions) is in its checkpoint,
so that a run is resumed by running it again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

from seedthink.config.commands import RlConfig
from seedthink.controller.groups import WorkerGroup
from seedthink.controller.session import Session
from seedthink.data.sources import Source
from seedthink.errors import RunError
from seedthink.rl.credit import credit, credit_metrics
from seedthink.rl.pack import pack
from seedthink.rl.shaping import build_reward
from seedthink.rollout.collect import Collected, CollectSettings, collect
from seedthink.telemetry.metrics import reduce
from seedthink.telemetry.samples import rows
from seedthink.telemetry.terminal import Terminal
from seedthink.types import Credited, Prompt, SamplingParams, Update, Valued

MINUTE = 60.0


@dataclass
class RlJob:
    """One RL run: settings, the engine's group, the prompts, and the step that has been done last."""

    config: RlConfig
    session: Session
    engine: WorkerGroup
    prompts: Source[Prompt]
    held_out: Sequence[Prompt]
    terminal: Terminal
    step: int = 0
    skipped: int = 0
    gap_max: float = 0.0
    critic_explained: float = 0.0
    before: Mapping[str, Any] | None = None
    last: dict[str, float] = field(default_factory=dict)


def train(job: RlJob) -> None:
    """Runs the remaining steps. Ctrl-C or the time limit ends it after the step at hand, with a checkpoint."""
    reward = build_reward(job.config.algorithm, max_tokens=job.config.rollout.max_tokens)
    span = job.session.run.events.span
    for step in remaining_steps(job):
        with span("step"):
            collected = collect(job.prompts.next, job.engine, job.session.judge, reward, collect_settings(job, step))
            with span("values"):
                valued = score(job.engine, collected)
            credited = credit(valued, job.config.algorithm)
            with span("update_actor"):
                updates = [job.engine.learn(batches) for batches in mini_batches(job, credited, step)]
            with span("param_sync"):
                job.engine.publish()
            job.step = step
            record(job, collected, credited, [update for (update, *_) in updates])
        save_if_due(job)
        evaluate_if_due(job)


def remaining_steps(job: RlJob) -> Iterator[int]:
    """Steps to do, counted from 1, until the last one, the time limit or Ctrl-C."""
    run = job.config.run
    while not run.steps or job.step < run.steps:
        out_of_time = run.time_limit_minutes and job.session.run.seconds >= run.time_limit_minutes * MINUTE
        if job.session.stop.requested or out_of_time:
            return
        job.session.run.events.step = job.step + 1
        yield job.step + 1


def collect_settings(job: RlJob, step: int) -> CollectSettings:
    """What one step asks of the rollout."""
    config = job.config
    return CollectSettings(
        prompts=config.data.prompts_per_step,
        group_size=config.rollout.group_size,
        params=sampling_params(config),
        run_seed=config.run.seed,
        step=step,
        dynamic_sampling=config.algorithm.dynamic_sampling,
        max_refills=config.algorithm.max_refills,
        generate_seconds=config.rollout.deadline_seconds,
        judge_seconds=10 * config.reward.timeout_seconds,
    )


def sampling_params(config: RlConfig) -> SamplingParams:
    """How rollouts are sampled."""
    return SamplingParams(
        max_tokens=config.rollout.max_tokens, temperature=config.rollout.temperature, stop=config.rollout.stop
    )


def score(engine: WorkerGroup, collected: Collected) -> list[list[Valued]]:
    """The networks' view of every sample, group by group."""
    valued = iter(engine.score(list(chain.from_iterable(collected.groups))))
    return [list(islice(valued, len(group))) for group in collected.groups]


def mini_batches(job: RlJob, credited: Sequence[Credited], step: int) -> list[tuple[Any, ...]]:
    """Packed mini-batches of this step, one batch per data index each."""
    config = job.config
    return pack(
        credited,
        token_budget=config.trainer.micro_batch_tokens,
        max_sequence_tokens=config.data.max_prompt_tokens + config.rollout.max_tokens,
        updates_per_rollout=config.algorithm.updates_per_rollout,
        ranks=job.engine.layout.data,
        seed=config.run.seed * 1_000_003 + step,
    )


def record(job: RlJob, collected: Collected, credited: Sequence[Credited], updates: Sequence[Update]) -> None:
    """Writes the step's metrics and samples, and stops a run that cannot learn any more."""
    run, statistics = job.session.run, collected.statistics
    metrics = reduce(statistics.metrics()) | reduce(credit_metrics(credited, job.config.algorithm))
    metrics |= averaged(updates) | run.events.take()
    metrics["training/global_step"] = float(job.step)
    tokens = metrics["rollout/generated_tokens"]
    metrics["perf/throughput"] = tokens / max(statistics.generate_seconds, 1e-9)
    metrics["timing_s/step"] = sum(metrics.get(f"timing_s/{name}", 0.0) for name in _STAGES)
    job.gap_max = max(job.gap_max, metrics.get("rollout/logp_gap_max", 0.0))
    job.last = metrics
    run.record("rl", job.step, metrics)
    run.record_rollouts(job.step, rows(credited, job.session.tokenizer.decode))
    job.terminal.step(job.step, metrics)
    check_skipped(job, job.step, updates, run.rollouts / f"step_{job.step}.jsonl")


_STAGES = ("gen", "reward", "values", "update_actor", "param_sync")


def averaged(updates: Sequence[Update]) -> dict[str, float]:
    """Means over a step's updates. The gap between generator and trainer is the first one's: later the policy moves."""
    if not updates:
        return {"training/updates": 0.0, "training/skipped_steps": 0.0}
    found: dict[str, float] = {}
    for name in updates[0].metrics:
        values = [update.metrics[name] for update in updates if name in update.metrics]
        finite = [value for value in values if math.isfinite(value)]
        if not finite:
            found[name] = math.nan
        else:
            found[name] = max(finite) if name.endswith("_max") else sum(finite) / len(finite)
    first = updates[0].metrics
    found |= {name: value for name, value in first.items() if name.startswith("mismatch/")}
    if "mismatch/logp_gap_max" in first:
        found["rollout/logp_gap_max"], found["rollout/kl"] = first["mismatch/logp_gap_max"], first["mismatch/kl"]
    found["training/updates"] = float(len(updates))
    found["training/skipped_steps"] = float(sum(bool(update.skipped) for update in updates))
    return found


def check_skipped(job: RlJob, step: int, updates: Sequence[Update], where: Path) -> None:
    """RunError after too many updates in a row whose loss or gradient was not finite; `where` holds their samples."""
    limit = job.config.trainer.max_skipped_steps
    for update in updates:
        job.skipped = job.skipped + 1 if update.skipped else 0
        if job.skipped > limit:
            raise RunError(
                f"step {step}: {job.skipped} updates in a row were skipped ({update.skipped}); the samples are in "
                f"{where}, the last checkpoint is whole. Lower policy_optimizer.lr or critic_optimizer.lr, look at the "
                "rewards, or raise trainer.max_skipped_steps"
            )


_REMEMBERED = ("gap_max", "critic_explained", "before")


def save_if_due(job: RlJob) -> None:
    """Checkpoints every so many steps."""
    every = job.config.checkpoint.every_steps
    if every and job.step % every == 0:
        save(job)


def save(job: RlJob) -> Path:
    """Writes the state after `job.step`: weights, optimizers, data cursor. The manifest is written last."""
    extra = {name: getattr(job, name) for name in _REMEMBERED} | {"stage": "rl", "data": job.prompts.state()}
    with job.session.stage("checkpoint"):
        return Path(job.engine.save(job.session.run.checkpoints, job.step, extra, job.config.checkpoint.keep))


def resume(job: RlJob) -> bool:
    """Restores the newest whole checkpoint and drops what the folder holds beyond it; False where there is none."""
    found = job.session.restore(job.engine, "rl", job.config.run.steps)
    if found is None:
        return False
    job.step, extra = found
    job.prompts.restore(extra["data"])
    for name in _REMEMBERED:
        setattr(job, name, extra[name])
    evaluate_if_due(job)  # killed between the checkpoint and the evaluation that follows it
    return True


def evaluate_if_due(job: RlJob) -> None:
    """Held-out accuracy every so many steps, unless a resumed run has it already.

    The last step is evaluated by whoever runs the job.
    """
    every = job.config.evaluation.every_steps
    due = every and job.step % every == 0 and job.step != job.config.run.steps
    if due and not job.session.run.evaluated("rl", job.step):
        evaluate(job)


def evaluate(job: RlJob) -> dict[str, Any] | None:
    """Measures held-out accuracy now and records it; None where the recipe names no held-out problems."""
    config = job.config.evaluation
    params = SamplingParams(
        max_tokens=job.config.rollout.max_tokens, temperature=config.temperature, stop=job.config.rollout.stop
    )
    return job.session.measure(job.engine, "rl", job.step, job.held_out, config.samples, params, job.config.run.seed)
