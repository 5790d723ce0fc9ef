"""GRPO with seedthink on the task of `rl_task`, a step at a time.

The run is the one that `seedthink rl --controller.kind local` makes. Each step waits for a line on standard input and
reports one line of JSON to the file descriptor `--report`, as `trl_run.py --turns` does, so that the two take turns.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rl_task import write_prompts

from seedthink.config.commands import RlConfig
from seedthink.config.loader import load
from seedthink.controller import loop
from seedthink.controller.run import run_rl


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


def turns(job: loop.RlJob, report: int) -> Iterator[int]:
    """In place of `loop.remaining_steps`: waits for each step's turn, and reports where its time went."""
    engine, learned = job.engine.workers[0], [0]  # type: ignore[attr-defined]
    generator = engine.generator

    def count(_: object, arguments: tuple[Any, ...]) -> None:
        learned[0] += len(arguments[0])

    engine.policy.module.register_forward_pre_hook(count)
    for step in itertools.count(1):
        if not sys.stdin.readline():
            return
        computed, processor, began = generator.stats.computed_tokens, time.process_time(), time.perf_counter()
        job.session.run.events.step, learned[0] = step, 0
        yield step
        spent = {"seconds": time.perf_counter() - began, "processor_seconds": time.process_time() - processor}
        named = {"generate_seconds": "gen", "learn_seconds": "update_actor", "reward_seconds": "reward"}
        spent |= {name: job.last[f"timing_s/{stage}"] for name, stage in named.items()}
        spent["generation_tokens"], spent["learning_tokens"] = generator.stats.computed_tokens - computed, learned[0]
        spent["logp_gap_max"] = job.last["rollout/logp_gap_max"]
        os.write(report, (json.dumps(spent) + "\n").encode())


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
    loop.remaining_steps = lambda job: turns(job, options.report)
    with tempfile.TemporaryDirectory() as folder:
        run_rl(settings(options, Path(folder)))


if __name__ == "__main__":
    main()
