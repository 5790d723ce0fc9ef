"""Starting: help without torch, and every light package without it too."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

HEAVY = ("torch", "ray", "pyarrow", "tokenizers", "jinja2", "numpy")
BOUND_SECONDS = 5.0  # ten times and more of what it takes, so that a busy machine does not fail the test


def loaded_after(code: str) -> set[str]:
    """Which heavy packages a fresh interpreter holds after running `code`."""
    report = f"{code}\nimport sys\nprint('loaded', *[name for name in {HEAVY!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(result.stdout.splitlines()[-1].split()[1:])


def test_help_answers_at_once_and_loads_nothing_heavy() -> None:
    began = time.monotonic()
    assert loaded_after("from seedthink.cli.main import main; main(['--help'])") == set()
    assert time.monotonic() - began < BOUND_SECONDS


@pytest.mark.parametrize("command", ["rl", "sft", "eval", "generate"])
def test_help_of_a_command_with_a_recipe_needs_no_torch(command: str) -> None:
    code = f"from seedthink.cli.main import main\ntry: main(['{command}', '--help'])\nexcept SystemExit: pass"
    assert loaded_after(code) <= {"numpy"}


def test_help_of_the_benchmarks_loads_nothing_heavy() -> None:
    code = "from seedthink.cli.main import main\ntry: main(['bench', 'kernels', '--help'])\nexcept SystemExit: pass"
    assert loaded_after(code) == set()


@pytest.mark.parametrize(
    "module",
    ["config", "telemetry.folder", "telemetry.samples", "telemetry.terminal", "report.page", "report.compare", "types"],
)
def test_light_packages_load_without_torch(module: str) -> None:
    assert loaded_after(f"import seedthink.{module}") == set()
