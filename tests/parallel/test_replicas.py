"""Data-parallel ranks: sums in rank order, and runs that learn what one rank would have learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ranks import outcome, start_ranks

from seedthink.config.commands import RlConfig, SftConfig
from seedthink.config.loader import load
from seedthink.config.resolved import to_toml
from seedthink.controller import quickstart
from seedthink.controller.run import run_rl, run_sft
from seedthink.parallel.launch import free_port

PROGRAM = str(Path(__file__).with_name("replicas_program.py"))
SUM = {"kind": "puzzle", "family": "running_sum", "min_terms": 2, "max_terms": 3}
COMMON: dict[str, Any] = {"data.eval": [SUM], "evaluation.problems": 4, "evaluation.samples": 2, "reward.workers": 1}
COMMON |= {"controller.kind": "local", "run.steps": 3}
RL = {
    **COMMON,
    "data.train": [{**SUM, "count": 40}],
    "data.prompts_per_step": 4,
    "rollout.group_size": 4,
    "rollout.max_tokens": 12,
    "algorithm.updates_per_rollout": 2,
    "algorithm.dynamic_sampling": False,
    "value_pretraining.max_steps": 1,
}
SFT = {**COMMON, "data.train": [{**SUM, "count": 60}], "data.batch_tokens": 400, "optimizer.lr": 3e-3}


def test_sums_are_taken_in_the_order_of_the_ranks_whatever_the_tensor() -> None:
    found = outcome(start_ranks(3, PROGRAM, f"127.0.0.1:{free_port()}"))
    assert [out.strip() for _, out, _ in found] == ["True [{'rank': 0}, {'rank': 1}, {'rank': 2}]"] * 3, found


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    quickstart.build_start(folder, seed=0)
    return folder


def recipe(cls: type, settings: dict[str, Any]) -> Path:
    path = Path(settings["run.folder"]).with_suffix(".toml")
    path.write_text(to_toml(load(None, cls, settings)))
    return path


def on_two_ranks(command: str, recipe: Path) -> list[tuple[int, str, str]]:
    found = outcome(start_ranks(2, "-m", "seedthink", command, str(recipe)))
    assert [code for code, _, _ in found] == [0, 0], found
    assert found[1][1] == "", "rank 1 is silent"
    return found


def rows(run: Path, key: str) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


def test_two_ranks_imitate_as_one_does(start: Path, tmp_path: Path) -> None:
    settings = {**SFT, "model.path": str(start)}
    alone = run_sft(load(None, SftConfig, {**settings, "run.folder": str(tmp_path / "one")}))
    both = tmp_path / "two" / "sft"
    on_two_ranks("sft", recipe(SftConfig, {**settings, "run.folder": str(both.parent)}))
    assert rows(both, "train/loss") == pytest.approx(rows(alone, "train/loss"), rel=1e-5)


def test_two_ranks_draw_the_same_answers_as_one_and_learn_the_same(start: Path, tmp_path: Path) -> None:
    settings = {**RL, "model.path": str(start)}
    alone = run_rl(load(None, RlConfig, {**settings, "run.folder": str(tmp_path / "one")}))
    both = tmp_path / "two" / "rl"
    on_two_ranks("rl", recipe(RlConfig, {**settings, "run.folder": str(both.parent)}))
    first = [sorted(texts(run, 1)) for run in (alone, both)]
    assert first[0] == first[1], "an answer's seed is its own, wherever it is drawn"
    assert rows(both, "rollout/logp_gap_max") == [0.0, 0.0, 0.0]
    assert rows(both, "actor/grad_norm")[0] == pytest.approx(rows(alone, "actor/grad_norm")[0], rel=1e-4)
    assert rows(both, "critic/vf_loss")[0] == pytest.approx(rows(alone, "critic/vf_loss")[0], rel=1e-4)


def texts(run: Path, step: int) -> list[str]:
    lines = (run / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()
    return [json.loads(line)["completion"] for line in lines]


def test_a_layout_that_does_not_fit_the_ranks_is_refused_before_anything_is_begun(start: Path, tmp_path: Path) -> None:
    asked = recipe(SftConfig, {**SFT, "model.path": str(start), "run.folder": str(tmp_path / "runs"), "parallel.tp": 3})
    (code, _, wrong), _ = outcome(start_ranks(2, "-m", "seedthink", "sft", str(asked)))
    assert code == 2 and "[parallel] tp = 3 does not divide the 2 ranks; " in wrong and "nearest layout of 2 " in wrong
    assert not (tmp_path / "runs").exists(), "nothing was begun"


def test_a_rank_that_was_asked_for_something_else_stops_all(start: Path, tmp_path: Path) -> None:
    asked = recipe(SftConfig, {**SFT, "model.path": str(start), "run.folder": str(tmp_path / "runs")})
    seeds = [["--run.seed", "0"], ["--run.seed", "7"]]
    ranks = start_ranks(2, "-m", "seedthink", "sft", str(asked), per_rank=seeds)
    (code, _, wrong), _ = outcome(ranks)
    assert code == 2 and "has the setting run.seed = 7, rank 0 " in wrong and "start all ranks alike" in wrong
    assert not (tmp_path / "runs").exists(), "nothing was begun"
