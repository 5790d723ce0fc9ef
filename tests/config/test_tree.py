"""The schema itself: budget, documentation, starters, explanations."""

from __future__ import annotations

import inspect
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from seedthink.config import COMMANDS, algorithm, load, sections
from seedthink.config.explain import explain, in_words, starter
from seedthink.config.fields import Above, AtLeast, Between, field_docs
from seedthink.config.suggest import nearest
from seedthink.config.tree import keys
from seedthink.errors import ConfigError

BUDGET = 120


def section_classes() -> list[type]:
    modules = (sections, algorithm)
    found = [cls for module in modules for cls in vars(module).values() if inspect.isclass(cls) and is_dataclass(cls)]
    return [cls for cls in found if cls.__module__.startswith("seedthink.config")]


def test_the_number_of_settings_stays_within_the_budget() -> None:
    declared = {f"{cls.__name__}.{name}" for cls in section_classes() for name in vars(cls).get("__annotations__", {})}
    assert 60 < len(declared) <= BUDGET


def test_every_setting_is_documented_by_a_sentence() -> None:
    for cls in [*section_classes(), *COMMANDS.values()]:
        for item in fields(cls):
            doc = field_docs(cls)[item.name]
            assert doc.endswith("."), f"{cls.__name__}.{item.name} needs a sentence under it"


def test_every_section_is_frozen_and_keyword_only() -> None:
    for cls in [*section_classes(), *COMMANDS.values()]:
        assert cls.__dataclass_params__.frozen, cls  # type: ignore[attr-defined]
        assert all(item.kw_only for item in fields(cls)), cls


def test_a_range_says_what_it_allows() -> None:
    assert str(AtLeast(1)) == "1 or more" and AtLeast(1).holds(1) and not AtLeast(1).holds(0)
    assert str(Above(0)) == "above 0" and not Above(0).holds(0)
    assert str(Between(0, 1)) == "0 to 1" and Between(0, 1).holds(1) and not Between(0, 1).holds(1.1)
    assert not AtLeast(0).holds(float("nan"))


def test_the_nearest_key_is_found_by_level_then_spelling_then_other_names() -> None:
    known = ["a.rate", "b.rate", "b.size", "c.lr"]
    assert nearest("b.rat", known) == ["b.rate"]
    assert nearest("c.rate", known) == ["a.rate", "b.rate"]
    assert nearest("learning-rate", known) == ["c.lr"]
    assert nearest("c.sise", known) == ["b.size"]
    assert nearest("c.zzz", known) == []


@pytest.mark.parametrize("command", list(COMMANDS))
def test_a_starter_recipe_loads_and_documents_its_keys(command: str, tmp_path: Path) -> None:
    text = starter(command)
    (tmp_path / "run.toml").write_text(text)
    load(tmp_path, COMMANDS[command])
    lines = text.splitlines()
    settings = [at for at, line in enumerate(lines) if " = " in line and line[0] not in " #"]
    assert len(settings) <= 12 and all(lines[at - 1].startswith("# ") for at in settings)


def test_explaining_a_key_tells_type_default_commands_and_presets() -> None:
    text = in_words(explain("algorithm.clip-high"))
    assert text.startswith("algorithm.clip_high = 0.28")
    assert "takes    a number 0 or more" in text and "seedthink rl" in text and "0.28 in vapo, dapo" in text
    assert in_words(explain("generation.top_p")).count("seedthink") == 3
    with pytest.raises(ConfigError, match=r"did you mean algorithm\.clip_high"):
        explain("algorithm.clip_hi")


def test_paths_of_all_commands_are_reachable() -> None:
    assert "rollout.temperature" in keys(COMMANDS["rl"]) and "rollout.temperature" not in keys(COMMANDS["sft"])
    assert keys(COMMANDS["rl"])["rollout.group_size"].allowed == "a whole number 1 or more"
