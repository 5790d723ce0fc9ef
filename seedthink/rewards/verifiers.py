"""Verifiers by name, imported when first used, and the one way to run them: whatever goes wrong becomes an ERROR.

A verifier is a function (prompt, response text) -> `Judgement`, prompt being `{"id", "family", "text", "reference"}`.
"""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from seedthink.errors import ConfigError
from seedthink.rewards.custom import plain, wrap
from seedthink.types import Judgement, Rollout, Verdict

Verifier = Callable[[Mapping[str, Any], str], Judgement]

BUILT_IN: Mapping[str, str] = {
    "running_sum": "seedthink.rewards.puzzles:running_sum",
    "countdown": "seedthink.rewards.puzzles:countdown",
    "math": "seedthink.rewards.mathematics:math",
    "exact": "seedthink.rewards.exact:exact",
}


def prompt_dict(rollout: Rollout) -> dict[str, Any]:
    """What a verifier sees of the prompt; JSON-able."""
    prompt = rollout.prompt
    return {"id": prompt.id, "family": prompt.family, "text": prompt.text, "reference": dict(prompt.reference)}


def verifier_name(family: str, verifiers: Mapping[str, str]) -> str:
    """The verifier of a family: the one configured for it or for "*", else the built-in of the same name."""
    name = verifiers.get(family) or verifiers.get("*") or family
    if name not in BUILT_IN and ":" not in name:
        raise ConfigError(
            f"no verifier for family '{family}': '{name}' is neither built in ({', '.join(BUILT_IN)}) nor of the form "
            "module:function"
        )
    return name


def load_verifier(name: str) -> Verifier:
    """Import a built-in or a user's `module:function`. Raises `ConfigError` saying what could not be imported."""
    module_name, _, function_name = BUILT_IN.get(name, name).partition(":")
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a script without `if __name__ == "__main__"` may call sys.exit
        raise ConfigError(f"the reward '{name}' cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"the reward '{name}' names no function: {module.__file__} has no callable '{function_name}'")
    if name == "math":
        module.prepare()
    return function if name in BUILT_IN else wrap(function, name)


def run_verifier(verifier: Verifier, prompt: Mapping[str, Any], text: str) -> Judgement:
    """The verifier's judgement with its seconds; an exception is an ERROR whose evidence says what and where."""
    began = time.perf_counter()
    try:
        judgement = verifier(prompt, text)
    except (Exception, SystemExit) as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{frame.filename.rpartition('/')[2]}:{frame.lineno}"
        judgement = error_judgement(plain(f"{type(error).__name__}: {error!s:.300} ({place})"))
    return replace(judgement, seconds=time.perf_counter() - began)


def error_judgement(evidence: str, verdict: Verdict = Verdict.ERROR, seconds: float = 0.0) -> Judgement:
    """An ERROR or TIMEOUT. Its score is not a number, so that no sum can take it for a 0."""
    return Judgement(verdict, float("nan"), {}, evidence, seconds)
