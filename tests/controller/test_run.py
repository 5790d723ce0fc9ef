"""Whole runs in one process on a tiny model: sft, rl with a critic, resume, evaluation, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from seedthink.config.commands import EvalConfig, RlConfig, SftConfig
from seedthink.config.loader import load
from seedthink.controller import quickstart
from seedthink.controller.run import run_eval, run_rl, run_sft
from seedthink.controller.value_pretraining import finished
from seedthink.errors import ConfigError

SUM: dict[str, Any] = {"kind": "puzzle", "family": "running_sum", "min_terms": 2, "max_terms": 3}
RL: dict[str, Any] = {
    "data.train": [{**SUM, "count": 40}],
    "data.eval": [SUM],
    "data.prompts_per_step": 4,
    "rollout.group_size": 4,
    "rollout.max_tokens": 12,
    "algorithm.updates_per_rollout": 2,
    "algorithm.dynamic_sampling": False,
    "value_pretraining.max_steps": 1,
    "evaluation.problems": 4,
    "evaluation.samples": 2,
    "reward.workers": 1,
    "run.steps": 2,
}


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with random weights."""
    folder = tmp_path_factory.mktemp("start") / "model"
    quickstart.build_start(folder, seed=0)
    return folder


def config(cls: type, start: Path, runs: Path, **settings: Any) -> Any:
    common = {"model.path": str(start), "run.folder": str(runs), "controller.kind": "local"}
    return load(None, cls, {**common, **settings})


def lines(run: Path, stage: str) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["stage"] == stage]


def test_sft_lowers_its_loss_and_exports_a_model_that_eval_takes(start: Path, tmp_path: Path) -> None:
    settings = {
        "data.train": [{**SUM, "count": 60}],
        "data.batch_tokens": 400,
        "optimizer.lr": 3e-3,
        "run.steps": 12,
        "reward.workers": 1,
    }
    run = run_sft(config(SftConfig, start, tmp_path, **settings))
    losses = [row["train/loss"] for row in lines(run, "sft") if "train/loss" in row]
    assert len(losses) == 12 and losses[-1] < 0.8 * losses[0]
    wanted = {"data.eval": [SUM], "evaluation.problems": 3, "evaluation.samples": 2, "reward.workers": 1}
    found = run_eval(config(EvalConfig, run / "export", tmp_path, **wanted, **{"generation.max_tokens": 8}))
    assert found["problems"] == 3 and 0.0 <= found["mean"] <= 1.0


def test_rl_keeps_generator_and_trainer_equal_bit_for_bit_and_leaves_a_whole_run_folder(
    start: Path, tmp_path: Path
) -> None:
    run = run_rl(config(RlConfig, start, tmp_path, **RL))
    steps = [row for row in lines(run, "rl") if "rollout/logp_gap_max" in row]
    assert [row["step"] for row in steps] == [1, 2]
    assert all(row["rollout/logp_gap_max"] == 0.0 for row in steps)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["status"] == "finished" and summary["logp_gap_max"] == 0.0
    assert {"export", "critic", "checkpoints", "rollouts"} <= {path.name for path in run.iterdir()}


def test_a_resumed_run_equals_one_that_was_never_interrupted(start: Path, tmp_path: Path) -> None:
    whole = run_rl(config(RlConfig, start, tmp_path / "whole", **{**RL, "run.steps": 3}))
    parts = tmp_path / "parts"
    run_rl(config(RlConfig, start, parts, **{**RL, "run.steps": 1}))
    resumed = run_rl(config(RlConfig, start, parts, **{**RL, "run.steps": 3}))
    for run in (whole, resumed):
        assert [row["step"] for row in lines(run, "rl") if "training/global_step" in row] == [1, 2, 3]
    weights = [(run / "export" / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert weights[0] == weights[1]


def interrupt_when(stage: str, metrics: Path) -> threading.Thread:
    """Ctrl-C as soon as the run has recorded a step of `stage`."""

    def watch() -> None:
        while not (metrics.exists() and f'"stage":"{stage}"' in metrics.read_text()):
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_interrupted_value_pretraining_goes_on_and_ends_as_if_it_never_stopped(start: Path, tmp_path: Path) -> None:
    taught = {**RL, "run.steps": 1, "value_pretraining.max_steps": 24, "value_pretraining.held_out_batches": 1}
    parts = tmp_path / "parts"
    watcher = interrupt_when("value", parts / "rl" / "metrics.jsonl")
    run = run_rl(config(RlConfig, start, parts, **taught))
    watcher.join()
    assert 1 <= len(lines(run, "value")) < 24
    assert not list((run / "checkpoints").glob("step-*")), "a half-taught critic must not pass for a finished one"
    resumed = run_rl(config(RlConfig, start, parts, **taught))
    whole = run_rl(config(RlConfig, start, tmp_path / "whole", **taught))
    assert [row["step"] for row in lines(resumed, "value")] == list(range(1, 25))
    critics = [(run / "critic" / "model.safetensors").read_bytes() for run in (whole, resumed)]
    assert critics[0] == critics[1]
    assert not (resumed / "checkpoints" / "value").exists()


def test_value_pretraining_ends_when_explained_variance_is_high_and_flat() -> None:
    assert not finished([0.41, 0.42, 0.43], 0.4, evaluations=4), "too few measurements"
    assert finished([0.1, 0.41, 0.42, 0.43, 0.44], 0.4, evaluations=4)
    assert not finished([0.41, 0.42, 0.43, 0.47], 0.4, evaluations=4), "still rising"
    assert not finished([0.39, 0.42, 0.43, 0.42], 0.4, evaluations=4), "not high enough all the time"


def test_group_baselines_run_without_a_critic(start: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in RL.items() if not key.startswith(("value_pretraining", "algorithm"))}
    run = run_rl(config(RlConfig, start, tmp_path, **settings, **{"algorithm.preset": "grpo"}))
    assert not (run / "critic").exists()


def test_an_empty_list_of_sources_is_an_error_that_shows_how_to_write_one(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.train is empty; add a source"):
        run_rl(config(RlConfig, start, tmp_path, **{"run.steps": 1}))
