"""The logger: named, quiet, a file per process."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from seedthink.telemetry.log import LOGGER, configure


def test_information_goes_to_the_file_and_warnings_to_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = list(logging.getLogger().handlers)
    configure(tmp_path, "rollout-0")
    LOGGER.info("quiet")
    LOGGER.warning("loud")
    text = (tmp_path / "rollout-0.log").read_text()
    assert "INFO quiet" in text and "WARNING loud" in text
    assert capsys.readouterr().err == "rollout-0: loud\n"
    configure(None, "rollout-0", verbose=True)
    LOGGER.info("seen")
    assert capsys.readouterr().err == "rollout-0: seen\n"
    assert logging.getLogger().handlers == before
    assert LOGGER.name == "seedthink" and not LOGGER.propagate


def test_a_log_without_room_leaves_the_terminal_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full.log").symlink_to("/dev/full")
    configure(tmp_path, "full")
    LOGGER.info("more than the disk takes")
    configure(None, "full")
    assert capsys.readouterr().err == ""
