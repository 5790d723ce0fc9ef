"""Recipes: what loads, and what each mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from seedthink.config import (
    PRESETS,
    EvalConfig,
    GenerateConfig,
    RlConfig,
    SftConfig,
    SourceConfig,
    diff,
    from_dict,
    load,
    to_dict,
    to_toml,
)
from seedthink.errors import ConfigError

RECIPE = """
[run]
steps = 10
[data]
train = ["puzzle:countdown", {kind = "puzzle", family = "running_sum", terms = 5, weight = 2}]
[rollout]
group_size = 4
[algorithm]
preset = "dapo"
clip_high = 0.3
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "run.toml").write_text(RECIPE)
    return folder


def complaint(overrides: dict[str, Any], cls: type = RlConfig, path: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, cls, overrides)
    return str(caught.value)


def test_defaults_run_for_every_command() -> None:
    for cls in (RlConfig, SftConfig, EvalConfig, GenerateConfig):
        assert diff(to_dict(cls()), to_dict(load(None, cls)))[1:] == []  # run.name alone is filled in


def test_preset_comes_first_then_the_file_then_overrides(recipe: Path) -> None:
    config = load(recipe, RlConfig, {"algorithm.clip_low": 0.1})
    assert config.algorithm.estimator == PRESETS["dapo"].estimator != PRESETS["vapo"].estimator
    assert config.algorithm.clip_high == 0.3 != PRESETS["dapo"].clip_high
    assert config.algorithm.clip_low == 0.1


def test_a_folder_means_its_run_toml_and_names_the_run(recipe: Path) -> None:
    assert load(recipe, RlConfig).run.name == "mine"
    assert load(recipe / "run.toml", RlConfig).run.name == "mine"
    assert load(None, RlConfig).run.name == "rl"


def test_keys_of_a_puzzle_that_are_no_field_are_its_knobs(recipe: Path) -> None:
    plain, hard = load(recipe, RlConfig).data.train
    assert plain == SourceConfig(kind="puzzle", family="countdown")
    assert hard.knobs == {"terms": 5} and hard.weight == 2.0 and isinstance(hard.weight, float)


def test_a_source_may_be_written_as_a_file_name() -> None:
    config = load(None, RlConfig, {"data.train": ["a.jsonl", "math=b.parquet"]})
    assert config.data.train == (
        SourceConfig(kind="jsonl", path="a.jsonl"),
        SourceConfig(kind="parquet", path="b.parquet", family="math"),
    )


def test_whole_numbers_serve_as_numbers_but_not_the_other_way() -> None:
    assert load(None, RlConfig, {"rollout.temperature": 1}).rollout.temperature == 1.0
    assert "a whole number" in complaint({"rollout.group_size": 8.0})
    assert "a whole number" in complaint({"rollout.group_size": True})


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"rollout.temperatur": 1.0}, 'unknown key "rollout.temperatur"; did you mean rollout.temperature?'),
        ({"data.temperature": 1.0}, "did you mean rollout.temperature or evaluation.temperature?"),
        ({"temperature": 1.0}, "did you mean rollout.temperature or evaluation.temperature?"),
        ({"policy_optimizer.learning_rate": 1.0}, "did you mean policy_optimizer.lr?"),
        ({"rollout.num_generations": 8}, "did you mean rollout.group_size?"),
        ({"optimizer.lr": 1.0}, "did you mean [policy_optimizer] or [critic_optimizer]?"),
        ({"data.epochs": 3.0}, "it belongs to `seedthink sft`"),
        ({"rollout.xyzzy": 1}, "[rollout] has max_tokens"),
        ({"rollout": 5}, "write [rollout]"),
        ({"rollout.temperature": "hot"}, 'rollout.temperature = "hot" is not allowed: it takes a number'),
        ({"rollout.temperature": -1.0}, "rollout.temperature = -1.0 is not allowed: it takes a number 0 or more"),
        ({"rollout.temperature": float("nan")}, "rollout.temperature = nan is not allowed"),
        ({"algorithm.preset": "vapor"}, "did you mean vapo?"),
        ({"model.dtype": "float16"}, 'it takes "float32" or "bfloat16"'),
        ({"policy_optimizer.betas": [0.9]}, "[a number 0 to 1, a number 0 to 1]"),
        ({"data.train": ["countdown"]}, 'data.train[0] = "countdown" is not allowed'),
        (
            {"data.train": [{"kind": "jsonl", "pth": "x.jsonl"}]},
            'unknown key "pth" in data.train[0]; did you mean path?',
        ),
        ({"data.train": [{"kind": "jsonl"}]}, "needs path"),
        ({"data.train": [{"kind": "puzzle"}]}, "needs family"),
        ({"data.train": [{"kind": "puzzle", "family": "a", "path": "x"}]}, "path has no effect"),
    ],
)
def test_a_mistake_is_told_with_the_key_the_value_and_the_way_out(overrides: dict[str, Any], told: str) -> None:
    assert told in complaint(overrides)


def test_the_recipe_is_named_in_front_of_its_mistakes(recipe: Path) -> None:
    (recipe / "run.toml").write_text("[rollout]\ntemperatur = 1\n")
    assert complaint({}, path=recipe).startswith(f"{recipe / 'run.toml'}: unknown key")
    (recipe / "run.toml").write_text("[rollout\n")
    assert "not valid TOML" in complaint({}, path=recipe)
    assert "does not exist" in complaint({}, path=recipe / "other.toml")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ({"algorithm.preset": "grpo", "critic_optimizer.lr": 1e-3}, 'algorithm.preset = "grpo" trains no critic'),
        ({"algorithm.preset": "grpo", "value_pretraining.max_steps": 9}, "value_pretraining.max_steps has no effect"),
        ({"algorithm.preset": "grpo", "algorithm.gae_length_alpha": 0.5}, "has no critic"),
        ({"rollout.top_k": 5}, "not allowed in rl"),
        ({"rollout.top_p": 0.9}, "not allowed in rl"),
        ({"rollout.temperature": 0}, "not allowed in rl"),
        ({"run.steps": 0}, "run.time_limit_minutes"),
        ({"run.steps": 0, "run.time_limit_minutes": 1, "policy_optimizer.schedule": "cosine"}, "set run.steps"),
        ({"policy_optimizer.min_lr_ratio": 0.1}, "has no effect"),
        ({"controller.kind": "local", "controller.restarts": 1}, "controller.restarts has no effect"),
        ({"reward.function": "a:b", "reward.verifiers": {"x": "y"}}, "reward.verifiers has no effect"),
        ({"data.eval": ["puzzle:countdown"], "data.system": "x"}, "data.system has no effect"),
        ({"value_pretraining.critic_path": "x", "value_pretraining.evaluations": 3}, "brings a trained critic"),
        ({"value_pretraining.max_steps": 0, "value_pretraining.evaluations": 3}, "raise max_steps"),
        ({"algorithm.preset": "grpo", "rollout.group_size": 1}, "teaches nothing"),
    ],
)
def test_a_key_without_effect_or_a_contradiction_is_an_error(overrides: dict[str, Any], told: str) -> None:
    assert told in complaint(overrides)


def test_a_key_without_effect_is_an_error_even_at_its_default_value() -> None:
    default = RlConfig().critic_optimizer.lr
    assert "no effect" in complaint({"algorithm.preset": "grpo", "critic_optimizer.lr": default})
    load(None, RlConfig, {"algorithm.preset": "grpo"})


def test_epochs_and_steps_exclude_each_other_in_sft() -> None:
    assert "run.steps = 100" in complaint({"data.epochs": 2.0}, SftConfig)
    load(None, SftConfig, {"data.epochs": 2.0, "run.steps": 0})


def test_a_configuration_survives_json_and_toml(recipe: Path) -> None:
    config = load(recipe, RlConfig, {"rollout.stop": ['say "hi"\n', "</s>"]})
    assert from_dict(RlConfig, json.loads(json.dumps(to_dict(config)))) == config
    (recipe / "run.toml").write_text(to_toml(config))
    assert load(recipe, RlConfig) == config


def test_the_difference_of_two_configurations_names_the_leaves() -> None:
    before, after = RlConfig(), load(None, RlConfig, {"rollout.group_size": 4})
    changes = diff(to_dict(before), to_dict(after))
    assert [str(change) for change in changes] == ['run.name: "" -> "rl"', "rollout.group_size: 8 -> 4"]
