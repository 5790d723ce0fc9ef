"""GRPO with seedthink on the task of `rl_task`, a step at a time.

The loop is the one that `seedthink rl --controller.kind local` runs. Each step waits for a line on standard input and
reports one line of JSON to the file descriptor `--report`, as `trl_run.py --turns` does, so that the two take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rl_task import write_prompts

from seedthink.config.commands import RlConfig
from seedthink.config.loader import load
from seedthink.controller.loop import RlJob, train
from seedthink.controller.run import rl_engine_settings
from seedthink.controller.session import open_session, view, workers
from seedthink.controller.sources import training_prompts


def settings(options: argparse.Namespace, folder: Path) -> RlConfig:
    """The recipe."""
    prompts = write_prompts(folder / "prompts.jsonl", options.prompt_tokens)
    return load(
        None,
        RlConfig,
        {
            "run.folder": str(folder),
            "run.name": "own",
            "model.path": options.model,
            "model.dtype": options.dtype,
            "model.threads": options.threads,
            "data.train": [{"kind": "jsonl", "path": str(prompts)}],
            "data.prompts_per_step": options.prompts,
            "rollout.group_size": 8,
            "rollout.max_tokens": options.tokens,
            "reward.function": "even_reward:score",
            "algorithm.preset": "grpo",
            "policy_optimizer.lr": 1e-4,
            "controller.kind": "local",
            "checkpoint.every_steps": 0,
        },
    )


def step(job: RlJob, engine: Any) -> dict[str, float]:
    """One more step of the loop, and where its time went."""
    generator = engine.workers[0].generator
    computed, processor, began = generator.stats.computed_tokens, time.process_time(), time.perf_counter()
    job.config = replace(job.config, run=replace(job.config.run, steps=job.step + 1))
    train(job)
    spent = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - processor}
    named = {"generate_seconds": "gen", "learn_seconds": "update_actor", "reward_seconds": "reward"}
    spent |= {name: job.last[f"timing_s/{stage}"] for name, stage in named.items()}
    gap = job.last["rollout/logp_gap_max"]
    return spent | {"computed_tokens": generator.stats.computed_tokens - computed, "logp_gap_max": gap}


def main() -> None:
    """Take turns until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = settings(options, Path(folder))
        with (
            open_session(config, "rl", options.model) as session,
            workers(
                config.controller,
                rl_engine_settings(config),
                config.algorithm,
                logs=session.run.logs,
                threads=config.model.threads,
            ) as engine,
            view(session, "rl", 0) as terminal,
        ):
            prompts = training_prompts(config.data, session.tokenizer, config.run.seed, [])
            job = RlJob(config, session, engine, prompts, [], terminal)
            while sys.stdin.readline():
                os.write(options.report, (json.dumps(step(job, engine)) + "\n").encode())


if __name__ == "__main__":
    main()
