"""Flags over a recipe, and the help that comes from the same dataclasses."""

from __future__ import annotations

from pathlib import Path

import pytest

from seedthink.config import PRESETS, RlConfig, SftConfig, parse
from seedthink.errors import ConfigError


def rl(*arguments: str) -> RlConfig:
    return parse(RlConfig, arguments, command="rl", about="Examples")


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "a.toml"
    path.write_text('[rollout]\ntemperature = 0.5\n[data]\ntrain = [{family = "countdown", numbers = 4}]\n')
    return str(path)


def test_a_flag_wins_over_the_file_and_leaves_the_rest(recipe: str) -> None:
    config = rl(recipe, "--rollout.max-tokens", "99")
    assert (config.rollout.temperature, config.rollout.max_tokens) == (0.5, 99)
    assert config.data.train[0].knobs == {"numbers": 4}
    assert rl(recipe, "--rollout.temperature=0.8").rollout.temperature == 0.8
    assert config.run.name == "a"


def test_a_preset_given_as_a_flag_comes_before_the_file(recipe: str) -> None:
    assert rl(recipe, "--algorithm.preset", "grpo").algorithm == PRESETS["grpo"]
    assert rl("--algorithm.preset=grpo", "--algorithm.clip_high", "0.4").algorithm.clip_high == 0.4


def test_flags_are_checked_for_range_and_effect() -> None:
    with pytest.raises(ConfigError, match=r"rollout.temperature = -1.0 is not allowed"):
        rl("--rollout.temperature", "-1")
    with pytest.raises(ConfigError, match="trains no critic"):
        rl("--algorithm.preset", "grpo", "--critic-optimizer.lr", "0.1")
    with pytest.raises(ConfigError, match="has no effect"):
        rl("--algorithm.no-dynamic-sampling", "--algorithm.max-refills", "2")


def test_sources_can_be_given_as_flags() -> None:
    config = rl("--data.train", "puzzle:countdown", "math=mine.jsonl")
    assert [(source.kind, source.family, source.path) for source in config.data.train] == [
        ("puzzle", "countdown", ""),
        ("jsonl", "math", "mine.jsonl"),
    ]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--temperature", "1"], 'unknown key "temperature"; did you mean rollout.temperature or'),
        (["--run.stps=3"], 'unknown key "run.stps"; did you mean run.steps?'),
        (["--run-steps", "3"], 'unknown key "run_steps"; did you mean run.steps?'),
        (["--modl.pth", "3"], r"unknown section \[modl\]; did you mean \[model\]"),
        (["--request.prompt", "hello"], r"unknown section \[request\]; it belongs to `seedthink generate`"),
        (["--data.batch-tokens", "9"], "it belongs to `seedthink sft`"),
    ],
)
def test_an_unknown_flag_names_the_nearest_key(flags: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        rl(*flags)


def test_a_recipe_that_does_not_stand_first_is_refused(recipe: str) -> None:
    for arguments in ((recipe, recipe, "--run.steps", "3"), ("--run.steps", "3", recipe)):
        with pytest.raises(ConfigError, match=r"one recipe, before its flags"):
            rl(*arguments)


def test_a_folder_without_a_recipe_is_not_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a folder without run.toml"):
        rl(str(tmp_path))


def test_an_assignment_without_dashes_is_told_how_to_be_a_flag() -> None:
    with pytest.raises(ConfigError, match=r"write --rollout.group_size 4"):
        rl("--run.steps", "3", "rollout.group_size=4")


def test_help_documents_every_field_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(SftConfig, ["--help"], command="sft", about="Example: seedthink sft recipes/x")
    text = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
    assert caught.value.code == 0
    assert "Example: seedthink sft recipes/x" in text
    assert "Tokens per optimisation step, prompts included. (default: 8192)" in text
