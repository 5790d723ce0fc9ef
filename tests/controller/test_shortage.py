"""Out of memory: memory that really cannot be had becomes an error with the estimate and the settings that fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from seedthink.config.sections import GenerationConfig, OptimizerConfig
from seedthink.controller import quickstart
from seedthink.controller.groups import Place
from seedthink.controller.shortage import explained
from seedthink.controller.worker import EngineWorker
from seedthink.engine.engine import EngineSettings
from seedthink.errors import RunError
from seedthink.parallel.layout import Layout


def settings(folder: Path, **generation: int) -> EngineSettings:
    return EngineSettings(
        model=folder,
        rollout=GenerationConfig(**generation),
        policy_optimizer=OptimizerConfig(),
        critic_optimizer=OptimizerConfig(),
        total_updates=1,
        critic=False,
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("start") / "model"
    quickstart.build_start(folder, seed=0)
    return folder


@pytest.mark.parametrize("allocate", [lambda: torch.empty(1 << 50), lambda: np.empty(1 << 50)])
def test_torch_and_numpy_both_run_out_in_words_that_help(model: Path, allocate) -> None:
    with pytest.raises(RunError) as caught, explained("learn", settings(model), Layout(), "rollout"):
        allocate()
    first, *rest = str(caught.value).splitlines()
    assert first.startswith("out of memory in learn (") and "are needed by estimate" in first
    assert any(line.endswith("  activations of a micro-batch") for line in rest)
    assert [line.partition(" would need ")[0] for line in rest[-2:]] == [
        "trainer.micro_batch_tokens = 4096",
        "rollout.kv_memory_mib = 128",
    ]


def test_other_errors_stay_what_they_are(model: Path) -> None:
    asked = settings(model)
    with pytest.raises(RuntimeError, match="inconsistent tensor"), explained("learn", asked, Layout(), "rollout"):
        torch.ones(2) @ torch.ones(3)


def test_a_cache_that_no_machine_has_room_for_ends_the_build_with_a_smaller_one(model: Path) -> None:
    asked = settings(model, kv_memory_mib=1 << 32, max_sequences=1 << 24)
    with pytest.raises(RunError, match="out of memory in build") as caught:
        EngineWorker(Place("policy", 0, Layout(), 1), asked, None)
    assert "\ngeneration.kv_memory_mib = " in str(caught.value)
