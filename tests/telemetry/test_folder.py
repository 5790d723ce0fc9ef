"""The run folder: what is in it, and that it tells one history however often a run stops and goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from seedthink.config import EvalConfig, RlConfig, load
from seedthink.errors import ConfigError, RunError
from seedthink.telemetry import folder as folders
from seedthink.telemetry.folder import RunFolder, accuracy_metrics, open_run
from seedthink.telemetry.jsonl import read_lines
from seedthink.telemetry.summary import Summary


def config(folder: Path, **overrides: object) -> RlConfig:
    return load(None, RlConfig, {"run.folder": str(folder), **overrides})


def steps_of(folder: RunFolder) -> list[tuple[str, int]]:
    return [(row["stage"], row["step"]) for row in read_lines(folder.path / "metrics.jsonl")]


def begun(tmp_path: Path) -> Path:
    """A run that got as far as step 3 and a checkpoint at step 2."""
    folder = open_run(config(tmp_path), "rl")
    folder.record("value", 9, {"critic/vf_loss": 1.0})
    for step in (1, 2, 3):
        folder.record("rl", step, {"actor/entropy": 0.5})
        folder.record_rollouts(step, [{"id": "a", "reward": 1.0}])
    (folder.checkpoints / "step-00000002").mkdir(parents=True)
    folder.close()
    return folder.path


def test_a_new_run_holds_recipe_settings_and_environment(tmp_path: Path) -> None:
    folder = open_run(config(tmp_path, **{"rollout.group_size": 4}), "rl", {"build": {"isa": "avx2"}})
    assert "group_size = 4" in (folder.path / "run.toml").read_text()
    resolved = json.loads((folder.path / "resolved.json").read_text())
    assert resolved["command"] == "rl" and resolved["rollout"]["group_size"] == 4
    environment = json.loads((folder.path / "env.json").read_text())
    assert environment["build"] == {"isa": "avx2"} and environment["packages"]["numpy"] and environment["cores"] >= 1
    assert load(folder.path, RlConfig) == config(tmp_path, **{"rollout.group_size": 4})


def test_going_back_drops_metrics_and_samples_beyond_the_step(tmp_path: Path) -> None:
    begun(tmp_path)
    folder = open_run(config(tmp_path), "rl")
    assert steps_of(folder) == [("value", 9), ("rl", 1), ("rl", 2), ("rl", 3)]
    folder.rewind("rl", 2)
    folder.record("rl", 3, {"actor/entropy": 0.4})
    assert steps_of(folder) == [("value", 9), ("rl", 1), ("rl", 2), ("rl", 3)]
    assert sorted(path.name for path in folder.rollouts.iterdir()) == ["step_1.jsonl", "step_2.jsonl"]


def test_training_time_goes_on_where_it_stood(tmp_path: Path) -> None:
    path = begun(tmp_path)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"stage":"rl","step":4,"seconds":1000.0}\n')
    folder = open_run(config(tmp_path), "rl")
    assert 1000 <= folder.seconds < 1060
    folder.rewind("rl", 3)
    assert folder.seconds < 900


def test_changed_settings_stop_a_resume_and_are_listed(tmp_path: Path) -> None:
    path = begun(tmp_path)
    with pytest.raises(ConfigError) as caught:
        open_run(config(tmp_path, **{"rollout.group_size": 4}), "rl")
    assert "rollout.group_size: 8 -> 4" in str(caught.value) and "--run.resume changed" in str(caught.value)
    changed = {"rollout.group_size": 4, "run.resume": "changed"}
    assert open_run(config(tmp_path, **changed), "rl").path == path


def test_length_and_workers_may_change_without_asking(tmp_path: Path) -> None:
    begun(tmp_path)
    open_run(config(tmp_path, **{"run.steps": 500, "controller.kind": "local", "checkpoint.keep": 9}), "rl").close()
    with pytest.raises(ConfigError, match=r"run\.seed: 0 -> 1"):
        open_run(config(tmp_path, **{"run.seed": 1, "run.steps": 500, "controller.kind": "local"}), "rl")


def test_the_layout_may_change_without_asking_also_of_a_run_that_began_before_there_was_one(tmp_path: Path) -> None:
    path = begun(tmp_path)
    open_run(config(tmp_path, **{"parallel.tp": 2, "parallel.ep": 2}), "rl").close()
    table = json.loads((path / "resolved.json").read_text())
    del table["parallel"]
    (path / "resolved.json").write_text(json.dumps(table))
    open_run(config(tmp_path), "rl").close()


def test_starting_fresh_moves_the_earlier_run_aside(tmp_path: Path) -> None:
    path = begun(tmp_path)
    folder = open_run(config(tmp_path, **{"run.resume": "fresh"}), "rl")
    assert steps_of(folder) == [] and not folder.checkpoints.exists()
    assert len(read_lines(path.with_name("rl-1") / "metrics.jsonl")) == 4


def test_run_folders_inside_a_run_stay_when_it_starts_fresh(tmp_path: Path) -> None:
    inner = begun(tmp_path) / "sft"
    inner.mkdir()
    (inner / "metrics.jsonl").write_text("")
    open_run(config(tmp_path, **{"run.resume": "fresh"}), "rl").close()
    assert (inner / "metrics.jsonl").exists() and not (tmp_path / "rl-1" / "sft").exists()


def test_a_run_without_a_checkpoint_is_started_over(tmp_path: Path) -> None:
    folder = open_run(config(tmp_path), "rl")
    folder.record("rl", 1, {"actor/entropy": 0.5})
    folder.close()
    again = open_run(config(tmp_path, **{"rollout.group_size": 4}), "rl")
    assert steps_of(again) == [] and again.seconds < 60


def test_a_finished_evaluation_is_kept_when_the_next_begins(tmp_path: Path) -> None:
    settings = load(None, EvalConfig, {"run.folder": str(tmp_path)})
    first = open_run(settings, "eval")
    first.write_summary(Summary(command="eval", status="finished", steps=0).to_dict())
    first.close()
    open_run(settings, "eval").close()
    assert (tmp_path / "eval-1" / "summary.json").exists()


def test_one_command_does_not_replace_what_another_worked_for(tmp_path: Path) -> None:
    path = begun(tmp_path)
    evaluation = load(None, EvalConfig, {"run.folder": str(tmp_path), "run.name": "rl"})
    with pytest.raises(ConfigError, match=r"holds a run of `seedthink rl`; choose another --run.name for `eval`"):
        open_run(evaluation, "eval")
    with pytest.raises(ConfigError, match=r"choose another --run.name for `sft`"):
        open_run(config(tmp_path), "sft")
    assert len(read_lines(path / "metrics.jsonl")) == 4
    open_run(config(tmp_path, **{"run.resume": "fresh"}), "sft").close()
    assert len(read_lines(path.with_name("rl-1") / "metrics.jsonl")) == 4


def test_two_processes_cannot_hold_one_folder(tmp_path: Path) -> None:
    first = open_run(config(tmp_path), "rl")
    with pytest.raises(RunError, match="in use by process"):
        open_run(config(tmp_path), "rl")
    first.close()
    open_run(config(tmp_path), "rl").close()


def test_an_evaluation_is_named_per_family_with_its_interval() -> None:
    entry = {"mean": 0.5, "low": 0.4, "high": 0.6, "k": 4, "problems": 100, "pass_at_k": 0.8}
    found = accuracy_metrics(entry | {"families": {"countdown": entry | {"mean": 0.25}}})
    assert found["val-core/all/acc/mean@4"] == 0.5 and found["val-core/countdown/acc/mean@4"] == 0.25
    assert found["val-aux/all/acc/low"] == 0.4 and found["val-core/all/acc/pass@4"] == 0.8


def test_a_summary_with_nan_is_still_json(tmp_path: Path) -> None:
    folder = open_run(config(tmp_path), "rl")
    folder.write_summary({"logp_gap_max": float("nan")})
    assert json.loads((folder.path / "summary.json").read_text()) == {"logp_gap_max": None}


def test_a_checkpoint_that_was_never_finished_does_not_make_a_run_begun(tmp_path: Path) -> None:
    folder = open_run(config(tmp_path), "rl")
    folder.record("value", 1, {"critic/vf_loss": 1.0})
    (folder.checkpoints / ".step-00000000.partial-1a2b3c4d").mkdir(parents=True)
    folder.close()
    assert steps_of(open_run(config(tmp_path), "rl")) == []


def test_an_attempt_without_a_checkpoint_is_forgotten_when_the_run_begins_again(tmp_path: Path) -> None:
    begun(tmp_path)
    folder = open_run(config(tmp_path), "rl")
    folder.begin_again()
    folder.record("value", 1, {"critic/vf_loss": 1.0})
    assert steps_of(folder) == [("value", 1)] and not list(folder.rollouts.iterdir())


def test_an_evaluation_that_a_resumed_run_repeats_is_written_once(tmp_path: Path) -> None:
    entry = {"mean": 1 / 3, "low": 0.25, "high": 0.5, "k": 4, "problems": 100, "pass_at_k": 0.5}
    folder = open_run(config(tmp_path), "rl")
    folder.record_evaluation("rl", 4, entry)
    (folder.checkpoints / "step-00000004").mkdir(parents=True)
    folder.close()
    again = open_run(config(tmp_path), "rl")
    assert again.evaluated("rl", 4) and not again.evaluated("rl", 2)
    again.record_evaluation("rl", 4, entry)
    assert steps_of(again) == [("rl", 4)]
    again.record_evaluation("rl", 4, entry | {"problems": 200})
    assert steps_of(again) == [("rl", 4), ("rl", 4)]


@pytest.mark.parametrize("name", ["file", "file/inside"])
def test_a_run_folder_that_cannot_be_made_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunError, match=r"cannot write .*file"):
        open_run(config(tmp_path, **{"run.name": name}), "rl")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_held_from_before_an_earlier_run_is_moved_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(tmp_path)
    move = folders._move_aside

    def move_while_another_starts(path: Path, keep: bool) -> None:
        with pytest.raises(RunError, match="in use by process"):
            RunFolder(path)
        move(path, keep)

    monkeypatch.setattr(folders, "_move_aside", move_while_another_starts)
    open_run(config(tmp_path, **{"run.resume": "fresh"}), "rl").close()


def test_a_folder_that_could_not_be_opened_is_let_go(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(ConfigError):
        open_run(config(tmp_path, **{"rollout.group_size": 4}), "rl")
    open_run(config(tmp_path), "rl").close()
