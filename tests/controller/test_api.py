"""`seedthink.train_rl`: which functions can judge from another process, and how settings are named."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from toy_workers import Toy

from seedthink.controller.api import importable, train_rl
from seedthink.errors import ConfigError


def score(prompt: dict[str, Any], text: str) -> float:
    return 1.0


class Judge:
    def __call__(self, prompt: dict[str, Any], text: str) -> float:
        return 1.0


def test_a_function_of_a_module_goes_by_its_name() -> None:
    assert importable(score) == f"{__name__}:score"


@pytest.mark.parametrize("function", [lambda prompt, text: 1.0, partial(score), Judge(), Toy(None, 1).add, 5])
def test_what_another_process_cannot_import_is_refused_with_the_way_out(function: Any) -> None:
    with pytest.raises(ConfigError, match=r'cannot be imported .* a module of its own .* "module:function"'):
        importable(function)


def test_an_unknown_setting_is_named_with_the_one_that_was_meant() -> None:
    with pytest.raises(ConfigError, match=r'unknown key "rollout.temprature"; did you mean rollout.temperature'):
        train_rl("m", score, "problems.jsonl", rollout__temprature=1.0)
