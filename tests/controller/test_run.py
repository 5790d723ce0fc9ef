"""Whole runs in one process on a tiny model: sft, rl with a critic, resume, evaluation, and what they leave behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from seedthink.config.commands import EvalConfig, RlConfig, SftConfig
from seedthink.config.loader import load
from seedthink.config.sections import GenerationConfig, OptimizerConfig
from seedthink.controller import quickstart
from seedthink.controller.groups import Place
from seedthink.controller.run import run_eval, run_rl, run_sft
from seedthink.controller.value_pretraining import finished
from seedthink.controller.worker import EngineWorker
from seedthink.engine.engine import EngineSettings
from seedthink.errors import ConfigError, DataError, RunError
from seedthink.parallel.layout import Layout
from seedthink.types import Completion, Finish, Request, SamplingParams

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


def test_a_finished_run_is_not_run_again_unless_more_is_asked_of_it(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_rl(config(RlConfig, start, tmp_path, **{**RL, "run.steps": 1}))
    before = {path: path.read_bytes() for path in (run / "summary.json", run / "metrics.jsonl")}
    assert run_rl(config(RlConfig, start, tmp_path, **{**RL, "run.steps": 1})) == run
    assert "is finished, after 1 steps; --run.resume fresh starts over" in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in before}
    run_rl(config(RlConfig, start, tmp_path, **{**RL, "run.steps": 2}))
    assert json.loads((run / "summary.json").read_text())["steps"] == 2


def interrupt_when(stage: str, metrics: Path) -> threading.Thread:
    """Ctrl-C as soon as the run has recorded a step of `stage`."""

    def recorded() -> bool:
        try:
            return f'"stage":"{stage}"' in metrics.read_text()
        except FileNotFoundError:  # not there yet, or just now being replaced
            return False

    def watch() -> None:
        while not recorded():
            time.sleep(0.002)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_interrupted_value_pretraining_goes_on_and_ends_as_if_it_never_stopped(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taught = {**RL, "run.steps": 1, "value_pretraining.max_steps": 24, "value_pretraining.held_out_batches": 1}
    parts = tmp_path / "parts"
    watcher = interrupt_when("value", parts / "rl" / "metrics.jsonl")
    run = run_rl(config(RlConfig, start, parts, **taught))
    watcher.join()
    assert 1 <= len(lines(run, "value")) < 24
    assert not list((run / "checkpoints").glob("step-*")), "a half-taught critic must not pass for a finished one"
    resumed = run_rl(config(RlConfig, start, parts, **taught))
    assert "resumed step" in capsys.readouterr().out
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


def jsonl(path: Path, *questions: str) -> str:
    rows = [{"prompt": text, "answer": "1", "response": "<think> 1 </think> 1"} for text in questions]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"exact={path}"


def test_what_would_go_wrong_later_is_refused_before_anything_is_learned(start: Path, tmp_path: Path) -> None:
    train = jsonl(tmp_path / "train.jsonl", "1 + 2", "3 + 4")
    test = jsonl(tmp_path / "test.jsonl", "3 + 4")
    long = jsonl(tmp_path / "long.jsonl", "1 + 2", "1 " * 600)
    for run, cls in ((run_rl, RlConfig), (run_sft, SftConfig)):
        with pytest.raises(DataError, match=r"train.jsonl:2 \(held out as .*test.jsonl:1\)"):
            run(config(cls, start, tmp_path, **{"data.train": [train], "data.eval": [test]}))
        with pytest.raises(ConfigError, match=r"long.jsonl:2: .* positions"):
            run(config(cls, start, tmp_path, **{"data.train": [long]}))
    with pytest.raises(ConfigError, match="'no_such_rewards:f' cannot be imported"):
        own = {"data.train": [train], "data.eval": [SUM], "reward.function": "no_such_rewards:f"}
        run_sft(config(SftConfig, start, tmp_path, **own))
    assert not list(tmp_path.glob("*/checkpoints"))


def test_a_model_that_cannot_be_read_leaves_an_earlier_run_where_it_is(start: Path, tmp_path: Path) -> None:
    settings = {"data.train": [{**SUM, "count": 20}], "data.batch_tokens": 200, "run.steps": 1, "reward.workers": 1}
    run = run_sft(config(SftConfig, start, tmp_path, **settings))
    broken = shutil.copytree(start, tmp_path / "broken")
    (broken / "config.json").write_text("{")
    with pytest.raises(DataError, match=r"config.json is no JSON"):
        run_sft(config(SftConfig, broken, tmp_path, **settings, **{"run.resume": "fresh"}))
    assert (run / "export").exists() and not run.with_name("sft-1").exists()


def test_sft_that_cannot_learn_stops_and_keeps_the_examples(start: Path, tmp_path: Path) -> None:
    settings = {"data.train": [{**SUM, "count": 20}], "data.batch_tokens": 200, "run.steps": 9, "reward.workers": 1}
    hopeless = {"optimizer.lr": 1e30, "trainer.max_skipped_steps": 1}
    with pytest.raises(RunError, match=r"2 updates in a row were skipped .*logs/skipped_step_3.jsonl"):
        run_sft(config(SftConfig, start, tmp_path, **settings, **hopeless))
    kept = [json.loads(line) for line in (tmp_path / "sft" / "logs" / "skipped_step_3.jsonl").read_text().splitlines()]
    assert sum(row["tokens"] for row in kept) >= 200 and all("<think>" in row["text"] for row in kept)


def test_an_answer_ends_at_the_tokenizers_stop_token_where_config_json_names_none(start: Path, tmp_path: Path) -> None:
    model = shutil.copytree(start, tmp_path / "model")
    (model / "generation_config.json").unlink()
    table = json.loads((model / "config.json").read_text())
    stop = table.pop("eos_token_id")
    (model / "config.json").write_text(json.dumps(table))
    settings = EngineSettings(
        model=model,
        rollout=GenerationConfig(),
        policy_optimizer=OptimizerConfig(),
        critic_optimizer=OptimizerConfig(),
        total_updates=1,
        critic=False,
    )
    worker = EngineWorker(Place("policy", 0, Layout(), 1), settings, None)
    with torch.no_grad():
        worker.policy.module.get_parameter("norm_D").zero_()  # every token is equally likely
    params = SamplingParams(max_tokens=400)
    worker.submit([Request(str(seed), np.array([5], np.int32), params, seed) for seed in range(4)])
    answers: list[Completion] = []
    while len(answers) < 4:
        answers += worker.collect(60.0)
    assert any(answer.finish is Finish.STOP for answer in answers)
    assert all(stop not in answer.tokens_T[:-1] for answer in answers)


def test_group_baselines_run_without_a_critic(start: Path, tmp_path: Path) -> None:
    settings = {key: value for key, value in RL.items() if not key.startswith(("value_pretraining", "algorithm"))}
    run = run_rl(config(RlConfig, start, tmp_path, **settings, **{"algorithm.preset": "grpo"}))
    assert not (run / "critic").exists()


def test_an_empty_list_of_sources_is_an_error_that_shows_how_to_write_one(start: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.train is empty; add a source"):
        run_rl(config(RlConfig, start, tmp_path, **{"run.steps": 1}))
