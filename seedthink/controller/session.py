"""What every run of a command shares: its folder, tokenizer, workers, judges, and the signs it gives of itself.

`open_session` opens the run folder and starts the judges; `workers` starts the engine: on the ranks that torchrun or
mpirun started, on Ray, or in this process. Both are context managers, so that whatever ends a run, no process is left
behind.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seedthink.checkpoint.store import CheckpointStore
from seedthink.config.algorithm import AlgorithmConfig
from seedthink.config.commands import RlConfig, SftConfig
from seedthink.config.sections import ControllerConfig, RewardConfig
from seedthink.controller.evaluation import Evaluation, summarise
from seedthink.controller.groups import WorkerGroup
from seedthink.controller.layouts import layout_of_run
from seedthink.controller.local_group import LocalGroup
from seedthink.controller.signals import StopSignal
from seedthink.controller.spmd import leading, threads_of
from seedthink.controller.spmd_group import SpmdGroup
from seedthink.controller.worker import EngineWorker
from seedthink.data.tokenizer import Tokenizer
from seedthink.engine.engine import EngineSettings
from seedthink.engine.model_io import read_config
from seedthink.engine.router_balance import check_router
from seedthink.errors import ConfigError
from seedthink.kernels.build import build_info
from seedthink.models.config import ModelConfig
from seedthink.parallel.control import Hub
from seedthink.parallel.layout import Layout
from seedthink.rewards.pool import JudgePool
from seedthink.rollout.collect import CollectSettings, collect
from seedthink.telemetry.folder import RunFolder, open_run
from seedthink.telemetry.log import configure
from seedthink.telemetry.memory import MemorySampler
from seedthink.telemetry.terminal import Terminal
from seedthink.types import Prompt, SamplingParams

EVALUATION_STEP = -1  # the step that enters the seeds of evaluations: the same samples before and after training


@dataclass
class Session:
    """One command at work on one run folder. `seconds` sums up the time of each stage."""

    run: RunFolder
    model: ModelConfig
    tokenizer: Tokenizer
    judge: JudgePool
    stop: StopSignal
    memory: MemorySampler
    hub: Hub | None = None  # the other ranks of a torchrun or mpirun launch
    layout: Layout = field(default_factory=Layout)
    say: Callable[[str], None] = print
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside to `seconds[name]`."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began

    def evaluate(
        self, engine: WorkerGroup, prompts: Sequence[Prompt], samples: int, params: SamplingParams, seed: int
    ) -> Evaluation:
        """Accuracy of the engine's current weights: `samples` answers to each prompt, always with the same seeds."""
        settings = CollectSettings(
            prompts=len(prompts), group_size=samples, params=params, run_seed=seed, step=EVALUATION_STEP
        )
        with self.stage("eval"):
            collected = collect(lambda n: prompts[:n], engine, self.judge, lambda _, found: found.score, settings)
        counts = collected.statistics
        failed = counts.verifier_errors + counts.verifier_timeouts
        return summarise([sample for group in collected.groups for sample in group], samples, failed)

    def measure(
        self,
        engine: WorkerGroup,
        stage: str,
        step: int,
        prompts: Sequence[Prompt],
        samples: int,
        params: SamplingParams,
        seed: int,
    ) -> dict[str, Any] | None:
        """Evaluates, records and says it; returns the summary, or None where there are no prompts."""
        if not prompts:
            return None
        found = self.evaluate(engine, prompts, samples, params, seed)
        summary = found.summary()
        self.run.record_evaluation(stage, step, summary)
        self.say(f"accuracy after step {step}: {found.overall}")
        return summary

    def finished(self, steps: int, time_limit_minutes: float) -> bool:
        """Whether an earlier process has done all that these settings ask for; then it is said, and nothing redone."""
        summary = self.run.summary()
        if summary.get("status") != "finished" or not Path(summary["export"]).is_dir():
            return False
        out_of_time = time_limit_minutes > 0 and self.run.seconds >= 60.0 * time_limit_minutes
        if not out_of_time and not 0 < steps <= summary["steps"]:
            return False
        self.say(f"{self.run.path} is finished, after {summary['steps']} steps; --run.resume fresh starts over")
        return True

    def restore(
        self, engine: WorkerGroup, stage: str, steps: int, folder: str = ""
    ) -> tuple[int, Mapping[str, Any]] | None:
        """Loads the newest whole checkpoint, of those in `folder` below `checkpoints`, and rewinds the run to it.

        Returns its step and what was saved beside the weights; None where there is no checkpoint.
        """
        path = CheckpointStore(self.run.checkpoints / folder).latest()
        if path is None:
            return None
        extra: Mapping[str, Any] = engine.restore(path)
        step = int(path.name.removeprefix("step-"))
        self.run.rewind(stage, step)
        self.say(f"resumed step {step} of {steps or 'no limit'} from {path}")
        return step, extra


@contextmanager
def open_session(config: Any, command: str, verbose: bool = False, *, stop_at_once: bool = False) -> Iterator[Session]:
    """The folder, the judges and the memory sampler of a command; see `Session`. A broken model changes no folder."""
    if not config.model.path:
        raise ConfigError("model.path is empty; name a model folder in the recipe, or with --model.path FOLDER")
    tokenizer, model = Tokenizer.load(config.model.path), read_config(config.model.path)
    if isinstance(config, RlConfig | SftConfig):
        check_router(config.router, model)
    with ExitStack() as stack:
        hub = stack.enter_context(leading(config))
        layout = layout_of_run(config.parallel, hub.size if hub else 1, model, command)
        run = open_run(config, command, {"build": build_info()})
        stack.callback(run.close)
        configure(run.logs, "controller", verbose)
        stop = stack.enter_context(StopSignal(at_once=stop_at_once))
        judge = stack.enter_context(judges(config.reward, run.logs / "verifiers.log"))
        memory = stack.enter_context(MemorySampler())
        yield Session(run, model, tokenizer, judge, stop, memory, hub, layout)


def judges(reward: RewardConfig, log: Path) -> JudgePool:
    """Verifier processes as the recipe asks for them; what they print goes to `log`."""
    verifiers: Mapping[str, str] = {"*": reward.function} if reward.function else reward.verifiers
    return JudgePool(verifiers, workers=reward.workers, seconds_per_item=reward.timeout_seconds, log=log)


@contextmanager
def workers(
    session: Session, config: Any, settings: EngineSettings, algorithm: AlgorithmConfig | None
) -> Iterator[WorkerGroup]:
    """The engine's worker group: on the ranks of a launch, on Ray in a process of its own, or in this process."""
    controller: ControllerConfig = config.controller
    parts, threads, logs = (settings, algorithm), threads_of(config.model.threads), session.run.logs
    logs.mkdir(parents=True, exist_ok=True)
    group: WorkerGroup
    if session.hub is not None:
        with SpmdGroup(
            "policy",
            session.hub,
            EngineWorker,
            parts,
            threads=threads,
            deadline=controller.step_deadline_seconds,
            layout=session.layout,
        ) as group:
            yield group
        return
    if controller.kind == "local":
        with LocalGroup("policy", EngineWorker, parts, threads=threads, deadline=86400.0) as group:
            yield group
        return
    from seedthink.controller.ray_cluster import RayCluster, ResourcePool, Slot
    from seedthink.controller.ray_group import RayGroup

    with (
        RayCluster() as cluster,
        ResourcePool(cluster, "devices", [Slot(cpus=threads)]) as pool,
        RayGroup(
            "policy",
            pool,
            EngineWorker,
            parts,
            logs=logs,
            threads=threads,
            deadline=controller.step_deadline_seconds,
            beat_seconds=controller.heartbeat_seconds,
        ) as group,
    ):
        yield group


def view(session: Session, stage: str, steps: int, verbose: bool = False) -> Terminal:
    """The terminal's view of one stage."""
    terminal = Terminal(stage, steps, verbose)
    session.say = terminal.say
    return terminal
