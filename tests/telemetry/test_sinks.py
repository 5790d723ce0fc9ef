"""Trackers read the run folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from seedthink.errors import DeviceError
from seedthink.telemetry.sinks import numbers, tensorboard, wandb


@pytest.fixture
def run(tmp_path: Path) -> Path:
    lines = (
        '{"stage":"rl","step":1,"seconds":0.5,"actor/entropy":0.7,"actor/lr":null}\n{"stage":"rl","step":2,"seconds":1'
    )
    (tmp_path / "metrics.jsonl").write_text(lines)
    return tmp_path


def test_only_whole_lines_and_numbers_are_sent(run: Path) -> None:
    assert list(numbers(run)) == [("rl", 1, {"actor/entropy": 0.7})]


@pytest.mark.skipif(find_spec("wandb") is not None, reason="wandb is installed")
def test_a_tracker_that_is_missing_says_how_to_install_it(run: Path) -> None:
    with pytest.raises(DeviceError, match="pip install"):
        wandb.write(run)


@pytest.mark.skipif(find_spec("tensorboard") is not None, reason="tensorboard is installed")
def test_missing_tensorboard_says_how_to_install_it(run: Path) -> None:
    with pytest.raises(DeviceError, match="pip install"):
        tensorboard.write(run, run / "tb")
