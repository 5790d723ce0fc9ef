"""Steps under a tuner: settings follow the load, times come back, and the engine's results keep their bits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from seedthink import _C
from seedthink.autotune.cases import build
from seedthink.autotune.install import Memory, arms_of, expected_of, online_selector, step_tuner
from seedthink.autotune.learned import Learned
from seedthink.autotune.online import Decision
from seedthink.autotune.roofline import Rates
from seedthink.autotune.spaces import SHAPES, SPACES
from seedthink.autotune.steps import Fixed, StepTuner, untuned
from seedthink.autotune.table import Table
from seedthink.kernels import selector
from seedthink.kernels.selector import BUILT_IN, Config, Key, Load
from seedthink.telemetry.jsonl import read_lines

QUICKSTART = SHAPES["quickstart"]


@pytest.fixture(autouse=True)
def built_in() -> Iterator[None]:
    before = _C.threads()
    _C.set_threads(2)
    yield
    _C.set_threads(before)
    selector.install(None)


class Scripted:
    """One thread for few rows; times linear in every step."""

    def __init__(self) -> None:
        self.observed: list[tuple[Key, Config, float]] = []

    def decide(self, key: Key) -> Decision:
        few = Config("threads=1", {"threads": 1})
        return Decision(few if key.load.tokens < 32 else BUILT_IN, key.op == "linear")

    def observe(self, key: Key, config: Config, seconds: float) -> None:
        self.observed.append((key, config, seconds))


def test_settings_follow_the_load_from_step_to_step() -> None:
    tuner = StepTuner(Scripted(), QUICKSTART, "float32")
    with tuner.step("generate", 8):
        assert selector.applied("linear") == selector.applied("norm") == {"threads": 1}
        assert selector.applied("linear_grad") == {}  # not part of this phase
    with tuner.step("learn", 2048):
        assert selector.applied("linear") == selector.applied("norm") == {}


def test_the_time_of_all_calls_in_a_step_comes_back() -> None:
    decider = Scripted()
    tuner = StepTuner(decider, QUICKSTART, "float32")
    case = build(SPACES["linear"].key(QUICKSTART, "float32", Load(64)))
    with tuner.step("generate", 64, cache_fill=0.5):
        case.run()
    with tuner.step("generate", 64):
        pass  # a step without such a call teaches nothing
    ((key, config, seconds),) = decider.observed
    assert key.op == "linear" and key.load.tokens == 64 and key.load.cache_fill == 0.5
    assert config is BUILT_IN and 0 < seconds < 1


def test_a_step_that_fails_teaches_nothing_and_leaves_nothing_watched() -> None:
    decider = Scripted()
    tuner = StepTuner(decider, QUICKSTART, "float32")
    case = build(SPACES["linear"].key(QUICKSTART, "float32", Load(64)))
    with pytest.raises(RuntimeError), tuner.step("generate", 64):
        case.run()
        raise RuntimeError
    case.run()
    assert decider.observed == []
    selector.watched("linear")
    case.run()
    assert selector.watched("linear") == (0, 0.0)


def test_off_is_nothing_and_a_device_without_a_table_has_nothing_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert step_tuner("off", QUICKSTART, "float32") is None
    monkeypatch.setattr("seedthink.autotune.install.shipped", lambda here, sources: None)
    assert step_tuner("table", QUICKSTART, "float32") is None
    with untuned("generate", 8):
        assert selector.applied("linear") == {}


def test_a_table_is_followed_and_answers_kernels_that_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    class Always(Table):
        def choose(self, key: Key, numerics: str | None = "exact") -> Config:
            return Config("threads=1", {"threads": 1})

    monkeypatch.setattr("seedthink.autotune.install.shipped", lambda here, sources: Always({}, []))
    tuner = step_tuner("table", QUICKSTART, "float32")
    assert tuner is not None
    with tuner.step("generate", 64):
        assert selector.applied("norm") == {"threads": 1}
    assert selector.choose(SPACES["norm"].key(QUICKSTART, "float32", Load(8))).name == "threads=1"
    assert isinstance(selector.installed(), Fixed)


def test_an_online_tuner_writes_its_decisions_and_what_it_learned(tmp_path: Path) -> None:
    from seedthink.autotune.device import identity, sources

    here = identity()
    learned = Learned(tmp_path / "cpu.json", here, sources())
    memory = Memory(learned, tmp_path, clock=lambda: 0.0)
    online = online_selector(here, None, Rates(), memory)
    key = SPACES["norm"].key(QUICKSTART, "float32", Load(64))
    best = arms_of(2, Rates())(key)[-1]
    for _ in range(6000):
        config, timed = online.decide(key)
        if timed:
            online.observe(key, config, 1e-5 if config.name == best.name else 2e-5)
    memory.save()
    assert online.site(key).incumbent.name == best.name
    assert any(row["event"] == "adopt" for row in read_lines(tmp_path / "tuner.jsonl"))
    assert learned.load()[str(online.site(key).place)]["incumbent"] == best.name
    assert expected_of(2, Rates())(key, BUILT_IN) > 0


def test_every_choice_of_an_online_tuner_gives_the_same_bits() -> None:
    rates = Rates()
    for op in ("linear", "experts", "attend_paged"):
        key = SPACES[op].key(QUICKSTART, "float32", Load(96, 1.0, 0.02))
        case = build(key)
        expected = case.run()
        for config in arms_of(2, rates)(key):
            selector.apply(op, config.values)
            assert all(map(torch.equal, case.run(), expected))
        selector.apply(op, {})
