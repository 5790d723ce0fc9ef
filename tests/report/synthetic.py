"""A run folder made up from formulas: what a healthy VAPO run looks like, without training one."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from seedthink.config import RlConfig, load, to_dict, to_toml
from seedthink.telemetry.folder import accuracy_metrics
from seedthink.telemetry.jsonl import dumps

FAMILIES = {"countdown": 0.35, "running_sum": 0.62}


def accuracy(mean: float, half: float = 0.03, k: int = 4) -> dict[str, Any]:
    """An evaluation of two families around a mean."""

    def entry(middle: float) -> dict[str, Any]:
        ends = {"low": max(0.0, middle - half), "high": min(1.0, middle + half)}
        return {"mean": middle, **ends, "k": k, "problems": 200, "pass_at_k": min(1.0, middle + 0.15)}

    return entry(mean) | {"families": {"countdown": entry(mean * 0.8), "running_sum": entry(min(1.0, mean * 1.2))}}


def write_run(
    path: Path, steps: int = 240, seed: int = 0, samples_at: tuple[int, ...] = (1, 240), **overrides: Any
) -> Path:
    """Write a finished run of `steps` steps with value pretraining, evaluations every 40 and samples at some steps."""
    draw = random.Random(seed)
    path.mkdir(parents=True)
    settings = {"algorithm.gae_length_alpha": 0.7, "policy_optimizer.lr": 3e-4, "run.steps": steps} | overrides
    if not str(settings.get("algorithm.preset", "vapo")).startswith(("vapo", "ppo")):
        del settings["algorithm.gae_length_alpha"]
    config = load(
        None, RlConfig, {"run.name": path.name, "data.train": ["puzzle:countdown", "puzzle:running_sum"], **settings}
    )
    (path / "run.toml").write_text(to_toml(config))
    (path / "resolved.json").write_text(json.dumps({"command": "rl", **to_dict(config)}))
    packages = {"seedthink": "0.1.0", "torch": "2.13.0", "ray": "2.60.0", "numpy": "2.4.6"}
    environment = {
        "python": "3.11.9",
        "cpu": "An 8-core processor",
        "cores": 2,
        "memory_bytes": 16 << 30,
        "packages": packages,
    }
    (path / "env.json").write_text(json.dumps(environment))
    lines: list[dict[str, Any]] = []
    seconds = 0.0
    for step in range(1, 21):
        seconds += 1.1
        explained = 0.55 * (1 - math.exp(-step / 6)) + draw.gauss(0, 0.03)
        lines.append(
            _stamp("value", step, seconds)
            | {"critic/vf_explained_var": explained, "critic/vf_loss": 0.5 - 0.3 * explained}
        )
    lines.append(_stamp("rl", 0, seconds) | accuracy_metrics(accuracy(0.38)))
    for step in range(1, steps + 1):
        seconds += 0.95 + 0.2 * draw.random()
        lines.append(_stamp("rl", step, seconds) | _step(step, draw))
        if step % 40 == 0:
            lines.append(_stamp("rl", step, seconds) | accuracy_metrics(accuracy(0.38 + 0.5 * _progress(step))))
    (path / "metrics.jsonl").write_text("".join(dumps(line) + "\n" for line in lines))
    (path / "rollouts").mkdir()
    for step in samples_at:
        rows = [sample(step, index, draw) for index in range(16)]
        (path / "rollouts" / f"step_{step}.jsonl").write_text("".join(dumps(row) + "\n" for row in rows))
    summary = {
        "command": "rl",
        "status": "finished",
        "steps": steps,
        "accuracy_before": accuracy(0.38),
        "accuracy_after": accuracy(0.38 + 0.5 * _progress(steps)),
        "seconds": {"value": 22.0, "rl": seconds - 22, "eval": 12.0, "total": seconds + 12},
        "peak_rss_bytes": 2_450_000_000,
        "logp_gap_max": 0.0,
        "tokens_per_second": 15_800.0,
        "parameters": 1_830_000,
        "active_parameters": 1_010_000,
        "export": "export",
        "notes": [],
    }
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def sample(step: int, index: int, draw: random.Random) -> dict[str, Any]:
    """One stored rollout."""
    right = index % 3 != 0
    words = [
        "<think>",
        "\n",
        "7",
        "*",
        "8",
        "=",
        "56",
        ",",
        " 56",
        "-",
        "32",
        "=",
        "24",
        ".",
        "\n",
        "</think>",
        "\n",
        "7*8-32",
    ]
    if not right:
        words = ["<think>", "\n", "7", "+", "8", "=", "15", ",", " 15", "+", "32", "=", "47", ".", "\n"]
    advantages = [round(draw.gauss(0.25 if right else -0.25, 0.4), 4) for _ in words]
    return {
        "id": f"{step}-{index}",
        "group": f"g{index // 8}",
        "index": index % 8,
        "family": "countdown",
        "problem": f"countdown-{index // 8}",
        "prompt": "Use 7, 8 and 32, each once, to make 24.",
        "completion": "".join(words),
        "reference": {"target": 24, "numbers": [7, 8, 32]},
        "verdict": "right" if right else "wrong",
        "score": float(right),
        "parts": {"answer": float(right)},
        "evidence": "7*8-32 = 24" if right else "no answer after the think block",
        "reward": 1.0 if right else -1.0,
        "advantage": sum(advantages) / len(advantages),
        "kept": True,
        "reason": "",
        "finish": "stop" if right else "length",
        "prompt_tokens": 14,
        "response_tokens": len(words),
        "logprob": -0.3,
        "pieces": words,
        "advantages": advantages,
    }


def _stamp(stage: str, step: int, seconds: float) -> dict[str, Any]:
    return {"stage": stage, "step": step, "seconds": round(seconds, 3)}


def _progress(step: int) -> float:
    return 1 - math.exp(-step / 80)


def _step(step: int, draw: random.Random) -> Mapping[str, float]:
    done = _progress(step)
    generation = 0.55 + 0.1 * draw.random()
    return {
        "critic/score/mean": 0.38 + 0.5 * done + draw.gauss(0, 0.03),
        "response_length/mean": 42 + 18 * done + draw.gauss(0, 1.5),
        "response_length/max": 96 - 6 * draw.random(),
        "response_length/clip_ratio": max(0.0, 0.05 * (1 - done) + draw.gauss(0, 0.005)),
        "actor/entropy": 0.62 * math.exp(-step / 160) + 0.14 + draw.gauss(0, 0.01),
        "actor/pg_clipfrac": abs(draw.gauss(0.03, 0.01)),
        "actor/pg_clipfrac_lower": 0.0,
        "actor/ppo_kl": draw.gauss(0.002, 0.001),
        "actor/grad_norm": 0.8 + draw.random() * 0.3,
        "critic/grad_norm": 1.6 + draw.random() * 0.6,
        "critic/vf_explained_var": 0.5 + 0.15 * done + draw.gauss(0, 0.05),
        "critic/vf_loss": 0.32 - 0.15 * done + draw.gauss(0, 0.02),
        "rollout/logp_gap_max": 0.0,
        "rollout/groups_all_right": 0.1 + 0.5 * done,
        "rollout/groups_all_wrong": 0.25 * (1 - done),
        "rollout/groups_all_equal": 0.35 + 0.3 * done,
        "perf/throughput": 15_000 + draw.gauss(0, 600),
        "timing_s/gen": generation,
        "timing_s/reward": 0.03,
        "timing_s/values": 0.06,
        "timing_s/update_actor": 0.24 + 0.02 * draw.random(),
        "timing_s/update_critic": 0.11,
        "timing_s/step": generation + 0.46,
    }
