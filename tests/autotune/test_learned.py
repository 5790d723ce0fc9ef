"""What was learned, on disk: merged by several real processes, refused where corrupt or foreign, rebuilt."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from seedthink.autotune.device import Identity
from seedthink.autotune.learned import Learned, default_path

HERE = Identity("CPU", "", 2, "avx2", "2.13", "3.6")
SOURCES = {"norm": "n1", "gae": "g1"}
PLACE = "norm/float32/128/6.0.0"


def record(name: str, at: float, since: float | None = None) -> dict[str, object]:
    return {"incumbent": name, "since": at if since is None else since, "arms": {name: [-0.1, 14, at]}}


def learned(path: Path, here: Identity = HERE, sources: dict[str, str] = SOURCES) -> Learned:
    return Learned(path, here, sources)


def test_what_is_merged_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "cpu.json"
    assert learned(path).load() == {}
    learned(path).merge({PLACE: record("left", 5.0)})
    assert learned(path).load()[PLACE]["incumbent"] == "left"
    assert not list(path.parent.glob("*.tmp"))


def test_newer_knowledge_of_an_arm_wins_and_the_last_adoption_is_the_incumbent(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    learned(path).merge({PLACE: record("left", 5.0)})
    learned(path).merge({PLACE: record("right", 9.0)})
    found = learned(path).merge({PLACE: {"incumbent": "left", "since": 5.0, "arms": {"left": [0.3, 8, 7.0]}}})
    assert found[PLACE]["incumbent"] == "right"
    assert found[PLACE]["arms"] == {"left": [0.3, 8, 7.0], "right": [-0.1, 14, 9.0]}


def test_places_of_other_sources_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    learned(path).merge({PLACE: record("left", 1.0), "gae/float32/256/8.0.0": record("right", 1.0)})
    assert list(learned(path, sources={**SOURCES, "gae": "g2"}).load()) == [PLACE]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[1]",
        '{"format": 2, "identity": {}, "places": {}}',
        '{"format": 1, "identity": {}}',
        json.dumps(
            {"format": 1, "identity": HERE.as_dict(), "places": {PLACE: {"sources": "n1", "arms": {"left": "x"}}}}
        ),
    ],
)
def test_a_corrupt_file_is_refused_with_one_message_and_rebuilt(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "cpu.json"
    path.write_text(text)
    store = learned(path)
    with caplog.at_level(logging.WARNING):
        assert store.load() == {}
        store.merge({PLACE: record("left", 1.0)})
    assert len(caplog.records) == 1 and "rebuilt" in caplog.text
    assert list(learned(path).load()) == [PLACE]


def test_a_file_of_another_driver_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gpu.json"
    learned(path, replace(HERE, driver="580.1")).merge({PLACE: record("left", 1.0)})
    assert learned(path, replace(HERE, driver="590.2")).load() == {}
    assert "driver '580.1' is not '590.2'" in caplog.text


def in_process(work: Callable[[], None]) -> int:
    """Start a process that does something and ends; returns its id."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    return child


def learn(path: Path, me: int) -> None:
    """What one process learns: 20 places of its own, and one that all of them share."""
    store = learned(path)
    for step in range(20):
        arms = {f"arm{me}": [-0.1, 14, float(step)]}
        own = {"incumbent": f"arm{me}", "since": 1.0, "arms": arms}
        store.merge({f"norm/float32/{me}/{step}.0.0": own, PLACE: {**own, "since": 100.0 * step + me}})


def test_processes_that_write_at_once_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    running = [in_process(partial(learn, path, me)) for me in range(3)]
    while running:
        running = [child for child in running if os.waitpid(child, os.WNOHANG)[0] == 0]
        if path.exists():
            json.loads(path.read_text())  # a reader sees a whole file at any time
    found = learned(path).load()
    assert len(found) == 3 * 20 + 1
    assert set(found[PLACE]["arms"]) == {"arm0", "arm1", "arm2"}
    assert found[PLACE]["incumbent"] == "arm2" and found[PLACE]["since"] == 1902.0


def test_a_process_killed_while_it_writes_leaves_a_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "cpu.json"
    learned(path).merge({PLACE: record("left", 1.0)})
    for me in range(3):
        child = in_process(partial(learn, path, me))
        while len(learned(path).load()) < 3 * (me + 1):
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    assert "left" in learned(path).load()[PLACE]["arms"]
    learned(path).merge({PLACE: record("left", 1e6)})
    assert learned(path).load()[PLACE]["since"] == 1e6


def test_the_file_stands_in_the_users_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_path(HERE) == tmp_path / "seedthink" / "tuning" / "2-threads-avx2.json"
