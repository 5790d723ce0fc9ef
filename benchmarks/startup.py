"""From starting the process to the end of the first RL step, and the seconds of each step after it, against TRL.

Model: Qwen3-MoE, vocabulary 128, width 64, 2 layers, 4 heads, 2 KV heads, head 16, 8 experts top-2 of width 80 (0.29 M
parameters), random weights. 8 prompts of 16 tokens, 8 answers each of 32 tokens, GRPO without a reference model, one
AdamW step, float32, 2 threads. Ours is `seedthink rl` with `controller.kind = "local"`; the peer is `trl_run.py`, which
holds nothing but the model, the prompts, the reward and the trainer. Both run as whole commands, in turns, files in the
page cache. Evaluation is off and the checkpoints are those before and after training. "first" is the wall time until
the end of the first step, "then" the median time from one step's end to the next.
Run: `python benchmarks/startup.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from rl_task import SMALL, write_model, write_prompts
from turns import environment, quiet_seconds, save

HERE = Path(__file__).resolve().parent
PROMPTS, PROMPT, NEW, STEPS, SETTLED = 8, 16, 32, 20, 5
RECIPE = f"""
[run]
name = "own"
steps = {STEPS}
resume = "fresh"
[data]
prompts_per_step = {PROMPTS}
[[data.train]]
kind = "jsonl"
path = "prompts.jsonl"
[rollout]
group_size = 8
max_tokens = {NEW}
[reward]
function = "even_reward:score"
[algorithm]
preset = "grpo"
[policy_optimizer]
lr = 1e-4
[controller]
kind = "local"
[checkpoint]
every_steps = 0
"""


def run(command: list[str], folder: Path, threads: int, **options: Any) -> float:
    """Runs a command to its end, and returns when it began."""
    paths = [str(HERE), str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    environment |= {"OMP_NUM_THREADS": str(threads)}
    began = time.time()
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, **options
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return began


def own_ends(folder: Path, threads: int) -> list[float]:
    """Seconds from the start of our process to each step's end."""
    began = run(["-m", "seedthink", "rl", "recipe.toml", "--model.path", "model"], folder, threads)
    rows = map(json.loads, (folder / "runs" / "own" / "events" / "controller.jsonl").read_text().splitlines())
    return [row["time"] - began for row in rows if row["event"] == "span" and row["name"] == "step"]


def peer_ends(folder: Path, threads: int) -> list[float]:
    """Seconds from the start of TRL's process to each step's end."""
    with (folder / "report").open("w+") as report:
        sizes = ["--prompts", PROMPTS, "--prompt-tokens", PROMPT, "--tokens", NEW, "--steps", STEPS]
        command = [str(HERE / "trl_run.py"), "model", *map(str, sizes), "--threads", str(threads)]
        began = run([*command, "--report", str(report.fileno())], folder, threads, pass_fds=[report.fileno()])
        report.seek(0)
        return [json.loads(line)["time"] - began for line in report]


def timed(ends: Callable[[], list[float]], patience: float) -> dict[str, float]:
    """One whole command in a quiet moment, if there is one."""
    found: list[float] = []

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        found[:] = ends()
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    elsewhere = quiet_seconds(once, patience)[1]
    assert len(found) == STEPS
    settled = [later - earlier for earlier, later in pairwise(found[SETTLED:])]
    return {"first": found[0], "then": statistics.median(settled), "cores_used_elsewhere": elsewhere}


def race(folder: Path, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Both commands in turns; one row each, and their ratio."""
    sides = {"ours": own_ends, "TRL": peer_ends}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for ends in sides.values():
        ends(folder, options.threads)  # files into the page cache, bytecode written
    for _ in range(options.repeats):
        for name, ends in sides.items():
            found[name].append(timed(lambda ends=ends: ends(folder, options.threads), options.patience))
    rows: list[dict[str, Any]] = [
        {
            "side": name,
            "first_seconds": [each["first"] for each in runs],
            "then_seconds": [each["then"] for each in runs],
            "median_first": statistics.median(each["first"] for each in runs),
            "median_then": statistics.median(each["then"] for each in runs),
            "cores_used_elsewhere": max(each["cores_used_elsewhere"] for each in runs),
        }
        for name, runs in found.items()
    ]
    own, peer = rows
    for what in ("first", "then"):
        rows.append(
            {
                "what": what,
                "ratio": peer[f"median_{what}"] / own[f"median_{what}"],
                "ratio_lowest": min(peer[f"{what}_seconds"]) / max(own[f"{what}_seconds"]),
            }
        )
    return rows


def main() -> None:
    """Measure, print a table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--patience", type=float, default=0.0, help="seconds to wait for a quiet machine, per run")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    surroundings = environment() | {each: metadata.version(each) for each in ("trl", "transformers")}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model", SMALL)
        write_prompts(folder / "prompts.jsonl", PROMPT)
        (folder / "recipe.toml").write_text(RECIPE)
        rows = race(folder, options)
    for row in rows:
        if "side" in row:
            print(
                f"{row['side']:>5}: first step ends after {row['median_first']:.2f} s ({min(row['first_seconds']):.2f} "
                f"to {max(row['first_seconds']):.2f}), then {row['median_then']:.3f} s a step "
                f"({min(row['then_seconds']):.3f} to {max(row['then_seconds']):.3f}); elsewhere "
                f"{row['cores_used_elsewhere']:.2f}"
            )
        else:
            print(f"{row['what']}: {row['ratio']:.2f} times faster (lowest {row['ratio_lowest']:.2f})")
    save("startup", rows, surroundings)


if __name__ == "__main__":
    main()
