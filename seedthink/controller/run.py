"""The commands `sft`, `rl` and `eval` as functions: a configuration in, a run folder out.

Each opens its folder, starts its workers under supervision, resumes from the newest checkpoint by default, and leaves
a summary and an exported model behind. Ray or one process is decided in `session.workers`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from seedthink.config.commands import EvalConfig, RlConfig, SftConfig
from seedthink.config.sections import OptimizerConfig
from seedthink.controller.groups import WorkerGroup
from seedthink.controller.limits import check_apart, check_examples, check_prompts
from seedthink.controller.loop import RlJob, evaluate, resume, save, train
from seedthink.controller.session import Session, open_session, view, workers
from seedthink.controller.sft import SftJob, evaluate_sft, resume_sft, save_sft, train_sft
from seedthink.controller.sources import Training, asked, held_out_prompts, training_prompts, training_texts
from seedthink.controller.supervision import supervise
from seedthink.controller.value_pretraining import Lessons, forget_lessons, pretrain_value, resume_lessons
from seedthink.data.sft import SftExample
from seedthink.engine.engine import EngineSettings
from seedthink.errors import ConfigError
from seedthink.telemetry.summary import Summary
from seedthink.types import Prompt, SamplingParams

Config = TypeVar("Config", RlConfig, SftConfig, EvalConfig)


def run_rl(config: RlConfig, verbose: bool = False) -> Path:
    """Reinforcement learning by the recipe; returns the run folder.

    A folder that holds checkpoints is gone on with. The folder gets `export/` (a Hugging Face model), `critic/` where
    the algorithm has one, and `summary.json`; `seedthink report` writes its report.
    """
    config = _named(config, "rl")
    with open_session(config, "rl", verbose) as session:
        if session.finished(config.run.steps, config.run.time_limit_minutes):
            return session.run.path
        held_out = _held_out(config, session)
        problems = training_prompts(config.data, session.tokenizer, config.run.seed)
        check_apart(problems.items, held_out)
        held_out = asked(held_out, config.evaluation.thinking, session.tokenizer)
        check_prompts([*held_out, *problems.items], session.model, config.rollout.max_tokens, "rollout.max_tokens")
        session.judge.load({prompt.family for prompt in [*held_out, *problems.items]})
        settings = rl_engine_settings(config, session.run.logs)

        def build() -> AbstractContextManager[WorkerGroup]:
            return workers(session, config, settings, config.algorithm)

        _supervised(config, session, build, partial(_rl, config, session, problems, held_out, verbose))
        return session.run.path


def run_sft(config: SftConfig, verbose: bool = False) -> Path:
    """Supervised fine-tuning by the recipe; returns the run folder, which gets `export/` and `summary.json`."""
    config = _named(config, "sft")
    with open_session(config, "sft", verbose) as session:
        held_out = _held_out(config, session)
        texts = training_texts(config.data, session.tokenizer, config.run.seed)
        check_apart(texts.items, held_out)
        check_examples(texts.items, session.model)
        if held_out:
            held_out = asked(held_out, config.evaluation.thinking, session.tokenizer)
            check_prompts(held_out, session.model, config.generation.max_tokens, "generation.max_tokens")
            session.judge.load({prompt.family for prompt in held_out})
        total = _sft_steps(config, texts)
        if session.finished(total, config.run.time_limit_minutes):
            return session.run.path
        settings = EngineSettings(
            model=Path(config.model.path),
            dtype=config.model.dtype,
            tuner=config.model.tuner,
            logs=session.run.logs,
            rollout=replace(config.generation, temperature=1.0),
            policy_optimizer=config.optimizer,
            critic_optimizer=config.optimizer,
            total_updates=total,
            critic=False,
            micro_batch_tokens=config.trainer.micro_batch_tokens,
            memory=config.memory,
            router=config.router,
        )

        def build() -> AbstractContextManager[WorkerGroup]:
            return workers(session, config, settings, None)

        _supervised(config, session, build, partial(_sft, config, session, texts, held_out, total, verbose))
        return session.run.path


def run_eval(config: EvalConfig, verbose: bool = False) -> Mapping[str, Any]:
    """Held-out accuracy of a model folder; returns the summary that `summary.json` in the run folder holds."""
    config = _named(config, "eval")
    with open_session(config, "eval", verbose, stop_at_once=True) as session:
        settings = EngineSettings(
            model=Path(config.model.path),
            dtype=config.model.dtype,
            tuner=config.model.tuner,
            logs=session.run.logs,
            rollout=config.generation,
            policy_optimizer=OptimizerConfig(),
            critic_optimizer=OptimizerConfig(),
            total_updates=0,
            critic=False,
            micro_batch_tokens=0,
        )
        generation, wanted = config.generation, config.evaluation
        if not config.data.eval:
            raise ConfigError("data.eval is empty; name held-out problems, e.g. --data.eval puzzle:countdown")
        prompts = asked(_held_out(config, session), wanted.thinking, session.tokenizer)
        check_prompts(prompts, session.model, generation.max_tokens, "generation.max_tokens")
        session.judge.load({prompt.family for prompt in prompts})
        params = SamplingParams(
            max_tokens=generation.max_tokens,
            temperature=generation.temperature,
            top_k=generation.top_k,
            top_p=generation.top_p,
            stop=generation.stop,
        )
        with workers(session, config, settings, None) as engine:
            found = session.evaluate(engine, prompts, wanted.samples, params, config.run.seed).summary()
        session.run.record_evaluation("eval", 0, found)
        _summarise(session, Summary(command="eval", status="finished", steps=0, accuracy_after=found))
        return found


def rl_engine_settings(config: RlConfig, logs: Path) -> EngineSettings:
    """What the workers of an RL run are built from."""
    algorithm = config.algorithm
    return EngineSettings(
        model=Path(config.model.path),
        dtype=config.model.dtype,
        tuner=config.model.tuner,
        logs=logs,
        rollout=config.rollout,
        policy_optimizer=config.policy_optimizer,
        critic_optimizer=config.critic_optimizer,
        total_updates=config.run.steps * algorithm.updates_per_rollout,
        critic=algorithm.critic,
        critic_path=config.value_pretraining.critic_path,
        reference=algorithm.reference,
        recompute=algorithm.recompute_proximal,
        micro_batch_tokens=config.trainer.micro_batch_tokens,
        memory=config.memory,
        router=config.router,
    )


def _held_out(config: RlConfig | SftConfig | EvalConfig, session: Session) -> list[Prompt]:
    return held_out_prompts(config.data, session.tokenizer, config.evaluation.problems, config.run.seed)


def _rl(
    config: RlConfig,
    session: Session,
    problems: Training[Prompt],
    held_out: Sequence[Prompt],
    verbose: bool,
    engine: WorkerGroup,
) -> None:
    with view(session, "rl", config.run.steps, verbose) as terminal:
        job = RlJob(config, session, engine, problems.stream(), held_out, terminal)
        if not resume(job):
            if not begin(job):
                terminal.say("stopped during value pretraining; the same command goes on from there")
                return
            save(job)
            forget_lessons(job)
        with session.stage("rl"):
            train(job)
        save(job)
        finished = (bool(config.run.steps) and job.step >= config.run.steps) or not session.stop.requested
        if not finished:
            terminal.say(f"stopped after step {job.step}; the same command goes on from there")
            return
        after = evaluate(job)
        _finish_rl(job, after)


def begin(job: RlJob) -> bool:
    """What comes before the first step: accuracy, and lessons for a critic that needs some; False after Ctrl-C."""
    lessons = resume_lessons(job)
    if lessons is None:
        job.session.run.begin_again()
        job.before = evaluate(job)
        lessons = Lessons()
    if job.config.algorithm.critic and not job.config.value_pretraining.critic_path:
        with job.session.stage("value"):
            return pretrain_value(job, lessons)
    return True


def _finish_rl(job: RlJob, after: Mapping[str, Any] | None) -> None:
    """Export, summary and report of a finished run."""
    session, run = job.session, job.session.run
    exported = job.engine.export(run.path / "export", job.config.checkpoint.export_dtype)
    counts = job.engine.parameters()
    _summarise(
        session,
        Summary(
            command="rl",
            status="finished",
            steps=job.step,
            accuracy_before=job.before,
            accuracy_after=after,
            value_explained=job.critic_explained,
            logp_gap_max=job.gap_max,
            tokens_per_second=job.last.get("perf/throughput", math.nan),
            export=str(exported),
            **counts,
        ),
    )


def _sft(
    config: SftConfig,
    session: Session,
    texts: Training[SftExample],
    held_out: Sequence[Prompt],
    total: int,
    verbose: bool,
    engine: WorkerGroup,
) -> None:
    with view(session, "sft", total, verbose) as terminal:
        job = SftJob(config, session, engine, texts.stream(), held_out, terminal, total)
        resume_sft(job)
        with session.stage("sft"):
            train_sft(job)
        save_sft(job)
        if session.stop.requested and job.step < total:
            terminal.say(f"stopped after step {job.step}; the same command goes on from there")
            return
        after = evaluate_sft(job)
        exported = engine.export(session.run.path / "export", config.checkpoint.export_dtype)
        counts = engine.parameters()
        summary = Summary(
            command="sft", status="finished", steps=job.step, accuracy_after=after, export=str(exported), **counts
        )
        _summarise(session, summary)


def _sft_steps(config: SftConfig, texts: Training[SftExample]) -> int:
    """Steps of an SFT run: as set, or what `data.epochs` passes over the texts take; 0 where time alone ends it."""
    if config.run.steps:
        return config.run.steps
    if config.run.time_limit_minutes:
        return 0
    tokens = sum(len(example.tokens_T) for example in texts.items)
    return max(1, math.ceil(config.data.epochs * tokens / config.data.batch_tokens))


def _supervised(
    config: RlConfig | SftConfig,
    session: Session,
    build: Callable[[], AbstractContextManager[WorkerGroup]],
    run: Callable[[WorkerGroup], None],
) -> None:
    restarts = 0 if session.hub else config.controller.restarts  # ranks are started again by who launched them
    supervise(build, run, restarts=restarts, say=lambda text: session.say(text))


def _summarise(session: Session, summary: Summary) -> None:
    seconds = {name: round(spent, 3) for name, spent in session.seconds.items()}
    seconds["total"] = round(session.run.seconds, 3)
    session.memory.sample()
    whole = replace(summary, seconds=seconds, peak_rss_bytes=session.memory.peak_bytes)
    session.run.write_summary(whole.to_dict())


def _named(config: Config, command: str) -> Config:
    """The configuration with a run name: the recipe's, or the command's."""
    return config if config.run.name else replace(config, run=replace(config.run, name=command))
